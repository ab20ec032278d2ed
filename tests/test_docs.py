"""README and docs say what happens: their examples run, and print what is shown."""

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from zeroline import zoo
from zeroline.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def without_the_last_digits(text):
    """Numbers to three digits, white space folded: kernels of other machines round differently."""
    folded = "\n".join(" ".join(line.split()) for line in text.strip().splitlines())
    return re.sub(r"-?\d+\.\d+(?:e-?\d+)?", lambda m: f"{float(m[0]):.2g}", folded)


def test_the_python_example_prints_what_the_readme_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes nine.png
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile("\n".join(blocks("python")), "README.md", "exec"), {})
    assert without_the_last_digits(printed.getvalue()) == without_the_last_digits(blocks("text")[0])


def test_the_command_line_example_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    command, _, shown = next(b for b in blocks("console") if b.startswith("$ ")).partition("\n")
    monkeypatch.chdir(tmp_path)
    zoo.samples("digits-vit")[3].image.save("nine.png")
    _run(shlex.split(command)[2:])
    found = capsys.readouterr().out
    drop = re.compile(r"^seconds.*$", flags=re.MULTILINE)
    assert without_the_last_digits(drop.sub("", found)) == without_the_last_digits(drop.sub("", shown))


def _run(arguments):
    try:
        main(arguments)
    except SystemExit as ended:
        assert not ended.code, ended.code


@pytest.mark.parametrize(
    "name", ["adapters", "attention", "baselines", "clip", "coming-from-captum", "guidance", "heterogenous", "rewriting", "runs"]
)
def test_pages_print_what_they_show(name, tmp_path, monkeypatch):
    """The Python blocks of a page, run one after the other, print its text blocks."""
    monkeypatch.chdir(tmp_path)  # some write pictures
    page = (ROOT / f"docs/{name}.md").read_text()
    code, shown = (re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL) for language in ("python", "text"))
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile("\n".join(code), f"docs/{name}.md", "exec"), {})
    assert without_the_last_digits(printed.getvalue()) == without_the_last_digits("".join(shown))


def test_the_models_page_is_the_table_that_the_tests_run():
    from models_page import page

    assert (ROOT / "docs/models.md").read_text() == page(), "run: python tests/models_page.py > docs/models.md"


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


COMMANDS = sorted(
    {line for page in PAGES for line in re.findall(r"^\$ (zeroline .*?)(?:\s{2,}#.*)?$", (ROOT / page).read_text(), flags=re.MULTILINE)}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_is_shown_runs(command, tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    sample = zoo.samples("digits-vit")[3]
    sample.image.save("nine.png")
    zoo.samples("digits-vit")[12].image.save("pair.png")
    Image.fromarray(sample.masks[0].numpy()).save("mask.png")
    (tmp_path / "pictures").mkdir()
    for one in zoo.test_set("digits-vit")[:3]:
        one.image.save(tmp_path / "pictures" / f"{one.name}.png")
    words = shlex.split(command)[1:]
    if words[0] == "summarize":
        for run in (one for one in COMMANDS if one.startswith("zeroline run")):
            _run(shlex.split(run)[1:])
    _run(words)
    assert "error" not in capsys.readouterr().err
    written = tmp_path / words[words.index("--out") + 1] / "manifest.json" if words[0] == "run" else tmp_path / "out" / "figure.png"
    assert written.exists()
