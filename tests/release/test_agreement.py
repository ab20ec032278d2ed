"""The version is said in one place, and what repeats it agrees."""

from pathlib import Path

import pytest

import zeroline as zl
from agreement import disagreements, headings, version

ROOT = Path(__file__).parents[2]


def test_the_repository_agrees_with_itself():
    assert version(ROOT) == zl.__version__
    assert disagreements(ROOT) == []


@pytest.fixture
def project(tmp_path):
    """A project whose three files are given by ``write``."""

    def write(source="1.2.0", changelog="## [Unreleased]\n", citation="version: 1.2.0\n"):
        (tmp_path / "src/zeroline").mkdir(parents=True, exist_ok=True)
        (tmp_path / "src/zeroline/__init__.py").write_text(f'"""Doc."""\n__version__ = "{source}"\n')
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\n{citation}")
        return tmp_path

    return write


DATED = {
    "changelog": "## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n\n## [1.1.0] - 2026-11-01\n",
    "citation": "version: 1.2.0\ndate-released: 2026-12-01\n",
}


@pytest.mark.parametrize(
    ("files", "final"),
    [({}, False), ({"changelog": "## [1.2.0] - 2026-12-01\n"}, False), (DATED, False), (DATED, True)],
)
def test_what_agrees(project, files, final):
    assert disagreements(project(**files), final=final) == []


@pytest.mark.parametrize(
    ("files", "final", "said"),
    [
        ({"source": "1.3.0"}, False, "CITATION.cff says version 1.2.0, src/zeroline/__init__.py says 1.3.0"),
        ({"source": "1.1.0", **DATED, "citation": "version: 1.1.0\n"}, False, "the newest version in CHANGELOG.md is 1.2.0"),
        ({"changelog": "# Changelog\n"}, False, "no heading for 1.2.0, and none that says Unreleased"),
        ({}, True, "the newest version in CHANGELOG.md is Unreleased"),
        ({**DATED, "citation": "version: 1.2.0\n"}, True, "and not given in CITATION.cff"),
        (
            {**DATED, "citation": "version: 1.2.0\ndate-released: 2026-12-02\n"},
            True,
            "the date of 1.2.0 is 2026-12-01 in CHANGELOG.md and 2026-12-02",
        ),
    ],
)
def test_what_does_not_agree_is_said(project, files, final, said):
    assert said in "; ".join(disagreements(project(**files), final=final))


def test_a_version_that_cannot_be_read_is_an_error(project):
    with pytest.raises(ValueError, match=r"CITATION.cff has 0 lines"):
        disagreements(project(citation=""))


def test_headings_are_the_versions_newest_first(project):
    assert headings(project(**DATED)) == ["1.2.0", "1.1.0"]
