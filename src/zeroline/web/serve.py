"""Running the page: bound to this machine unless asked, a queue with an end, uploads with a limit, nothing asked of anywhere."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from zeroline.errors import LoadError, UsageError
from zeroline.web.limits import Limits
from zeroline.web.offered import Offered

HERE = "127.0.0.1"
SYSTEM = ("system-ui", "sans-serif")  # fonts that every machine has


def serve(
    *,
    host: str = HERE,
    port: int = 7860,
    folders: Sequence[Path] = (),
    limits: Limits | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until interrupted; ``ready`` is told its address.

    Raises LoadError where Gradio is missing or a model folder is broken, UsageError where the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError as problem:
        raise LoadError(f"gradio cannot be imported ({problem}); install it: pip install 'zeroline[web]'") from problem
    from zeroline.web.answers import Answers
    from zeroline.web.app import STYLE, page_of

    bounds = limits or Limits()
    _free(host, port)
    answers = Answers(Offered(folders), bounds)
    with tempfile.TemporaryDirectory(prefix="zeroline-web-") as folder:
        blocks = page_of(answers, Path(folder))
        blocks.queue(max_size=bounds.waiting, default_concurrency_limit=4, api_open=False)
        try:
            blocks.launch(
                server_name=host,
                server_port=port,
                max_file_size=int(bounds.megabytes * 2**20),
                theme=gr.themes.Default(font=SYSTEM, font_mono=("ui-monospace", "monospace")),
                css=STYLE,
                footer_links=[],
                share=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
                show_error=False,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as problem:
            raise UsageError(f"port {port} of {host} cannot be had ({problem}); give another with --port") from None
        ready(f"http://{host}:{port}")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the folder of answers goes away
        try:
            blocks.block_thread()
        finally:
            blocks.close()


def _free(host: str, port: int) -> None:
    """Raises UsageError where the address is not this machine's, or somebody listens there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as problem:
        raise UsageError(f"port {port} of {host} cannot be had ({problem.strerror or problem}); give another with --port or --host") from None
