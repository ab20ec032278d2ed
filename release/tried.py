"""The wheel as a stranger meets it: an empty environment, another folder, three commands.

Holds ``python_of`` (which interpreters the machine has) and ``as_a_stranger``. Packages come from wherever pip is set up to find them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from failure import CheckFailed, run

# the demo from Python, and where its modules lie: zeroline's in the environment, none in the checkout
_PROBE = """
import sys
from zeroline.cli import main
try:
    main(["demo", "--out", "probe"])
except SystemExit as ended:
    assert not ended.code, ended.code
lie = {name: str(module.__file__) for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)}
ours = [name for name in lie if name.partition(".")[0] == "zeroline"]
print([name for name in lie if lie[name].startswith(sys.argv[1]) or (name in ours and not lie[name].startswith(sys.prefix))])
print(len(ours))
"""


def python_of(which: str) -> Path | None:
    """An interpreter of this version that can make environments: this one, one on the path, or one of pyenv; None where there is none."""
    ours = ".".join(map(str, sys.version_info[:2]))
    on_path = shutil.which(f"python{which}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        *([Path(sys.executable)] if ours == which else []),
        *([Path(on_path)] if on_path else []),
        *sorted(pyenv.glob(f"{which}.*/bin/python")),
    ]
    return next((one for one in candidates if _works(one, which)), None)


def _works(python: Path, which: str) -> bool:
    """A name on the path may be a shim for nothing, and some distributions leave ensurepip out."""
    code = "import ensurepip, sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == which


def as_a_stranger(python: Path, which: str, wheel: Path, version: str, root: Path, empty: Path) -> Iterator[str]:
    """Install into an environment made in ``empty`` and run zeroline from another empty folder. One line per check that holds."""
    began = time.perf_counter()
    run([str(python), "-m", "venv", str(empty / "venv")], f"Python {which} makes no environment")
    bin_, here = empty / "venv" / "bin", empty / "here"
    here.mkdir()
    own, pip = str(bin_ / "python"), [str(bin_ / "python"), "-m", "pip", "--disable-pip-version-check"]
    run(
        [*pip, "install", "--quiet", "--constraint", str(root / "constraints.txt"), str(wheel)],
        f"Python {which}: the wheel does not install",
        folder=here,
    )
    run([*pip, "check"], f"Python {which}: requirements contradict each other", folder=here)
    torch = run([own, "-c", "import torch; print(torch.__version__)"], f"Python {which}: torch cannot be imported", folder=here).strip()
    if torch.partition("+")[0] != (pinned := _pinned(root, "torch")):
        raise CheckFailed(f"Python {which}: torch {torch} was installed, constraints.txt says {pinned}")
    yield f"Python {which}: installs into an empty environment, torch {torch} ({time.perf_counter() - began:.0f} s)"

    command = str(bin_ / "zeroline")
    if "explain" not in run([command, "--help"], f"Python {which}: zeroline --help fails", folder=here):
        raise CheckFailed(f"Python {which}: zeroline --help does not list the command explain")
    printed = run([command, "--version"], f"Python {which}: zeroline --version fails", folder=here).strip()
    imported = run([own, "-c", "import zeroline; print(zeroline.__version__)"], f"Python {which}: import zeroline fails", folder=here).strip()
    if (printed, imported) != (f"zeroline {version}", version):
        raise CheckFailed(f"Python {which}: zeroline --version prints {printed!r} and zeroline.__version__ is {imported!r}; {version} was built")
    yield f"Python {which}: --help, --version and import say zeroline {version}"

    run([command, "demo", "--report"], f"Python {which}: zeroline demo fails", folder=here)
    figure, report = here / "out/demo/figure.png", here / "out/demo/report.html"
    if not figure.is_file() or figure.read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
        raise CheckFailed(f"Python {which}: zeroline demo wrote no figure.png")
    if not report.is_file() or "measured from the black baseline" not in report.read_text(encoding="utf-8"):
        raise CheckFailed(f"Python {which}: zeroline demo --report wrote no report.html")
    yield f"Python {which}: zeroline demo wrote figure.png ({figure.stat().st_size:,} bytes) and report.html ({report.stat().st_size:,})"

    (here / "probe.py").write_text(_PROBE)
    strange, ours = run([own, "probe.py", str(root)], f"Python {which}: the demo fails from Python", folder=here).splitlines()[-2:]
    if strange != "[]":
        raise CheckFailed(f"Python {which}: imported from elsewhere than the environment: {strange}")
    yield f"Python {which}: {ours} modules of zeroline imported from the environment, none from the checkout"

    licences = run([own, str(root / "release/licences.py"), "--core"], f"Python {which}: a licence does not pass", folder=here).strip()
    yield f"Python {which}: {licences}"


def _pinned(root: Path, name: str) -> str:
    lines = (root / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))
