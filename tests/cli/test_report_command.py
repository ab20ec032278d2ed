"""``--report`` on every command that draws, and ``zeroline report`` of what they saved: the right question and command, the same page again."""

import contextlib
import html
import io
import json
import os
import re
import shlex
from functools import cache
from types import SimpleNamespace

import pytest
from PIL import Image
from safetensors import safe_open

from cli.test_cli import IMAGE, run
from report.page_records import attribution, draw, every, save, seen
from report.test_page import Read
from zeroline import zoo
from zeroline.cli import app
from zeroline.seen import Seen

QUESTION = "what color is the seven ?"
QUICK = ("--method", "gradient_x_input")
CLIP = ("--model", "zoo:digits-clip")
# name -> what is typed after ``zeroline``, and how the questions of its chapters begin, in order
COMMANDS = {
    "explain": (("explain", "a picture.png", *QUICK, "--target", "seven - one"), ["What is the logit of seven - one based on, measured from the black baseline?"]),
    "explain a layer": (
        ("explain", "a picture.png", *QUICK, "--site", "vit.layers.1", "--baseline", "blur(4)"),
        ["What is the logit of seven based on, measured from the blur(4) baseline?"],
    ),
    "explain without a picture": (
        ("explain", "a picture.png", "--site", "classifier", "--baseline", "zeros", *QUICK),
        ["What is the logit of seven based on, measured from the zeros baseline?"],
    ),
    "explain by attention": (("explain", "a picture.png", "--method", "attention_relevance"), ["Where does attention find the logit of seven?"]),
    "explain a text": (("explain", "a picture.png", "--text", "a cyan seven", *CLIP, *QUICK), ["What is the cosine of the image with 'a cyan seven' based on, measured from the black baseline?"]),
    "explain texts": (
        ("explain", "a picture.png", "--text", "a cyan seven", "--text", "a red one", *CLIP, "--method", "grad_eclip"),
        ["Where does attention find the ", "Where does attention find the ", "Where does attention find the "],
    ),
    "baselines": (("baselines", "a picture.png", "--baselines", "black, zeros"), ["Which baseline for the logit of seven?"]),
    "layers": (
        ("layers", "a picture.png", "--sites", "input, vit.layers.3", "--max-evaluations", "5"),
        ["What is the logit of seven based on, at 2 sites from the black baseline?"],
    ),
    "compare": (
        ("compare", "a picture.png", "--methods", "gradient_x_input, layer_cam"),
        ["What is the logit of seven based on, by 2 methods, each from its own baseline?"],
    ),
    "attend": (("attend", "a picture.png", "--target", "one"), ["Where does attention find the logit of one?"]),
    "corrections": (("corrections", "a picture.png", "--direction", "one"), ["Where does attention find the logit of one, by each correction?"]),
    "guide": (("guide", "a picture.png", "--with", "three", "--at", "2,2"), ["What does attention show once a guest of yellow three lies on the picture?"]),
    "mechanism": (("mechanism", "a picture.png", "--text", QUESTION, "--no-heads"), ["Through which attentions does the logit of cyan come?"]),
    "ground": (("ground", "a picture.png", "--text", QUESTION), ["Which words go with which part of visual_feats?"]),
    "logic": (("logic", "a picture.png", "--text", QUESTION, "--words", "color, seven", "--regions", "1x1"), ["What does the logit of cyan need?"]),
    "rewrite": (("rewrite", "a picture.png", "--to", "one", "--steps", "3"), ["How little makes seven into one?"]),
    "robustness": (
        ("robustness", "pictures", "--model", "zoo:digits-vit", "--model", "zoo:digits-cnn", "--steps", "2", "--linf", "4/255"),
        ["How little changes the answers of digits-vit?", "How little changes the answers of digits-cnn?"],
    ),
    "principles": (
        ("principles", *CLIP, "--method", "grad_eclip", "--method", "attention_eclip", "--count", "3", "--no-cascade"),
        ["Does grad_eclip explain the original model", "Does attention_eclip explain the original model"],
    ),
    "summarize": (("summarize", "run"), ["How exact is the run run?"]),
    "demo": (("demo",), ["What is the logit of nine based on, measured from the black baseline?"]),
}  # fmt: skip


