"""What a wheel and an sdist must hold, and must not. Each check answers with its line, or raises ``CheckFailed``."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from failure import CheckFailed

LARGEST = 12_000_000  # bytes of a wheel
MODELS = ("digits-clip", "digits-cnn", "digits-detr", "digits-vit", "digits-vqa")
NEEDED = (
    "zeroline/__init__.py",
    "zeroline/py.typed",
    "zeroline/cli/__init__.py",
    *(
        f"zeroline/zoo/models/{name}/{part}"
        for name in MODELS
        for part in ("model.safetensors", "preprocessor_config.json", "scores.json", "README.md")
    ),
    *(f"zeroline/zoo/samples/{number:02d}.png" for number in range(24)),
    "zeroline/zoo/samples/samples.json",
    *(f"zeroline/zoo/test_set/{part}" for part in ("images.png", "masks.png", "test_set.json")),
    "zeroline/zoo/LICENSES.md",
    "zeroline-*.dist-info/licenses/LICENSE",
    "zeroline-*.dist-info/licenses/src/zeroline/zoo/LICENSES.md",
    "zeroline-*.dist-info/entry_points.txt",
)


def wheel_is_whole(wheel: Path) -> str:
    """Small enough, everything of ``NEEDED`` there, and nothing beside the package and its metadata."""
    size = wheel.stat().st_size
    if size >= LARGEST:
        raise CheckFailed(f"the wheel has {size / 1e6:.1f} MB; it must stay under {LARGEST / 1e6:.0f} MB")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    if missing := [wanted for wanted in NEEDED if not any(fnmatch(name, wanted) for name in names)]:
        raise CheckFailed(f"the wheel lacks {', '.join(missing)}")
    tops = {name.partition("/")[0] for name in names}
    if strange := sorted(t for t in tops if t != "zeroline" and not fnmatch(t, "zeroline-*.dist-info")):
        raise CheckFailed(f"the wheel installs {', '.join(strange)} beside zeroline")
    if tests := [name for name in names if any(part == "tests" or part.startswith(("test_", "conftest")) for part in _parts(name))]:
        raise CheckFailed(f"the wheel holds tests: {', '.join(tests[:3])}")
    return f"wheel: {size / 1e6:.2f} MB (under {LARGEST / 1e6:.0f}), {len(names)} files, with weights, samples, py.typed and licences, without tests"


def sdist_is_whole(sdist: Path, root: Path) -> str:
    """The files that git tracks in ``root``, PKG-INFO, and no others; without git only that the package and its tests are there."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    known = tracked(root)
    if known is None:
        known = {"pyproject.toml", "README.md", "LICENSE", "src/zeroline/__init__.py"}
        names &= known
    if missing := sorted(known - names):
        raise CheckFailed(f"the sdist lacks {', '.join(missing[:5])}")
    if strange := sorted(names - known - {"PKG-INFO"}):
        raise CheckFailed(f"the sdist holds {', '.join(strange[:5])}, which git does not track")
    return f"sdist: {sdist.stat().st_size / 1e6:.2f} MB, the {len(names)} files of the repository and no others"


def tracked(root: Path) -> set[str] | None:
    """The files that git tracks, or None outside a repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return {name for name in done.stdout.split("\0") if name} if done.returncode == 0 else None


def unpack(sdist: Path, folder: Path) -> None:
    """The sdist's own folder, inside ``folder``."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")


def _parts(name: str) -> list[str]:
    """The parts of a path that could name tests: the zoo's ``test_set`` is data that users load."""
    return [part for part in name.split("/") if part not in ("test_set", "test_set.json")]
