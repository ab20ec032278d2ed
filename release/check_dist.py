"""Builds wheel and sdist into dist/ and tries them as a stranger would: ``make dist``.

One line per check. The first that fails ends it with one sentence and exit status 1. Standard library only; ``build``, ``twine`` and ``cffconvert``
are run as programs, from the environment that the Makefile makes of ``release/requirements.txt``. What is looked for inside the archives is
``archives.py``, where versions must agree ``agreement.py``, what is tried after ``pip install`` is ``tried.py``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import agreement
import archives
import tried
from failure import CheckFailed, run

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PYTHONS = ("3.11", "3.12", "3.13")


def said(line: str) -> None:
    """One check that holds."""
    print(f"ok      {line}", flush=True)


def check_versions(final: bool) -> str:
    """Every file that names the version names the same; CITATION.cff is valid."""
    if wrong := agreement.disagreements(ROOT, final=final):
        raise CheckFailed("; ".join(wrong))
    version = agreement.version(ROOT)
    released = agreement.headings(ROOT)[:1] == [version]
    said(f"version {version} in {agreement.SOURCE} and CITATION.cff; CHANGELOG.md has it under {version if released else 'Unreleased'}")
    cffconvert = Path(sys.executable).with_name("cffconvert")  # a program alone, no module to run
    run([str(cffconvert), "--validate", "--infile", str(ROOT / "CITATION.cff")], "CITATION.cff is not valid CFF")
    said("CITATION.cff is valid CFF 1.2.0")
    return version


def build(version: str, scratch: Path) -> tuple[Path, Path]:
    """Wheel and sdist in dist/, and the wheel that the sdist builds compared with the first."""
    shutil.rmtree(DIST, ignore_errors=True)
    builder = [sys.executable, "-m", "build", "--no-isolation"]
    run([*builder, "--sdist", "--wheel", "--outdir", str(DIST), str(ROOT)], "the build fails")
    wheel, sdist = DIST / f"zeroline-{version}-py3-none-any.whl", DIST / f"zeroline-{version}.tar.gz"
    names = sorted(p.name for p in DIST.iterdir())
    if names != sorted([wheel.name, sdist.name]):
        raise CheckFailed(f"dist/ holds {', '.join(names)}, not {wheel.name} and {sdist.name}")
    run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], "the metadata is not what an index takes")
    said("metadata and README pass twine check --strict")
    said(archives.wheel_is_whole(wheel))
    said(archives.sdist_is_whole(sdist, ROOT))
    archives.unpack(sdist, scratch)
    run([*builder, "--wheel", "--outdir", str(scratch / "again"), str(scratch / f"zeroline-{version}")], "the sdist does not build")
    if (scratch / "again" / wheel.name).read_bytes() != wheel.read_bytes():
        raise CheckFailed("the sdist builds another wheel than the checkout")
    said("the sdist builds the same wheel, byte for byte")
    return wheel, sdist


def main() -> int:
    """All checks in order."""
    parser = argparse.ArgumentParser(description="Build wheel and sdist into dist/ and try them in empty environments.")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="try the wheel on this Python; more than once for several; default: all")
    parser.add_argument("--final", action="store_true", help="for the release itself: CHANGELOG.md and CITATION.cff carry the version and its date")
    asked = parser.parse_args()
    started = time.perf_counter()
    skipped = []
    try:
        with tempfile.TemporaryDirectory(prefix="zeroline-dist-") as folder:
            version = check_versions(asked.final)
            wheel, _ = build(version, Path(folder))
            wanted = asked.python or PYTHONS
            for which in wanted:
                python = tried.python_of(which)
                if python is None:
                    skipped.append(which)
                    print(f"skipped Python {which}: not on this machine, so the wheel was not tried with it", flush=True)
                    continue
                with tempfile.TemporaryDirectory(prefix=f"zeroline-{which}-") as empty:
                    for line in tried.as_a_stranger(python, which, wheel, version, ROOT, Path(empty)):
                        said(line)
            if len(skipped) == len(wanted):
                raise CheckFailed(f"the wheel was tried with no Python: {', '.join(skipped)} not on this machine")
    except CheckFailed as failed:
        print(f"FAILED  {failed}", file=sys.stderr)
        return 1
    without = f", without Python {', '.join(skipped)}" if skipped else ""
    print(f"dist/ is ready{without} ({time.perf_counter() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
