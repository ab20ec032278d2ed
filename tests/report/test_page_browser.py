"""Pages as a reader meets them: opened from disk in Chromium, with the keyboard alone, in dark and light, on a phone, without JavaScript.

The truth of every number and colour on the screen is the record's own, worked out here; what the page does is read back from its canvas and texts.
"""

import contextlib
import re

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from report.page_records import attribution, chapters, comparison, draw, every, grounding, photo, relevance
from report.test_page import HOSTILE
from zeroline.report import page
from zeroline.seen import Seen

# A map of 2 rows and 3 columns whose values are known: sizes, signs and zero. Their largest is the end of the scale, up to its 99.5 % point.
MAP = ((4.0, -4.0, 0.0), (2.0, -1.0, 0.5))
LIMIT = float(np.quantile(np.abs(np.asarray(MAP, dtype=np.float32)), 0.995))


def by_hand():
    """A relevance on a picture whose map is MAP, with two attentions, MAP's upper and lower row; and words beside it."""
    whole = torch.tensor([[9.0, *MAP[0], *MAP[1]]])
    upper, lower = whole.clone(), whole.clone()
    upper[0, 4:], lower[0, :4] = 0, 0
    record = relevance()
    words = torch.tensor([[3.0, -1.5, 0.0, 0.75]])
    return relevance(
        by_source={"pixels": whole, "words": words},
        per_call={"pixels": torch.stack([upper, lower, 0 * whole]), "words": 0 * record.per_call["words"]},
    )


