"""One version, said in one place: does every file that repeats it agree with ``src/zeroline/__init__.py``?

Holds ``version`` and ``disagreements``; reads files only, imports nothing of zeroline. What ``zeroline --version`` prints is asked where it is
installed: by ``tests/cli/test_version.py`` and by ``check_dist.py``.
"""

from __future__ import annotations

import re
from pathlib import Path

SOURCE = "src/zeroline/__init__.py"


def version(root: Path) -> str:
    """The version that ``__init__.py`` assigns, which hatch gives the wheel."""
    return _the_one(r'^__version__ = "([^"]+)"$', root / SOURCE)


def disagreements(root: Path, *, final: bool = False) -> list[str]:
    """One sentence per file that says another version, none where all agree.

    Before a version is published CHANGELOG.md may hold it under "Unreleased", and CITATION.cff has no date. With ``final`` the changelog must have a
    dated heading for it, and the citation the same date.
    """
    here = version(root)
    found = []
    cited = _the_one(r"^version: (\S+)$", root / "CITATION.cff")
    if cited != here:
        found.append(f"CITATION.cff says version {cited}, {SOURCE} says {here}")
    released = headings(root)
    if (final or released) and released[:1] != [here]:
        found.append(f"the newest version in CHANGELOG.md is {released[0] if released else 'Unreleased'}, {SOURCE} says {here}")
    if not released and not re.search(r"^## \[Unreleased\]$", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE):
        found.append(f"CHANGELOG.md has no heading for {here}, and none that says Unreleased")
    if final:
        changed = _all(rf"^## \[{re.escape(here)}\] - (\d{{4}}-\d\d-\d\d)$", root / "CHANGELOG.md")
        dated = _all(r"^date-released: '?([\d-]+)'?$", root / "CITATION.cff")
        if len(changed) != 1 or changed != dated:
            said = (" and ".join(dates) or "not given" for dates in (changed, dated))
            found.append("the date of {} is {} in CHANGELOG.md and {} in CITATION.cff".format(here, *said))
    return found


def headings(root: Path) -> list[str]:
    """The versions that CHANGELOG.md has a heading for, newest first; "Unreleased" is none."""
    return _all(r"^## \[(\d[^\]]*)\]", root / "CHANGELOG.md")


def _all(pattern: str, path: Path) -> list[str]:
    return re.findall(pattern, path.read_text(), flags=re.MULTILINE)


def _the_one(pattern: str, path: Path) -> str:
    found = _all(pattern, path)
    if len(found) != 1:
        raise ValueError(f"{path.name} has {len(found)} lines like {pattern!r}; one is needed")
    return str(found[0])
