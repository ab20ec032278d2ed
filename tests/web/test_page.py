"""The page as a reader meets it, in Chromium: every flow clicked through, hostile words shown and not run, eight readers at once.

The server is a process of its own (see conftest); what it answers is held against zeroline called here. Everything that a page may not do is checked
whenever one is closed: a word on its console, an error, a dialog, a request to anywhere else.
"""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import zeroline as zl
from web.pictures import SVG, bomb, noise, sample, saved
from zeroline import Attribution, Grounding, Rewriting, zoo

WAIT = 60_000
QUESTION = "what color is the seven ?"
WILD = "<img src=x onerror=alert(1)>"


@contextlib.contextmanager
def opened(chromium, server, known="", **how):
    """A page of the server; ``known``: what its console may say."""
    context = chromium.new_context(**{"viewport": {"width": 1300, "height": 1000}, **how})
    context.set_default_timeout(WAIT)
    tab = context.new_page()
    said, asked, dialogs = [], [], []
    tab.on("console", lambda message: said.append(f"{message.type}: {message.text}") if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda problem: said.append(str(problem)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    try:
        tab.goto(server.address)
        tab.wait_for_selector(".picture img")
        yield tab
        assert dialogs == []
        assert [text for text in said if not (known and re.search(known, text)) and not harmless(text)] == []
        assert [url for url in asked if not url.startswith((server.address, "data:", "about:", "blob:"))] == []
    finally:
        context.close()


def harmless(text):
    """Of Chromium, about a canvas that is read back often; of Gradio's script, about an upload's progress."""
    return "Multiple readback operations" in text or text == "warning: Method not implemented."


def choose(tab, label, option, number=0):
    """One of a dropdown's options, of the ``number``-th dropdown of that label that is shown."""
    box = tab.get_by_role("combobox", name=label).locator("visible=true").nth(number)
    box.click()
    tab.get_by_role("option", name=option, exact=True).locator("visible=true").first.click()
    assert box.input_value() == option


def fill(tab, label, text):
    tab.get_by_role("textbox", name=re.compile(rf"^{label}\b")).locator("visible=true").first.fill(text)


def press(tab, button, answers=1):
    """Press, and wait until so many answers, or a refusal, are there; the sentences."""
    tab.evaluate("document.querySelectorAll('.status').forEach((one) => { for (const p of one.querySelectorAll('p')) p.dataset.old = '1'; })")
    tab.get_by_role("button", name=button, exact=True).click()
    fresh = ".status p.said:not([data-old]), .status p.went-wrong:not([data-old])"
    tab.wait_for_function("([css, n]) => [...document.querySelectorAll(css)].filter((p) => p.offsetParent).length >= n", arg=[fresh, answers])
    return [one.inner_text() for one in tab.query_selector_all(fresh) if one.is_visible()]


def go(tab, name):
    tab.get_by_role("tab", name=name).click()


def frame(tab, number=0):
    """The answer to look into."""
    shown = tab.locator("iframe").locator("visible=true").nth(number)
    assert shown.get_attribute("sandbox") == "allow-scripts"
    inside = shown.element_handle().content_frame()
    inside.wait_for_selector("h1")
    return inside


def downloaded(tab, folder, number=0):
    """name -> path of what can be taken along below the ``number``-th answer."""
    found = {}
    links = tab.locator("a[download]").locator("visible=true")
    for at in (2 * number, 2 * number + 1):
        with tab.expect_download() as load:
            links.nth(at).click()
        name = load.value.suggested_filename
        load.value.save_as(folder / name)
        found[Path(name).suffix] = folder / name
    return found


def upload(tab, content, name="a.png", kind="image/png"):
    tab.locator("input[type=file]").first.set_input_files({"name": name, "mimeType": kind, "buffer": content})


def seen(tab):
    """The picture that the page shows, as the server sent it."""
    import base64

    address = tab.locator(".picture img").get_attribute("src")
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def figures(record):
    return f"f(x) - f(baseline) = {float(record.difference[0]):.4g}"


def ordinary(tab):
    """A question that every server answers: quickly, and rightly."""
    said = press(tab, "Explain")
    assert said[0].startswith("The logit of "), said
    return said[0]


@pytest.fixture(scope="module")
def picture(samples):
    return samples[0].image.convert("RGB")


@pytest.fixture(scope="module")
def vit():
    return zl.load("zoo:digits-vit")


# --- every flow clicked through --------------------------------------------------------------------------------------------------


def test_a_sample_is_explained_looked_into_and_taken_along(chromium, server, tmp_path, picture, vit):
    with opened(chromium, server) as tab:
        choose(tab, "site", "vit.layers.3")
        choose(tab, "baseline", "blur(8)")
        said = press(tab, "Explain")
        direct = zl.explain(vit, picture, site="vit.layers.3", baseline="blur(8)", max_evaluations=256)
        assert figures(direct) in said[0]
        assert said[0].startswith(f"The logit of seven from the {direct.baseline} baseline")
        inside = frame(tab)
        text = inside.inner_text("body")
        assert "blur(8)" in text
        assert "attribution error" in text
        assert "vit.layers.3" in text
        canvas = inside.locator("canvas").first
        canvas.focus()
        canvas.press("ArrowRight")
        assert re.search(r"row 0, column 1: [-+]?[0-9.]", inside.locator(".readout").first.inner_text())
        with pytest.raises(Exception, match=r"origin|cross-origin|SecurityError|Blocked"):
            inside.evaluate("parent.document.body.innerHTML")
        tab.screenshot(path=tmp_path / "explain.png", full_page=True)
        files = downloaded(tab, tmp_path)
    record = Attribution.load(files[".safetensors"])
    assert torch.equal(record.values, direct.values)
    assert record.target == direct.target
    context = chromium.new_context(java_script_enabled=True)
    report, problems = context.new_page(), []
    report.on("console", lambda message: problems.append(message.text))
    report.on("pageerror", lambda problem: problems.append(str(problem)))
    report.goto(files[".html"].as_uri())
    assert "blur(8)" in report.inner_text("body")
    assert [text for text in problems if "readback" not in text] == []
    context.close()


def test_a_picture_of_the_readers_is_explained_whatever_it_is_called(chromium, server, vit):
    mine = noise(64, 64, seed=3)
    with opened(chromium, server) as tab:
        before = tab.locator(".picture img").get_attribute("src")
        upload(tab, saved(mine), "not-a-photo.jpg", "image/jpeg")
        tab.wait_for_function("(old) => document.querySelector('.picture img').src != old", arg=before)
        assert seen(tab).convert("RGB").tobytes() == mine.tobytes()
        choose(tab, "method", "gradient_x_input")
        said = press(tab, "Explain")
        assert figures(zl.explain(vit, mine, method="gradient_x_input")) in said[0]


def test_another_sample_model_method_target_and_site_are_asked(chromium, server, samples):
    with opened(chromium, server) as tab:
        before = tab.locator(".picture img").get_attribute("src")
        choose(tab, "sample", "a red six (01)")
        tab.wait_for_function("(old) => document.querySelector('.picture img').src != old", arg=before)
        six = samples[1].image.convert("RGB")
        assert seen(tab).convert("RGB").tobytes() == six.tobytes()
        fill(tab, "target", "six - zero")
        choose(tab, "model", "zoo:digits-cnn")
        choose(tab, "site", "resnet.encoder.stages.1")
        choose(tab, "method", "gradient_x_input")
        choose(tab, "baseline", "mean")
        said = press(tab, "Explain")
        direct = zl.explain("zoo:digits-cnn", six, method="gradient_x_input", site="resnet.encoder.stages.1", baseline="mean", target="six - zero")
        assert said[0].startswith("The logit of six - zero from the mean baseline")
        assert figures(direct) in said[0]
        assert "six - zero" in frame(tab).inner_text("h1")


def test_two_are_compared_side_by_side(chromium, server, tmp_path, picture, vit):
    with opened(chromium, server) as tab:
        go(tab, "Compare two")
        for number in (0, 1):
            choose(tab, "method", "gradient_x_input", number)
        said = press(tab, "Compare", answers=2)
        for number, baseline in enumerate(("black", "blur(8)")):
            direct = zl.explain(vit, picture, method="gradient_x_input", baseline=baseline)
            assert f"from the {direct.baseline} baseline" in said[number]
            assert figures(direct) in said[number]
            assert direct.baseline in frame(tab, number).inner_text("body")
        boxes = [tab.locator("iframe").locator("visible=true").nth(n).bounding_box() for n in (0, 1)]
        assert abs(boxes[0]["y"] - boxes[1]["y"]) < 2  # beside each other
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
        tab.screenshot(path=tmp_path / "compare.png", full_page=True)
        for number, baseline in enumerate(("black", "blur(8)")):
            folder = tmp_path / str(number)
            folder.mkdir()
            kept = Attribution.load(downloaded(tab, folder, number)[".safetensors"])
            assert kept.baseline == zl.explain(vit, picture, method="gradient_x_input", baseline=baseline).baseline


def test_words_are_grounded(chromium, server, tmp_path, picture):
    with opened(chromium, server) as tab:
        choose(tab, "model", "zoo:digits-vqa")
        fill(tab, "text", QUESTION)
        go(tab, "Ground words")
        assert press(tab, "Ground") == ["The words against the picture."]
        inside = frame(tab)
        words = inside.locator(".choices .word").all_inner_texts()
        assert {"color", "seven"} <= set(words)
        tab.screenshot(path=tmp_path / "ground.png", full_page=True)
        kept = Grounding.load(downloaded(tab, tmp_path)[".safetensors"])
    direct = zl.ground(zoo.load("digits-vqa"), zoo.preprocess("digits-vqa", picture, text=QUESTION), target="top")
    assert torch.equal(kept.matrix, direct.matrix)


def test_a_picture_is_rewritten(chromium, server, tmp_path, picture, vit):
    with opened(chromium, server) as tab:
        go(tab, "Rewrite")
        fill(tab, "to", "two")
        choose(tab, "budget", "8/255")
        said = press(tab, "Rewrite")
        direct = zl.rewrite(vit.model, picture, to="two", linf=8 / 255, preprocess=lambda image: vit.prepare(image, None), labels=vit.labels)
        assert said[0].startswith(f"The saved picture is {direct.answer} to the model")
        assert "two" in frame(tab).inner_text("body")
        tab.screenshot(path=tmp_path / "rewrite.png", full_page=True)
        kept = Rewriting.load(downloaded(tab, tmp_path)[".safetensors"])
    assert torch.equal(kept.rewritten, direct.rewritten)


def test_a_route_through_attentions_says_that_it_has_no_error(chromium, server):
    with opened(chromium, server) as tab:
        choose(tab, "method", "attention_relevance")
        assert "no unit and no attribution error" in press(tab, "Explain")[0]
        assert frame(tab).locator("canvas").first.is_visible()


# --- what is hostile, and what goes wrong ----------------------------------------------------------------------------------------


def test_hostile_words_are_shown_and_not_run(chromium, server):
    with opened(chromium, server) as tab:
        fill(tab, "target", WILD)
        said = press(tab, "Explain")
        assert f"no class '{WILD}'" in said[0]
        assert tab.locator("img[src=x]").count() == 0
        fill(tab, "target", "top")
        fill(tab, "text", WILD)
        assert "reads no text" in press(tab, "Explain")[0]
        choose(tab, "model", "zoo:digits-clip")
        choose(tab, "method", "gradient_x_input")
        said = press(tab, "Explain")
        assert WILD in said[0]
        assert WILD in frame(tab).inner_text("h1")
        assert frame(tab).locator("img[src=x]").count() == 0
        fill(tab, "text", "")
        choose(tab, "model", "zoo:digits-vit")
        ordinary(tab)


def test_labels_of_a_model_that_are_html_are_shown_and_not_run(chromium, server):
    with opened(chromium, server) as tab:
        choose(tab, "model", "folder:hostile")
        said = press(tab, "Explain")
        assert re.search(r"The logit of (<img src=x onerror=alert\(1\)>|<script>alert\(2\)</script>) from the black baseline", said[0])
        inside = frame(tab)
        assert "onerror=alert(1)" in inside.inner_text("body") or "alert(2)" in inside.inner_text("body")
        assert inside.locator("img[src=x]").count() == tab.locator("img[src=x]").count() == 0
        go(tab, "Rewrite")
        assert "to the model" in press(tab, "Rewrite")[0]
        tab.wait_for_timeout(300)  # a dialog would come now


def test_a_failing_question_is_one_sentence_and_takes_the_old_answer_away(chromium, server):
    with opened(chromium, server) as tab:
        choose(tab, "method", "gradient_x_input")
        first = ordinary(tab)
        for words, message in (
            ("sevn", "no class 'sevn'; nearest: seven"),
            ("12", "class 12 asked; the model has 10: 0 to 9"),
            ("x" * 61, "61 letters; 60 are possible"),
        ):
            fill(tab, "target", words)
            said = press(tab, "Explain")
            assert len(said) == 1
            assert message in said[0]
            assert "\n" not in said[0]
            assert tab.locator("iframe").locator("visible=true").count() == 0
            assert tab.locator("a[download]").locator("visible=true").count() == 0
        fill(tab, "target", "top")
        assert ordinary(tab) == first


FILES = [
    ("mine.svg", SVG, "no picture that is read here"),
    ("mine.png", SVG, "no picture that is read here"),
    ("empty.png", b"", "the file is empty"),
    ("bomb.png", bomb(8_000, 8_000), "the picture is 8,000 x 8,000"),
    ("cut.png", sample(0)[:400], "cannot be read"),
    ("text.jpg", b"this is a text", "no picture that is read here"),
]


def test_files_that_are_no_pictures_are_refused_in_a_sentence_and_the_next_question_works(chromium, server):
    with opened(chromium, server) as tab:
        choose(tab, "method", "gradient_x_input")
        first = ordinary(tab)
        for name, content, message in FILES:
            upload(tab, content, name, "image/svg+xml" if name.endswith("svg") else "image/png")
            tab.wait_for_selector(".picture .went-wrong")
            assert message in tab.inner_text(".picture .went-wrong"), name
            said = press(tab, "Explain")
            assert len(said) == 1
            assert message in said[0], name
            tab.get_by_role("button", name=re.compile("clear|remove", re.I)).first.click()
            tab.wait_for_selector(".picture img")
            assert ordinary(tab) == first


def test_a_file_above_the_limit_is_refused_and_the_next_question_works(chromium, server):
    with opened(chromium, server, known="413|Failed to load resource|maximum|exceed|^error: Response$") as tab:
        choose(tab, "method", "gradient_x_input")
        upload(tab, bytes(2 * 2**20), "large.png")
        tab.get_by_text(re.compile("maximum|exceed|too large|limit", re.I)).first.wait_for()
        ordinary(tab)


# --- several readers, the keyboard, the dark and the phone -----------------------------------------------------------------------


def test_eight_readers_at_once_get_their_own_answers(chromium, server, samples, vit):
    names = [f"{one.caption} ({one.name})" for one in samples]
    with contextlib.ExitStack() as stack:
        tabs = [stack.enter_context(opened(chromium, server)) for _ in range(8)]
        for number, tab in enumerate(tabs):
            if number:
                choose(tab, "sample", names[number])
            choose(tab, "method", "gradient_x_input")
            choose(tab, "baseline", ("black", "blur(8)")[number % 2])
        for tab in tabs:
            tab.get_by_role("button", name="Explain", exact=True).click(no_wait_after=True)
        for number, tab in enumerate(tabs):
            tab.wait_for_selector(".said")
            direct = zl.explain(vit, samples[number].image, method="gradient_x_input", baseline=("black", "blur(8)")[number % 2])
            said = tab.inner_text(".said")
            assert figures(direct) in said, number
            assert said.startswith(f"The {direct.target[0]} from the {direct.baseline} baseline")


def test_the_keyboard_alone_asks_and_looks(chromium, server):
    with opened(chromium, server) as tab:
        tab.locator("body").click(position={"x": 1, "y": 1})
        reached = []
        for _ in range(40):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"))
            if reached[-1].strip() == "Explain" and tab.evaluate("document.activeElement.getAttribute('role')") != "tab":
                break
        assert reached[-1].strip() == "Explain", reached
        assert [label for label in ("sample", "model", "method", "baseline", "site") if not any(label in one for one in reached)] == []
        tab.keyboard.press("Enter")
        tab.wait_for_selector(".said")


def test_the_page_fits_its_window_in_light_and_dark_and_on_a_phone(chromium, server, tmp_path):
    with opened(chromium, server, viewport={"width": 1300, "height": 900}) as tab:
        choose(tab, "method", "gradient_x_input")
        for scheme, width in (("light", 1300), ("dark", 1300), ("dark", 390), ("light", 390)):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            tab.evaluate("(dark) => document.body.classList.toggle('dark', dark)", scheme == "dark")  # as Gradio's script does when a page is loaded
            fill(tab, "target", "top")
            ordinary(tab)
            assert frame(tab).evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), (scheme, width)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width + 1
            tab.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
            fill(tab, "target", "none")
            press(tab, "Explain")
            ink, ground = tab.evaluate(
                "[getComputedStyle(document.querySelector('.went-wrong')).color, getComputedStyle(document.body).backgroundColor]"
            )
            assert contrast(ink, ground) >= 4.5, (scheme, ink, ground)


def test_the_page_is_dark_where_the_reader_likes_it_dark(chromium, server):
    with opened(chromium, server, color_scheme="dark") as tab:
        assert tab.evaluate("document.body.classList.contains('dark')")
        assert contrast("rgb(255, 255, 255)", tab.evaluate("getComputedStyle(document.body).backgroundColor")) > 12


def contrast(*colours):
    """WCAG's contrast of two CSS colours."""
    lights = []
    for colour in colours:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