def once(*arguments):
    """As ``run``, outside of a test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status, *_ = run(SimpleNamespace(readouterr=lambda: SimpleNamespace(out="", err="")), *arguments)
    return status, out.getvalue(), err.getvalue()


def questions(page):
    return [text for _, text in page.all("h1")]


def commands(page):
    return [text for _, text in page.all("code") if text.startswith("zeroline ")]


def chapters(text):
    """Each chapter's own HTML, without the numbers that count chapters and viewers of the page."""
    found = re.findall(r"<article.*?</article>", text, re.S)
    return sorted(re.sub(r'(chapter|viewer|sign|data-viewer)(-|=")\d+', r"\1", one) for one in found)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in: a picture with a blank in its name, a folder of two, and a run."""
    folder = tmp_path_factory.mktemp("reports")
    before = os.getcwd()
    os.chdir(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr(zoo, "load", cache(zoo.load))
    Image.open(IMAGE).save("a picture.png")
    (folder / "pictures").mkdir()
    for number, sample in enumerate(zoo.test_set("digits-vit")[:2]):
        sample.image.save(f"pictures/{number}.png")
    status, _, _ = once("run", "pictures", "--model", "zoo:digits-cnn", *QUICK, "--batch-size", "2", "--out", "run")
    assert status == 0
    yield folder
    patch.undo()
    os.chdir(before)


@pytest.fixture(scope="module")
def asked(place):
    """What a command wrote with --report, made once: (folder, the words typed)."""

    @cache
    def ask(name):
        out = f"out {name}"
        typed = (*COMMANDS[name][0], "--out", out)
        status, printed, _ = once(*typed, "--report")
        assert status == 0
        assert f"{out}/report.html" in printed.replace("\n", " ")
        return place / out, typed

    return ask


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_the_page_of_its_question_and_how_to_ask_it_again(asked, name):
    folder, typed = asked(name)
    page = Read((folder / "report.html").read_text(encoding="utf-8"))
    found, wanted = questions(page), COMMANDS[name][1]
    assert len(found) == len(wanted)
    assert all(one.startswith(begin) for one, begin in zip(found, wanted)), found
    assert commands(page) == [" ".join(shlex.join(("zeroline", *typed)).split())] * len(wanted)
    assert [shlex.split(one) for one in commands(page)] == [["zeroline", *typed]] * len(wanted)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert len(page.all("article")) == len(list(folder.glob("*.safetensors")))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_files_that_were_saved_give_the_same_page_again(asked, name):
    folder, _ = asked(name)
    again = folder / "again" / "page.html"
    status, printed, err = once("report", folder, "--out", again)
    assert (status, err) == (0, "")
    assert printed == f"wrote {again}\n"
    before, after = ((folder / "report.html").read_text(encoding="utf-8"), again.read_text(encoding="utf-8"))
    assert chapters(after) == chapters(before)
    if len(COMMANDS[name][1]) == 1:
        assert after == before


@pytest.mark.parametrize("name", ["explain", "attend", "ground"])
def test_the_question_as_it_is_asked_again_gives_the_same_numbers(asked, name, tmp_path):
    folder, _ = asked(name)
    (command,) = commands(Read((folder / "report.html").read_text(encoding="utf-8")))
    words = shlex.split(command)[1:]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    status, _, err = once(*words)
    assert (status, err) == (0, "")
    (before,), (after,) = (list(one.glob("*.safetensors")) for one in (folder, tmp_path / "again"))
    with safe_open(str(before), "np") as a, safe_open(str(after), "np") as b:
        assert sorted(a.keys()) == sorted(b.keys())
        for tensor in a.keys():  # noqa: SIM118 (not a dict)
            assert a.get_tensor(tensor).tobytes() == b.get_tensor(tensor).tobytes()


def test_without_the_option_there_is_no_page_and_the_files_are_the_same(asked, place):
    folder, typed = asked("explain")
    words = list(typed)
    words[words.index("--out") + 1] = "plain"
    assert once(*words)[0] == 0
    assert sorted(p.name for p in (place / "plain").iterdir()) == sorted(p.name for p in folder.iterdir() if p.name not in ("report.html", "again"))
    assert (place / "plain" / "record.json").read_bytes() == (folder / "record.json").read_bytes()


def test_every_command_that_draws_has_the_option_and_is_in_the_list_here():
    import typer.main

    found = typer.main.get_command(app).commands
    taking = {name for name, one in found.items() if any("--report" in option.opts for option in one.params)}
    assert taking == {typed[0] for typed, _ in COMMANDS.values()}
    drawing = {name for name, one in found.items() if any("figure.png" in (getattr(option, "help", "") or "") for option in one.params)}
    assert drawing <= taking


def test_json_on_standard_output_stays_json_and_names_the_page(place):
    status, out, err = once("explain", "a picture.png", *QUICK, "--json", "--report", "--out", "as json")
    assert (status, err) == (0, "")
    assert "as json/report.html" in json.loads(out)["files"]


def test_a_page_that_fails_leaves_what_was_there_before(place, monkeypatch):
    once("explain", "a picture.png", *QUICK, "--report", "--out", "kept")
    before = {p.name: p.read_bytes() for p in (place / "kept").iterdir()}

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("zeroline.report.page.save", full)
    status, _, err = once("explain", "a picture.png", "--target", "one", *QUICK, "--report", "--out", "kept")
    assert status == 1
    assert "disk full" in err
    assert {p.name: p.read_bytes() for p in (place / "kept").iterdir()} == before


def test_debug_and_report_are_no_part_of_the_question(place):
    assert once("explain", "a picture.png", *QUICK, "--debug", "--report", "--out", "told")[0] == 0
    assert commands(Read((place / "told" / "report.html").read_text()))[0] == "zeroline explain 'a picture.png' --method gradient_x_input --out told"


# --- zeroline report -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A folder with one small file of each kind."""
    folder = tmp_path / "records"
    folder.mkdir()
    for name, told in every().items():
        save(*told, folder, name.replace(" ", "-"))
    for left in folder.glob(".*"):
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
    return folder


