"""Notebooks in the percent format, executed: ``python docs/execute.py docs/notebooks/NAME.py ...`` fails where a cell does.

The kernel is the running Python; nothing needs a network. A cell that draws names what its picture shows: ``# %% alt="..."``.
"""

from __future__ import annotations

import base64
import os
import sys
import time
from pathlib import Path
from typing import Any


def executed(path: Path) -> Any:
    """The notebook with its outputs. Raises ``nbclient.exceptions.CellExecutionError`` where a cell fails."""
    import jupytext
    from nbclient import NotebookClient

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: threads that wait for a core taken by others are slower than one
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # a progress bar that nothing here shows
    notebook = jupytext.read(path)
    quiet = ["--IPKernelApp.log_level=40"]  # the kernel listens on this machine alone
    options = {"resources": {"metadata": {"path": str(path.parent)}}, "extra_arguments": quiet}
    NotebookClient(notebook, kernel_name="python3", timeout=600, **options).execute()
    return notebook


def without_outputs(path: Path) -> str:
    """The notebook as an .ipynb file, to download and run."""
    import jupytext

    return str(jupytext.writes(jupytext.read(path), fmt="ipynb"))


def written(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as a Markdown page, and the pictures that it shows by file name."""
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines.append(cell.source)
            continue
        lines.append(f"```python\n{cell.source}\n```")
        printed = ""
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{len(pictures) + 1}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                lines.append(f"![{cell.metadata['alt']}]({picture})")
            else:
                printed += output.get("text") or data.get("text/plain", "")
        if printed:
            lines.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(lines) + "\n", pictures


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        started = time.perf_counter()
        written(executed(file), file.stem)
        print(f"{file.name}: {time.perf_counter() - started:.0f} s")