def words_and_patches():
    """Three words against six patches: which is which can be told from each value."""
    matrix = torch.zeros(1, 3, 7).double()
    for row in range(3):
        for patch in range(6):
            matrix[0, row, 1 + patch] = (-1) ** (row + patch) * (1 + row + 10 * patch) / 16
    none = torch.zeros_like(matrix)
    return grounding(matrix=matrix, back=none, per_call=torch.stack([matrix, none]), back_per_call=torch.stack([none, none]))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> a page on disk."""
    folder = tmp_path_factory.mktemp("pages")
    seen = Seen({"image": photo(8, 12)}, {"words": ("what", "is", "seven", "?")}, command=("attend", "a.png"))
    pixels = torch.zeros(1, 1, 40, 60)
    pixels[0, 0] = draw(40, 60)
    made = {
        "relevance": [page.chapter(by_hand(), seen)],
        "grounding": [page.chapter(words_and_patches(), seen)],
        "pixels": [page.chapter(attribution(pixels, output=2.0, there=1.0), Seen({"image": photo(40, 60)}))],
        "words": [page.chapter(attribution(torch.tensor([[[1.0, 1.0], [-4.0, 1.0], [0.0, 0.0], [0.5, 0.0]]])), Seen(words=seen.words))],
        "comparison": [page.chapter(comparison(), seen)],
        "every": list(chapters().values()),
        "hostile": [page.chapter(*every(lambda text: text + HOSTILE)[name]) for name in ("relevance", "grounding", "attribution of words")],
        "long names": [page.chapter(*every(lambda text: f"{text}.{'attention' * 7}")["attribution of words"])],
        "several": [page.chapter(attribution(draw(1, 4, 2), target=(f"logit of {'newt' * 14}",)), Seen())] * 2,
    }
    for name, those in made.items():
        page.save(those, folder / f"{name}.html")
    return {name: (folder / f"{name}.html").as_uri() for name in made}


@contextlib.contextmanager
def opened(chromium, address, known=None, **how):
    """A page that must say nothing on the console, ask for nothing but itself, and raise nothing; checked when it is closed."""
    context = chromium.new_context(**{"viewport": {"width": 1000, "height": 900}, **how})
    context.set_default_timeout(60_000)
    tab = context.new_page()
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda problem: said.append(str(problem)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    try:
        tab.goto(address)
        yield tab
        assert [text for text in said if not known or known not in text] == []
        assert [url for url in asked if not url.startswith("data:")] == [address]
    finally:
        context.close()


def cells(tab, viewer=0):
    """What the canvas shows: RGBA [rows, columns, 4]."""
    width, height, flat = tab.evaluate(
        """(n) => { const c = document.querySelectorAll("section.viewer")[n].querySelector("canvas"), copy = new OffscreenCanvas(c.width, c.height);
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(c, 0, 0);
        return [c.width, c.height, [...context.getImageData(0, 0, c.width, c.height).data]]; }""",
        viewer,
    )
    return np.asarray(flat).reshape(height, width, 4)


def expected(values, limit, opacity=0.85):
    """Colours of a map by the scale blue to red and the strength of each value: RGBA as floats."""
    share = np.clip(np.asarray(values, dtype=np.float64) / limit, -1, 1)
    ink = np.stack([np.interp(share, np.linspace(-1, 1, 33), [255 * colormaps["RdBu_r"](i / 32)[c] for i in range(33)]) for c in range(3)], -1)
    return np.concatenate([ink, 255 * opacity * np.abs(share)[..., None] ** 0.7], -1)


def same_colours(found, wanted):
    """Alpha within rounding; colour where there is enough of it to be kept by the canvas, which multiplies by alpha."""
    assert found.shape == wanted.shape
    assert np.abs(found[..., 3] - wanted[..., 3]).max() <= 1.01
    strong = wanted[..., 3] > 40
    assert np.abs(found[strong][:, :3] - wanted[strong][:, :3]).max() <= 6


def readout(tab, viewer=0):
    return tab.locator("section.viewer").nth(viewer).locator(".readout").text_content()


def rest(tab):
    """No cell is pointed at."""
    tab.evaluate("document.activeElement.blur()")
    tab.mouse.move(2, 2)


def point(tab, row, column, shape, viewer=0):
    """The mouse on the middle of a cell of a map."""
    canvas = tab.locator("section.viewer").nth(viewer).locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * (column + 0.5) / shape[1], box["y"] + box["height"] * (row + 0.5) / shape[0])


def said(value):
    """A number as a reader would write it with three digits."""
    if value == 0:
        return "0"
    text = f"{abs(value):#.3g}"
    return ("+" if value > 0 else "-") + text.rstrip(".")


# --- it opens --------------------------------------------------------------------------------------------------------------------


def test_every_kind_opens_without_a_word_on_the_console_and_asks_for_nothing(chromium, files):
    with opened(chromium, files["every"]) as tab:
        assert tab.locator("article").count() == len(every())
        assert tab.locator("section.viewer .controls:visible").count() == tab.locator("section.viewer").count() > 8
        loaded = tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert loaded


def test_hostile_texts_are_shown_and_nothing_of_them_runs(chromium, files):
    with opened(chromium, files["hostile"]) as tab:
        tab.wait_for_timeout(100)
        assert tab.evaluate("window.ran") is None
        assert tab.evaluate("document.querySelectorAll('img[src=x], img[onerror]').length") == 0
        assert HOSTILE in tab.locator("h1").first.text_content()
        assert tab.locator(".choices .word").nth(1).text_content() == f"word0{HOSTILE}"
        assert tab.locator(".words .word").first.text_content().endswith(HOSTILE)
        tab.locator(".choices .word").nth(1).focus()
        tab.locator("canvas").nth(1).focus()
        assert HOSTILE in readout(tab, 2)
        assert tab.evaluate("window.ran") is None


# --- the map ---------------------------------------------------------------------------------------------------------------------


def test_the_map_is_red_for_blue_against_and_clear_at_zero(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        found = cells(tab)
        assert found.shape == (2, 3, 4)
        assert found[0, 2].tolist() == [0, 0, 0, 0]
        assert found[0, 0, 0] > found[0, 0, 2] + 60  # +4: red
        assert found[0, 1, 2] > found[0, 1, 0] + 60  # -4: blue
        assert found[1, 0, 3] > found[1, 1, 3] > found[1, 2, 3] > 0  # 2, -1, 0.5: the stronger, the less clear
        same_colours(found, expected(MAP, LIMIT))
        assert tab.locator(".low").first.text_content() == said(-LIMIT)
        assert tab.locator(".high").first.text_content() == said(LIMIT)


def test_the_slider_goes_through_the_attentions_by_arrow_keys(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        slider = tab.get_by_label("attention")
        assert slider.get_attribute("max") == "2"
        assert tab.locator(".panel-name").text_content() == "all attentions together (1 of 3)"
        slider.focus()
        tab.keyboard.press("ArrowRight")
        assert tab.locator(".panel-name").text_content() == "0: layer.0.att (2 of 3)"
        assert slider.get_attribute("aria-valuetext") == "0: layer.0.att"
        upper = [MAP[0], (0, 0, 0)]
        same_colours(cells(tab), expected(upper, np.quantile(np.abs(np.asarray(upper, np.float32)), 0.995)))
        assert tab.locator("section.viewer").first.locator(".caption").text_content() == "homogenous"
        tab.keyboard.press("ArrowRight")
        lower = [(0, 0, 0), MAP[1]]
        same_colours(cells(tab), expected(lower, np.quantile(np.abs(np.asarray(lower, np.float32)), 0.995)))
        tab.keyboard.press("Home")
        same_colours(cells(tab), expected(MAP, LIMIT))


def test_signs_are_switched_by_arrow_keys(chromium, files):
    values = np.asarray(MAP)
    with opened(chromium, files["relevance"]) as tab:
        tab.locator("input[name=sign-0][value=both]").focus()
        tab.keyboard.press("ArrowRight")
        assert tab.locator("input[name=sign-0][value=for]").is_checked()
        same_colours(cells(tab), expected(np.where(values > 0, values, 0), LIMIT))
        tab.keyboard.press("ArrowRight")
        same_colours(cells(tab), expected(np.where(values < 0, values, 0), LIMIT))
        point(tab, 0, 0, (2, 3))
        assert readout(tab) == "patch, row 0, column 0: +4.00 (not drawn: other sign)"
        point(tab, 0, 1, (2, 3))
        assert readout(tab) == "patch, row 0, column 1: -4.00"
        rest(tab)
        tab.locator("input[name=sign-0][value=against]").focus()
        tab.keyboard.press("ArrowRight")
        same_colours(cells(tab), expected(MAP, LIMIT))
        assert tab.locator("input[name=sign-1][value=both]").is_checked()  # the other viewer's own


def test_opacity_is_set_by_arrow_keys(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        slider = tab.get_by_label("opacity")
        slider.focus()
        for _ in range(5):
            tab.keyboard.press("ArrowLeft")
        assert slider.input_value() == "80"
        same_colours(cells(tab), expected(MAP, LIMIT, 0.8))
        tab.keyboard.press("Home")
        assert cells(tab)[..., 3].max() == 0
        tab.keyboard.press("End")
        same_colours(cells(tab), expected(MAP, LIMIT, 1.0))


def test_the_picture_beneath_is_grey_and_can_be_in_colour(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        styled = "getComputedStyle(document.querySelector('.ground')).filter"
        assert "grayscale(1)" in tab.evaluate(styled)
        tab.get_by_label("picture in colour").focus()
        tab.keyboard.press("Space")
        assert tab.evaluate(styled) == "none"


def test_arrow_keys_go_over_the_map_and_the_value_is_read_out(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        canvas = tab.locator("canvas")
        canvas.focus()
        assert readout(tab) == "patch, row 0, column 0: +4.00"
        way = {"ArrowRight": (0, 1), "ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowUp": (-1, 0)}
        row = column = 0
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp"):
            tab.keyboard.press(key)
            row, column = min(1, max(0, row + way[key][0])), min(2, max(0, column + way[key][1]))
            assert readout(tab) == f"patch, row {row}, column {column}: {said(MAP[row][column])}"
        plain = expected(MAP, LIMIT)
        assert np.abs(cells(tab)[0, 0] - plain[0, 0]).max() > 40  # the place is marked
        same_colours(cells(tab)[:, 1:], plain[:, 1:])
        rest(tab)
        assert readout(tab) == ""
        same_colours(cells(tab), plain)


def test_the_mouse_reads_every_cell_and_leaving_puts_it_back(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        for row in range(2):
            for column in range(3):
                point(tab, row, column, (2, 3))
                assert readout(tab) == f"patch, row {row}, column {column}: {said(MAP[row][column])}"
        rest(tab)
        assert readout(tab) == ""
        same_colours(cells(tab), expected(MAP, LIMIT))


def test_going_over_the_map_says_nothing_on_the_console(chromium, files):
    with opened(chromium, files["relevance"], known=None) as tab:
        tab.locator("canvas").focus()
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
            tab.keyboard.press(key)


def test_sums_over_cells_add_up_and_are_drawn_and_read_as_such(chromium, files):
    values = draw(40, 60).numpy()
    with opened(chromium, files["pixels"]) as tab:
        picker = tab.get_by_label("sums over")
        assert picker.locator("option").all_text_contents() == [f"{n} x {n}" for n in (1, 2, 4, 8, 16, 32)]
        assert picker.input_value() == "4"  # 15 cells along: 2 would leave 30
        for side in (4, 1, 16):
            picker.select_option(str(side))
            rows, columns = -(-40 // side), -(-60 // side)
            padded = np.pad(values.astype(np.float64), [(0, -40 % side), (0, -60 % side)])
            sums = padded.reshape(rows, side, columns, side).sum((1, 3))
            limit = np.quantile(np.abs(values), 0.995) if side == 1 else np.abs(sums).max()
            found = cells(tab)
            assert found.shape == (rows, columns, 4)
            same_colours(found, expected(sums, limit))
            if side > 1:
                point(tab, rows - 1, 1, (rows, columns))
                value = sums[rows - 1, 1]
                assert readout(tab) == f"{side} x {side} pixels, row {rows - 1}, column 1: {said(value)}, {100 * value:.1f} % of the difference"
                rest(tab)
        picker.select_option("16")
        picker.focus()
        tab.keyboard.press("ArrowUp")
        assert cells(tab).shape == (5, 8, 4)


def test_a_small_map_offers_no_sums(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        assert not tab.locator(".sums").first.is_visible()


def test_maps_of_other_sizes_change_the_canvas(chromium, files):
    record = comparison()
    with opened(chromium, files["comparison"]) as tab:
        one, two = (next(iter(member.parts.values())).double() for member in record.members.values())
        pixels, patches = one.sum(1)[0].numpy(), two.sum(-1)[0, 1:].reshape(2, 3).numpy()
        same_colours(cells(tab), expected(pixels, np.quantile(np.abs(pixels), 0.995)))
        tab.get_by_role("slider", name="method").focus()
        tab.keyboard.press("ArrowRight")
        same_colours(cells(tab), expected(patches, np.quantile(np.abs(patches), 0.995)))
        tab.locator("canvas").focus()
        assert readout(tab).startswith(f"cell, row 0, column 0: {said(float(patches[0, 0]))}")


# --- words -----------------------------------------------------------------------------------------------------------------------


def rgb(text):
    return [float(part) for part in re.findall(r"[\d.]+", text)[:3]]


def grounds(tab, selector):
    return [rgb(text) for text in tab.locator(selector).evaluate_all("(items) => items.map((item) => getComputedStyle(item).backgroundColor)")]


def test_words_are_coloured_by_their_values_and_read_by_arrow_keys(chromium, files):
    values = [2.0, -3.0, 0.0, 0.5]
    limit = float(np.quantile(np.abs(np.float32(values)), 0.995))
    with opened(chromium, files["words"]) as tab:
        assert tab.locator(".words .word").all_text_contents() == ["what", "is", "seven", "?"]
        wanted = expected([values], limit)[0, :, :3]
        assert np.abs(np.asarray(grounds(tab, ".words .word")) - wanted).max() <= 1.5
        assert tab.locator(".words .word[tabindex='0']").count() == 1
        tab.locator(".words .word").first.focus()
        said_at = []
        for key in ("ArrowRight", "ArrowRight", "End", "Home", "ArrowDown", "ArrowUp", "ArrowLeft"):
            tab.keyboard.press(key)
            said_at.append(readout(tab))
            at = tab.evaluate("Number(document.activeElement.dataset.number)")
            word = ["what", "is", "seven", "?"][at]
            share = 100 * values[at] / 2.0
            assert readout(tab) == f'token {at} "{word}": {said(values[at])}, {share:.1f} % of the difference'
            assert tab.locator(".words [aria-selected=true]").all_text_contents() == [word]
        assert [text.split()[1] for text in said_at] == ["1", "2", "3", "0", "1", "0", "0"]


def test_letters_can_be_read_on_every_ground(chromium, files):
    """Words in black or white, whichever the ground allows: by WCAG at least 4.5 to 1."""
    with opened(chromium, files["every"]) as tab:
        pairs = tab.locator(".word:visible").evaluate_all(
            "(items) => items.map((i) => [getComputedStyle(i).color, getComputedStyle(i).backgroundColor])"
        )
        assert len(pairs) > 10
        assert min(contrast(rgb(a), rgb(b)) for a, b in pairs) >= 4.5


# --- words against patches -------------------------------------------------------------------------------------------------------


def test_a_word_shows_its_map_on_hover_and_by_arrow_keys(chromium, files):
    matrix = words_and_patches().matrix[0, :, 1:].reshape(3, 2, 3).numpy()
    maps = [matrix.sum(0), *matrix]
    limits = [np.quantile(np.abs(each), 0.995) for each in maps]
    with opened(chromium, files["grounding"]) as tab:
        chips = tab.locator(".choices .word")
        assert chips.all_text_contents() == ["all of them", "word0", "word1", "word2"]
        same_colours(cells(tab), expected(maps[0], limits[0]))
        assert readout(tab) == "shown: all of them"
        for row in (2, 1, 3):
            chips.nth(row).hover()
            same_colours(cells(tab), expected(maps[row], limits[row]))
            assert readout(tab) == f"shown: word{row - 1}"
        chips.first.focus()
        for row, key in ((1, "ArrowRight"), (2, "ArrowDown"), (3, "End"), (2, "ArrowLeft"), (0, "Home")):
            tab.keyboard.press(key)
            same_colours(cells(tab), expected(maps[row], limits[row]))
            assert tab.locator(".choices [aria-selected=true]").all_text_contents() == [("all of them", "word0", "word1", "word2")[row]]


def test_a_patch_shades_its_words_on_hover_and_by_arrow_keys(chromium, files):
    matrix = words_and_patches().matrix[0, :, 1:].reshape(3, 2, 3).numpy()
    with opened(chromium, files["grounding"]) as tab:

        def shaded(row, column):
            here = matrix[:, row, column]
            wanted = [[255 * c for c in colormaps["RdBu_r"](0.5)[:3]], *expected([here], np.abs(here).max())[0, :, :3]]
            assert np.abs(np.asarray(grounds(tab, ".choices .word")) - wanted).max() <= 1.5

        plain = grounds(tab, ".choices .word")
        assert all(ground == plain[0] for ground in plain)
        for row, column in ((1, 2), (0, 0), (0, 1)):
            point(tab, row, column, (2, 3))
            shaded(row, column)
            total = matrix[:, row, column].sum()
            assert readout(tab) == f"all of them: patch, row {row}, column {column}: {said(float(total))}"
        rest(tab)
        assert grounds(tab, ".choices .word") == plain
        tab.locator("canvas").focus()
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowRight")
        shaded(1, 1)


def test_the_slider_of_a_grounding_keeps_the_word(chromium, files):
    matrix = words_and_patches().matrix[0, :, 1:].reshape(3, 2, 3).numpy()
    with opened(chromium, files["grounding"]) as tab:
        tab.locator(".choices .word").nth(2).hover()
        tab.get_by_label("attention").focus()
        tab.keyboard.press("ArrowRight")
        assert tab.locator(".panel-name").text_content() == "layer.0.cross (2 of 2)"
        same_colours(cells(tab), expected(matrix[1], np.quantile(np.abs(matrix[1]), 0.995)))


# --- keyboard, light, phone ------------------------------------------------------------------------------------------------------


def tab_order(tab, most=60):
    """What the Tab key reaches, in order."""
    order = []
    tab.evaluate("document.activeElement.blur()")
    for _ in range(most):
        tab.keyboard.press("Tab")
        found = tab.evaluate(
            """() => { const e = document.activeElement; if (e === document.body) return null;
            const box = e.getBoundingClientRect(), style = getComputedStyle(e);
            return [e.tagName.toLowerCase(), e.className, e.id, style.outlineStyle, box.width * box.height > 0]; }"""
        )
        if found is None:
            break
        order.append(found)
    return order


def test_the_tab_key_reaches_every_control_once_in_order_and_shows_where_it_is(chromium, files):
    with opened(chromium, files["grounding"]) as tab:
        order = tab_order(tab)
        names = [name or id_ or tag for tag, name, id_, _, _ in order]
        assert names == [
            "skip", "theme", "panel", "input", "opacity", "colour", "word", "canvas", "whole", "scroll", "pre", "summary",
        ]  # fmt: skip
        assert all(outline not in ("none", "") and seen for _, _, _, outline, seen in order)


def test_the_skip_link_goes_to_the_answer(chromium, files):
    with opened(chromium, files["every"]) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "Skip to the first answer"
        assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        tab.keyboard.press("Enter")
        assert tab.evaluate("location.hash") == "#main"
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.closest('main') !== null")


def luminance(colour):
    """Relative luminance by WCAG 2."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