def test_a_folder_of_every_kind_is_one_page_with_a_chapter_each_by_name(capsys, saved, tmp_path):
    status, _, err = run(capsys, "report", saved, "--out", tmp_path / "page.html", "--title", "All <b>of them</b>")
    assert (status, err) == (0, "")
    page = Read((tmp_path / "page.html").read_text())
    assert page.all("title")[0][1] == "All <b>of them</b>"
    kinds = [a["data-kind"] for a, _ in page.all("article")]
    assert kinds == [name.partition("-")[0] for name in sorted(path.stem for path in saved.iterdir())]
    assert [(a["href"], text) for a, text in page.all("a")][1:] == [(f"#chapter-{i + 1}", text) for i, text in enumerate(questions(page))]


def test_files_are_taken_in_the_order_given_and_without_a_name_it_is_report_html(capsys, saved, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "report", saved / "summary.safetensors", saved / "audit.safetensors")
    assert (status, out) == (0, "wrote report.html\n")
    page = Read((tmp_path / "report.html").read_text())
    assert [a["data-kind"] for a, _ in page.all("article")] == ["summary", "audit"]
    assert page.all("title")[0][1] == "How exact is the run out/run?"


def test_a_record_made_in_python_has_no_command(capsys, tmp_path):
    attribution(draw(1, 3, 4, 6)).save(tmp_path / "mine.safetensors")
    assert run(capsys, "report", tmp_path / "mine.safetensors", "--out", tmp_path / "page.html")[0] == 0
    page = Read((tmp_path / "page.html").read_text())
    assert commands(page) == []
    assert "The record was made in Python" in " ".join(text for _, text in page.all("p"))


