"""The licences of what ``pip install zeroline`` and its extras bring: ``python release/licences.py``.

Reads the metadata of the distributions that are installed with the Python that runs it, follows the requirements of zeroline and of each extra, and
fails with one sentence per licence that is not on the list of ``spdx.py``. ``--write`` puts the table into docs/licences.md, ``--also FOLDER`` looks
into one more folder of packages, ``--core`` leaves the extras out. Only what metadata states is checked: what a wheel holds beside its own code is
in ``NOTED``, by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from spdx import ALLOWED, allowed, stated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/licences.md"


@dataclass(frozen=True)
class Exempt:
    """A licence that is not on the list and passes all the same: exactly this one (None: none is stated), for this reason."""

    licence: str | None
    why: str


_CUDA = Exempt(
    "LicenseRef-NVIDIA-Proprietary",
    "NVIDIA's CUDA libraries, which PyTorch's CUDA builds for Linux ask for and its CPU builds do not; zeroline neither ships nor calls them",
)
EXCEPTIONS = {  # by pattern of names; the first that fits counts
    "nvidia-*": _CUDA,
    "cuda-toolkit": Exempt(None, "holds no code: its requirements are the libraries above; its metadata names no licence"),
}
BY_BUILD = ("nvidia-*", "cuda-*", "triton")  # there or not, as the build of torch: no rows of the page

# what lies in a wheel beside the project's own code and asks for more than the metadata says; read by a person in the wheels named in constraints.txt
NOTED = {
    "numpy": "its Linux wheels hold libgfortran (GPL-3.0-or-later WITH GCC-exception-3.1) and libquadmath (LGPL-2.1-or-later) as shared libraries",
    "scikit-learn": "its Linux wheels hold libgomp (GPL-3.0-or-later WITH GCC-exception-3.1) as a shared library",
    "scipy": "its Linux wheels hold libgfortran (GPL-3.0-or-later WITH GCC-exception-3.1) and libquadmath (LGPL-2.1-or-later) as shared libraries",
    "torch": "its Linux wheels hold libgomp (GPL-3.0-or-later WITH GCC-exception-3.1) as a shared library",
    "torchvision": "its Linux wheels for CUDA hold libcudart and libnvjpeg (NVIDIA's own licences); only the extra `timm` brings it",
    "soundfile": "its wheels hold libsndfile (LGPL-2.1) as a shared library that can be replaced; only the extra `audio` brings it",
}

FRAME = """# Licences of what is installed with zeroline

`make licences` makes this page from the metadata of the installed packages, at the versions of [constraints.txt](../constraints.txt), and fails where
a licence is not on the list or not known. zeroline itself is Apache-2.0 and holds no code of these packages.

*BSD* is a BSD licence whose metadata does not say how many clauses. *Comes with*: core is `pip install zeroline`; `test`, `bench` and `dev` are
for work on zeroline. PyTorch's CUDA builds bring triton and NVIDIA's libraries beside these; `make licences` checks what the build here brings.

| package | version | licence | comes with |
|---|---|---|---|
{rows}

On the list: {allowed}.

## Exceptions

| package | licence | why it passes |
|---|---|---|
{exempt}

## Beside a package's own code

Wheels hold libraries whose licences the metadata leaves out. Read by a person, in the versions above:

{noted}
"""


@dataclass(frozen=True)
class Row:
    """A distribution, its licence (None: it does not say) and who brings it."""

    name: str
    version: str
    licence: str | None
    brought_by: tuple[str, ...]

    @property
    def cells(self) -> str:
        """The row of the page; a local version ("+cpu") is left out."""
        return f"| {self.name} | {self.version.partition('+')[0]} | {self.licence} | {', '.join(self.brought_by)} |"


def problem(name: str, licence: str | None) -> str | None:
    """Why this licence does not pass, or None."""
    if licence is not None and allowed(licence):
        return None
    exempt = next((e for pattern, e in EXCEPTIONS.items() if fnmatch(name, pattern)), None)
    if exempt is not None and exempt.licence == licence:
        return None
    if licence is None:
        return f"{name} does not say its licence in a way that we know: look at it, then teach release/spdx.py or list it in EXCEPTIONS"
    return f"{name} is under {licence}, which is not on the list of release/spdx.py: do without it, or list it in EXCEPTIONS with the reason"


def closure(installed: dict[str, Distribution], extra: str = "", start: str = "zeroline") -> set[str]:
    """Canonical names of all that ``start`` (with an extra) requires here, itself left out. What is not installed is an error: nothing is guessed."""
    seen: set[tuple[str, str]] = set()
    waiting = [(start, extra)]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        name, asked = one
        if name not in installed:
            raise LookupError(f"{name} is required and not installed: its licence cannot be read")
        waiting += _required(installed[name], asked)
    return {name for name, _ in seen} - {start}


def _required(distribution: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            name = canonicalize_name(requirement.name)
            yield from ((name, wanted) for wanted in ("", *requirement.extras))


def rows(installed: dict[str, Distribution], extras: Iterable[str]) -> list[Row]:
    """One per distribution, sorted. What the core brings is not counted again for extras."""
    core = closure(installed)
    brought = {name: ["core"] for name in core}
    for extra in extras:
        for name in closure(installed, extra) - core:
            brought.setdefault(name, []).append(extra)
    return [
        Row(installed[name].metadata["Name"], installed[name].version, stated(installed[name].metadata), tuple(by))  # type: ignore[arg-type]
        for name, by in sorted(brought.items())
    ]


def page(found: Iterable[Row]) -> str:
    """docs/licences.md, the same whatever the build of torch."""
    lines = [row.cells for row in found if not any(fnmatch(canonicalize_name(row.name), pattern) for pattern in BY_BUILD)]
    exempt = [f"| `{pattern}` | {e.licence or 'none stated'} | {e.why} |" for pattern, e in EXCEPTIONS.items()]
    noted = [f"- {name}: {what}." for name, what in NOTED.items()]
    return FRAME.format(rows="\n".join(lines), allowed=", ".join(sorted(ALLOWED)), exempt="\n".join(exempt), noted="\n".join(noted))


def installed_here(also: Iterable[Path] = ()) -> dict[str, Distribution]:
    """Every distribution that this Python finds, by canonical name; the first found counts, as for imports."""
    found: dict[str, Distribution] = {}
    for one in distributions(path=[*sys.path, *map(str, also)]):
        found.setdefault(canonicalize_name(one.metadata["Name"]), one)
    return found


def main() -> int:
    """Print one line per problem and a closing line; exit status 1 where there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--also", type=Path, action="append", default=[], help="one more folder of installed packages")
    parser.add_argument("--core", action="store_true", help="without the extras")
    parser.add_argument("--write", action="store_true", help="write docs/licences.md")
    asked = parser.parse_args()
    installed = installed_here(asked.also)
    try:
        extras = [] if asked.core else installed["zeroline"].metadata.get_all("Provides-Extra") or []
        found = rows(installed, extras)
    except LookupError as missing:
        print(f"FAILED  {missing}", file=sys.stderr)
        return 1
    problems = [said for row in found if (said := problem(canonicalize_name(row.name), row.licence))]
    for said in problems:
        print(f"FAILED  {said}", file=sys.stderr)
    if problems:
        return 1
    if asked.write:
        PAGE.write_text(page(found))
    print(
        f"licences: {len(found)} distributions, every licence on the list or a stated exception"
        + (", docs/licences.md written" if asked.write else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
