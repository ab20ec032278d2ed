"""What a wheel and an sdist may hold, on small archives made here."""

import io
import subprocess
import tarfile
import zipfile

import pytest

from archives import LARGEST, NEEDED, sdist_is_whole, unpack, wheel_is_whole
from failure import CheckFailed, run

WHOLE = [name.replace("*", "1.0") for name in NEEDED]


@pytest.fixture
def wheel(tmp_path):
    def write(names, size=10):
        path = tmp_path / "zeroline-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"0" * size)
        return path

    return write


def test_a_whole_wheel_passes_with_its_size(wheel):
    assert "MB (under 12)" in wheel_is_whole(wheel(WHOLE))


@pytest.mark.parametrize("gone", ["zeroline/py.typed", "zeroline/zoo/models/digits-vit/model.safetensors", "zeroline/zoo/samples/23.png"])
def test_what_is_missing_is_named(wheel, gone):
    with pytest.raises(CheckFailed, match=f"lacks {gone}"):
        wheel_is_whole(wheel([name for name in WHOLE if name != gone]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests/test_a.py", "installs tests beside"),
        ("zeroline/tests/a.py", "holds tests"),
        ("zeroline/test_a.py", "holds tests"),
        ("zeroline/conftest.py", "holds tests"),
    ],
)
def test_what_must_not_be_there_is_named(wheel, name, said):
    with pytest.raises(CheckFailed, match=said):
        wheel_is_whole(wheel([*WHOLE, name]))


def test_a_wheel_that_is_too_large_says_so(wheel):
    with pytest.raises(CheckFailed, match=r"MB; it must stay under 12 MB"):
        wheel_is_whole(wheel(WHOLE, size=LARGEST // len(WHOLE) + 1))


@pytest.fixture
def sdist(tmp_path):
    def write(*names):
        path = tmp_path / "zeroline-1.0.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name in names:
                member = tarfile.TarInfo(f"zeroline-1.0/{name}")
                member.size = 1
                archive.addfile(member, io.BytesIO(b"0"))
        return path

    return write


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    for name in ("README.md", "a.py"):
        (root / name).write_text("0")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    return root


def test_an_sdist_holds_what_git_tracks_and_no_more(sdist, repository):
    assert "the 3 files" in sdist_is_whole(sdist("README.md", "a.py", "PKG-INFO"), repository)
    with pytest.raises(CheckFailed, match=r"lacks a\.py"):
        sdist_is_whole(sdist("README.md", "PKG-INFO"), repository)
    with pytest.raises(CheckFailed, match=r"holds secret\.txt, which git does not track"):
        sdist_is_whole(sdist("README.md", "a.py", "secret.txt"), repository)


def test_an_sdist_unpacks_to_its_own_folder(sdist, tmp_path):
    unpack(sdist("README.md"), tmp_path / "there")
    assert (tmp_path / "there/zeroline-1.0/README.md").exists()


def test_a_program_that_fails_is_one_sentence_and_sees_no_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert run(["sh", "-c", "echo [$PYTHONPATH]"], "it fails") == "[]\n"
    with pytest.raises(CheckFailed, match=r"it fails: no such thing \(exit status 3 of sh -c"):
        run(["sh", "-c", "echo no such thing >&2; exit 3"], "it fails")
