"""The command line: parse, call, report. One file per command.

Holds ``app`` and ``main``. Errors that zeroline raises on purpose become one line on standard error: exit status 2
for usage, 1 for failures. ``--debug`` shows the traceback.
"""

from __future__ import annotations

import sys

import typer

from zeroline.cli import (
    attend,
    baselines,
    compare,
    corrections,
    demo,
    explain,
    ground,
    guide,
    layers,
    logic,
    mechanism,
    principles,
    report,
    rewrite,
    robustness,
    run,
    serve,
    show,
    sites,
    summarize,
    tables,
    trace,
    version,
)
from zeroline.errors import UsageError, ZerolineError

app = typer.Typer(
    name="zeroline",
    help="What a model bases a prediction on, measured from a stated baseline. Add --debug to any command for tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback()(version.version)
app.command()(explain.explain)
app.command()(baselines.baselines)
app.command()(layers.layers)
app.command()(compare.compare)
app.command()(attend.attend)
app.command()(corrections.corrections)
app.command()(guide.guide)
app.command()(mechanism.mechanism)
app.command()(ground.ground)
app.command()(logic.logic)
app.command()(rewrite.rewrite)
app.command()(robustness.robustness)
app.command()(principles.principles)
app.command()(run.run)
app.command()(summarize.summarize)
app.command()(report.report)
app.command()(serve.serve)
app.command()(demo.demo)
app.command()(sites.sites)
app.command()(trace.trace)
app.command()(tables.methods)
app.command()(tables.models)


_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``zeroline``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    show.COMMAND.set(tuple(a for a in given if a not in ("--debug", "--report")))
    try:
        app([a for a in given if a != "--debug"], prog_name="zeroline")
    except ZerolineError as problem:
        if debug:
            raise
        _fail(str(problem), 2 if isinstance(problem, UsageError) else 1)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # the command-line library ends so on Ctrl-C, without a word
            _fail("interrupted", _INTERRUPTED)
        raise
    except OSError as problem:
        if debug:
            raise
        where = f": {problem.filename!r:.200}" if problem.filename else ""
        _fail(f"{problem.strerror or problem}{where}", 1)
    except Exception as problem:
        if debug:
            raise
        _fail(f"unexpected {type(problem).__name__}: {problem} (run again with --debug for the traceback)", 1)


def _fail(message: str, status: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)
