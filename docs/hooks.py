"""What MkDocs does besides rendering: notebooks are executed, links out of the folder resolved, the command line described.

A notebook is ``docs/notebooks/NAME.py`` (percent format). The site has ``notebooks/NAME.md`` in its place, with what the cells printed
and drew when the site was built, and ``NAME.ipynb`` to download. A cell that fails fails the build.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

from command_line import described
from execute import executed, without_outputs, written

# pages of the repository that the site shows too
ALSO = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "vulnerabilities.md"}
_rendered: dict[str, tuple[str, dict[str, Any]]] = {}  # by source, so that `mkdocs serve` runs again only what changed


def on_files(files: Files, config: Any) -> Files:
    """Add the executed notebooks and the pages of the repository."""
    for path in sorted((DOCS / "notebooks").glob("*.py")):
        source = path.read_text()
        if source not in _rendered:
            _rendered[source] = written(executed(path), path.stem)
        page, pictures = _rendered[source]
        note = f"*This page is a notebook, executed when the site was built: [{path.stem}.ipynb]({path.stem}.ipynb)*\n\n"
        head, _, rest = page.partition("\n")
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=f"{head}\n\n{note}{rest}"))
        files.append(File.generated(config, f"notebooks/{path.stem}.ipynb", content=without_outputs(path)))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for name, page in ALSO.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, page, content=(ROOT / name).read_text().replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to notebooks lead to their pages, links out of docs/ to the repository (plain text where its address is not known)."""
    if page.file.src_uri == "api/command-line.md":
        markdown = markdown.replace("<!-- commands -->", described())
    here = (DOCS / page.file.src_uri).parent
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)", lambda found: _link(found, here, page, config), markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Without the mark by which the theme's script asks the repository's host for its stars."""
    return output.replace(' data-md-component="source"', "")


def _link(found: re.Match[str], here: Path, page: Any, config: Any) -> str:
    text, address, anchor = found[1], found[2], found[3] or ""
    target = Path(os.path.normpath(here / address))
    if target.parent == DOCS / "notebooks" and target.suffix == ".py":
        return f"[{text}]({address.removesuffix('.py')}.md{anchor})"
    if page.file.src_uri in ALSO.values() and not target.exists() and (ROOT / address).exists():
        target = ROOT / address
    if target.is_relative_to(DOCS):
        return found[0]
    known = ALSO.get(str(target.relative_to(ROOT))) if target.is_relative_to(ROOT) else None
    if known:
        return f"[{text}]({os.path.relpath(DOCS / known, here)}{anchor})"
    return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{target.relative_to(ROOT)}{anchor})" if config.repo_url else text