CONTRASTS = """(names) => names.flatMap((name) => [...document.querySelectorAll(name)].filter((e) => e.offsetParent).slice(0, 6).map((e) => {
  let ground = e; while (ground && /rgba\\(0, 0, 0, 0\\)|transparent/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
  return [name, getComputedStyle(e).color, getComputedStyle(ground || document.documentElement).backgroundColor]; }))"""
TEXTS = [
    "h1", "h2", "h3", ".lead", ".note", ".caption", "figcaption", "a:not(.skip)", ".brand span", "td", "th", "dt", "dd", "code", "summary", "button",
    "label", "legend", ".readout", ".scale", ".legend li", "footer p", "select", "output",
]  # fmt: skip


def colours(tab):
    return {name: (rgb(ink), rgb(ground)) for name, ink, ground in tab.evaluate(CONTRASTS, TEXTS)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_in_dark(chromium, files, scheme):
    with opened(chromium, files["every"], color_scheme=scheme) as tab:
        found = colours(tab)
        assert set(found) >= {"h1", ".lead", ".note", ".caption", "figcaption", "a:not(.skip)", "td", "dt", "code", "label", ".legend li"}
        poor = {name: contrast(*pair) for name, pair in found.items() if contrast(*pair) < 4.5}
        assert poor == {}
        ground = rgb(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (luminance(ground) > 0.5) == (scheme == "light")
        svg = tab.locator(".budget svg text").first.evaluate("(e) => getComputedStyle(e).fill")
        bars = tab.locator(".budget svg .difference").first.evaluate("(e) => getComputedStyle(e).fill")
        assert contrast(rgb(svg), rgb(bars)) >= 4.5
        assert contrast(rgb(svg), ground) >= 4.5


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_the_button_turns_light_into_dark_and_back(chromium, files, scheme, other):
    with opened(chromium, files["relevance"], color_scheme=scheme) as tab:
        before = colours(tab)
        tab.locator("#theme").focus()
        tab.keyboard.press("Enter")
        turned = colours(tab)
        assert all(before[name] != turned[name] for name in ("h1", ".lead", "td", "button"))
        assert {name: contrast(*pair) for name, pair in turned.items() if contrast(*pair) < 4.5} == {}
        tab.emulate_media(color_scheme=other)
        assert colours(tab) == turned  # as the machine's own other setting
        tab.keyboard.press("Space")
        assert colours(tab) == before


@pytest.mark.parametrize("name", ["every", "hostile", "long names", "several", "pixels"])
def test_at_phone_width_nothing_sticks_out(chromium, files, name):
    with opened(chromium, files[name], viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as tab:
        wide = tab.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert wide == [360, 360, 360]
        out = tab.evaluate(
            """() => [...document.querySelectorAll("h1, h2, p, .controls, .controls label, .stage, .words, .choices, .budget svg, dd, .pictures img")]
            .filter((e) => e.offsetParent !== null && e.getBoundingClientRect().right > 361).map((e) => e.outerHTML.slice(0, 80))"""
        )
        assert out == []
        assert tab.evaluate("Math.min(...[...document.querySelectorAll('p.lead')].map((e) => parseFloat(getComputedStyle(e).fontSize)))") >= 14


def test_without_javascript_the_content_is_still_there(chromium, files):
    with opened(chromium, files["every"], java_script_enabled=False) as tab:
        text = tab.locator("body").inner_text()
        for words in ("What is the logit of newt 0 based on", "an attribution error of", "How to reproduce", "zeroline explain 'a b.png'"):
            assert words in text
        assert "Without JavaScript the map cannot be looked into; the figure below shows it." in text
        assert tab.locator("figure.whole img").first.is_visible()
        assert tab.locator("table").first.is_visible()
        assert tab.locator(".budget svg").first.is_visible()
        assert not tab.locator(".controls").first.is_visible()
        assert not tab.locator("#theme").is_visible()
        assert not tab.locator("canvas").first.is_visible()


def test_the_record_as_json_opens_by_the_keyboard(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        assert not tab.locator("details pre").is_visible()
        tab.locator("summary").focus()
        tab.keyboard.press("Enter")
        assert tab.locator("details pre").is_visible()
        assert '"kind": "relevance"' in tab.locator("details pre").inner_text()


# --- who does not see ------------------------------------------------------------------------------------------------------------


def test_everything_has_a_name_for_who_does_not_see_it(chromium, files):
    with opened(chromium, files["every"]) as tab:
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))
        assert tab.evaluate("document.documentElement.lang") == "en"
        assert tab.evaluate("document.title") != ""
        unlabelled = tab.evaluate(
            "[...document.querySelectorAll('input, select, textarea')].filter((e) => !e.labels.length && !e.ariaLabel).map((e) => e.outerHTML)"
        )
        assert unlabelled == []
        assert tab.evaluate("[...document.querySelectorAll('img')].filter((e) => !e.hasAttribute('alt')).length") == 0
        assert tab.evaluate("[...document.querySelectorAll('article')].map((e) => e.querySelectorAll('h1').length)") == [1] * len(every())
        nameless = tab.evaluate(
            """[...document.querySelectorAll('[role=listbox], [role=img], [role=region], canvas, nav, [tabindex="0"]:not(.word):not(pre):not(.whole)')]
            .filter((e) => !e.getAttribute('aria-label')).map((e) => e.outerHTML.slice(0, 90))"""
        )
        assert nameless == []
        assert tab.evaluate("[...document.querySelectorAll('[role=option]')].every((e) => e.parentElement.getAttribute('role') === 'listbox')")
        assert tab.evaluate("[...document.querySelectorAll('fieldset')].every((e) => e.querySelector('legend'))")
        assert tab.evaluate("[...document.querySelectorAll('th')].every((e) => e.scope === 'row' || e.scope === 'col')")
        assert tab.evaluate("[...document.querySelectorAll('.readout')].every((e) => e.getAttribute('aria-live') === 'polite')")


def test_every_listbox_is_one_stop_of_the_tab_key_and_has_one_choice(chromium, files):
    with opened(chromium, files["every"]) as tab:
        stops = tab.evaluate(
            "[...document.querySelectorAll('[role=listbox]')].map((e) => [e.querySelectorAll('[tabindex=\"0\"]').length,"
            " e.querySelectorAll('[aria-selected=true]').length])"
        )
        assert len(stops) >= 3
        assert all(stop == [1, 1] for stop in stops)


def test_on_paper_there_are_no_buttons(chromium, files):
    with opened(chromium, files["relevance"]) as tab:
        tab.emulate_media(media="print")
        assert not tab.locator(".controls").first.is_visible()
        assert not tab.locator("#theme").is_visible()
        assert tab.locator("canvas").first.is_visible()