def one_line(found, status, *said):
    """A failed command: exit status, nothing on standard output, one line that says what is wrong."""
    code, out, err = found
    assert (code, out) == (status, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "unexpected" not in err
    for words in said:
        assert words in err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["FOLDER/relevence.safetensors"], 2, ["no record", "nearest: relevance.safetensors"]),
        (["FOLDER/deep/relevence.safetensors"], 2, ["no record 'FOLDER/deep/relevence.safetensors'"]),
        (["FOLDER/none/x.safetensors"], 2, ["no record 'FOLDER/none/x.safetensors'"]),
        (["EMPTY"], 2, ["the folder 'EMPTY' holds no record (a .safetensors file that zeroline saved)"]),
        (["FOLDER/audit.safetensors", "EMPTY"], 2, ["holds no record"]),
        ([IMAGE], 1, ["is not a record that zeroline saved"]),
        (["EMPTY/text.safetensors"], 1, ["is not a record that zeroline saved"]),
        (["EMPTY/other.safetensors"], 1, ["is not a record that zeroline saved"]),
        (["FOLDER/audit.safetensors", "--out", "EMPTY"], 2, ["--out 'EMPTY' is a folder; give the file to write, e.g. 'EMPTY/report.html'"]),
        (["FOLDER/audit.safetensors", "--out", "FOLDER/audit.safetensors/page.html"], 2, ["cannot write results to"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_no_files(capsys, saved, tmp_path, monkeypatch, arguments, status, said):
    from safetensors.numpy import save_file

    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    if "text" in arguments[0] or "other" in arguments[0]:
        (empty / "text.safetensors").write_text("no record")
        save_file({"a": draw(2).numpy()}, empty / "other.safetensors")

    def placed(text):
        return text.replace("FOLDER", str(saved)).replace("EMPTY", str(empty))

    before = sorted(tmp_path.rglob("*"))
    one_line(run(capsys, "report", *map(placed, arguments)), status, *map(placed, said))
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_to_report_on_is_a_usage_error(capsys):
    assert run(capsys, "report")[0] == 2


def test_a_place_that_cannot_be_written_is_told_before_the_work(capsys, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("zeroline.cli.show.os.access", lambda _, mode, **__: mode != os.W_OK)  # root may write anywhere
    monkeypatch.setattr("zeroline.cli.report.open_record", lambda *_: pytest.fail("the work began"))
    one_line(run(capsys, "report", saved, "--out", tmp_path / "page.html"), 2, "cannot write results to", "permission denied")


def test_folders_that_were_made_for_a_page_that_failed_are_taken_away(capsys, saved, tmp_path):
    one_line(run(capsys, "report", IMAGE, "--out", tmp_path / "a" / "b" / "page.html"), 1)
    assert not (tmp_path / "a").exists()
    assert run(capsys, "report", saved / "audit.safetensors", "--out", tmp_path / "a" / "b" / "page.html")[0] == 0
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["page.html"]


def test_a_page_is_replaced_only_by_a_whole_one(capsys, saved, tmp_path):
    page = tmp_path / "page.html"
    run(capsys, "report", saved / "audit.safetensors", "--out", page)
    before = page.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes((saved / "audit.safetensors").read_bytes()[:400])
    one_line(run(capsys, "report", saved / "summary.safetensors", tmp_path / "cut.safetensors", "--out", page), 1, "cut.safetensors")
    assert page.read_bytes() == before


def test_html_in_the_words_of_a_command_is_shown_and_not_run(capsys, tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    record = attribution(draw(1, 3, 4, 6))
    record.save(tmp_path / "r.safetensors")
    Seen(command=("explain", name), pictures=seen().pictures).attach(tmp_path / "r.safetensors")
    run(capsys, "report", tmp_path / "r.safetensors", "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert name not in text
    assert html.escape(f"zeroline explain '{name}'", quote=False) in text.replace("&#39;", "'")
    assert commands(Read(text)) == [f"zeroline explain '{name}'"]


def test_a_picture_whose_name_is_no_utf_8_has_a_page(tmp_path):
    name = os.fsencode(str(tmp_path)) + b"/caf\xe9.png"
    with open(name, "wb") as file, open(IMAGE, "rb") as picture:
        file.write(picture.read())
    status, _, err = once("explain", os.fsdecode(name), *QUICK, "--report", "--out", tmp_path / "out")
    assert "unexpected" not in err
    assert status == 0
    assert (tmp_path / "out" / "report.html").exists()
