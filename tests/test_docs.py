"""README and docs say what happens: every example in them runs, and prints what is shown.

A page is in, unless it says ``<!-- blocks: not run, because ... -->``. Its Python blocks run in order, in one namespace; the text block after
one is what it prints. Lines of console blocks that begin with ``$ zeroline`` run in a folder with the pictures that pages speak of; what
stands below such a line is what it prints.
"""

import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from zeroline import zoo
from zeroline.cli import main

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
LEFT_OUT = re.compile(r"<!-- blocks: not run, because (.+?) -->", flags=re.DOTALL)
BLOCK = re.compile(r"^```(python|text|console)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
VARIES = re.compile(r"^(seconds|wrote) .*$\n?", flags=re.MULTILINE)  # times, and names of files with times in them


def text_of(page):
    return (ROOT / page).read_text()


def blocks_of(page):
    """(line, language, content) of every block that runs or shows what ran."""
    text = text_of(page)
    if LEFT_OUT.search(text):
        return []
    return [(text[: found.start()].count("\n") + 2, found[1], found[2]) for found in BLOCK.finditer(text)]


def without_the_last_digits(text):
    """Numbers to three digits, white space folded: kernels of other machines round differently."""
    folded = "\n".join(" ".join(line.split()) for line in text.strip().splitlines())
    return re.sub(r"-?\d+\.\d+(?:e-?\d+)?", lambda m: f"{float(m[0]):.2g}", folded)


@pytest.mark.parametrize("page", [page for page in PAGES if any(language == "python" for _, language, _ in blocks_of(page))])
def test_every_python_block_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write pictures
    names = {"__name__": "page"}
    blocks = [block for block in blocks_of(page) if block[1] != "console"]
    for (line, language, code), following in zip(blocks, [*blocks[1:], (0, "", "")]):
        if language == "text":
            continue
        shown = following[2] if following[1] == "text" else ""
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), names)
        assert without_the_last_digits(printed.getvalue()) == without_the_last_digits(shown), f"{page}, line {line}"


def _commands_of(page):
    """(command, what is shown below it) of every line that begins with ``$ zeroline``."""
    for _, language, content in blocks_of(page):
        for part in re.split(r"^(?=\$ )", content, flags=re.MULTILINE) if language == "console" else ():
            command, _, shown = part.partition("\n")
            if found := re.match(r"\$ (zeroline .*?)(?:\s{2,}#.*)?$", command):
                yield found[1], shown


COMMANDS = {}
for _page in PAGES:
    for _command, _shown in _commands_of(_page):
        COMMANDS.setdefault(_command, []).append(_shown)


@pytest.mark.parametrize("command", sorted(COMMANDS))
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
        for run in sorted(one for one in COMMANDS if one.startswith("zeroline run") and _names(one, words)):
            _run(shlex.split(run)[1:])
            capsys.readouterr()
    _run(words)
    said = capsys.readouterr()
    assert "error" not in said.err
    for shown in filter(str.strip, COMMANDS[command]):
        assert without_the_last_digits(VARIES.sub("", said.out)) == without_the_last_digits(VARIES.sub("", shown))
    if "--out" in words or words[0] in DRAWS:
        folder = tmp_path / (words[words.index("--out") + 1] if "--out" in words else "out")
        assert (folder / ("manifest.json" if words[0] == "run" else "figure.png")).exists()


DRAWS = ("explain", "baselines", "layers", "compare", "attend", "corrections", "guide", "mechanism", "ground", "logic", "rewrite", "robustness")


def _names(run, words):
    """Does a run write one of the folders that a command reads?"""
    given = shlex.split(run)
    return given[given.index("--out") + 1] in words


def _run(arguments):
    try:
        main(arguments)
    except SystemExit as ended:
        assert not ended.code, ended.code


def test_the_models_page_is_the_table_that_the_tests_run():
    from models_page import page

    assert (ROOT / "docs/models.md").read_text() == page(), "run: python tests/models_page.py > docs/models.md"


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text_of(page)):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def _in_nav(entries):
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for below in entry.values():
                yield from _in_nav(below if isinstance(below, list) else [below])


# pages of the repository that the site shows too: docs/hooks.py
ALSO = {"contributing.md", "changelog.md", "vulnerabilities.md"}


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    entries = list(_in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    pages |= {f"notebooks/{notebook.stem}.md" for notebook in (ROOT / "docs/notebooks").glob("*.py")}
    assert sorted(entries) == sorted(pages | ALSO)


def test_every_picture_says_what_it_shows_and_is_shown():
    for page in PAGES:
        assert not re.search(r"!\[\s*\]\(", text_of(page)), page
    shown = " ".join(map(text_of, PAGES))
    assert [picture.name for picture in (ROOT / "docs/images").iterdir() if f"images/{picture.name})" not in shown] == []


def test_code_that_does_not_run_is_that_of_other_libraries():
    """A ``py`` block is not run: it shows a call that somebody comes from, or weights that need a network."""
    for page in PAGES:
        assert "```py\n" not in text_of(page) or page.startswith("docs/coming-from") or page in ("docs/adapters.md", "README.md"), page


def test_every_public_name_is_in_the_reference():
    import zeroline

    said = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    shown = set(re.findall(r"^::: zeroline\.([\w.]+)$", said, flags=re.MULTILINE))
    listed = {name for members in re.findall(r"members: \[(.+?)\]", said) for name in members.split(", ")}
    within = {name for name in zeroline.__all__ if getattr(getattr(zeroline, name), "__module__", "").removeprefix("zeroline.") in shown}
    assert [name for name in zeroline.__all__ if name not in shown | listed | within and f"`zl.{name}`" not in said] == []


def test_a_broken_site_is_found_broken(tmp_path):
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("check_site", ROOT / "docs/check_site.py")
    check_site = module_from_spec(spec)
    spec.loader.exec_module(check_site)
    (tmp_path / "other.html").write_text(
        '<h1 id="here">Other</h1><a href="index.html">back</a><a href="https://elsewhere.org">a link is no request</a>'
    )
    faults = {
        '<a href="gone.html">gone</a>': "gone.html leads nowhere",
        '<a href="other.html#gone">gone</a>': "other.html#gone is no anchor there",
        '<script src="https://elsewhere.org/a.js"></script>': "loads https://elsewhere.org/a.js from elsewhere",
        '<link rel="stylesheet" href="//elsewhere.org/a.css">': "loads //elsewhere.org/a.css from elsewhere",
        '<div style="background: url(https://elsewhere.org/a.png)"></div>': "loads https://elsewhere.org/a.png from elsewhere",
        '<img src="other.html">': "the picture other.html has no alt text",
        '<pre class="mermaid">a</pre>': "holds mermaid, for which the theme loads something from elsewhere",
    }
    for fault, said in {"": "", **faults}.items():
        (tmp_path / "index.html").write_text(f'<a href="other.html#here">fine</a>{fault}')
        check_site.read.cache_clear()
        assert check_site.problems(tmp_path) == ([f"index.html: {said}"] if said else [])


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs/notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_execute(notebook):
    """In a kernel of this Python, in a process of its own: what the packages around a kernel warn of is not ours."""
    done = subprocess.run([sys.executable, str(ROOT / "docs/execute.py"), str(notebook)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
