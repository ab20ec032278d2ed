"""The page itself, laid out in Gradio: pick or upload a picture, ask, look into the answer, take it along.

An answer is the page of a report in a frame that may run its own script and nothing else (no access to this page, no address to ask). Whatever goes
wrong becomes one sentence on the page; text from people is escaped here.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from zeroline import zoo
from zeroline.errors import InputError, ZerolineError
from zeroline.report.page.encode import address
from zeroline.rewriting import Rewriting
from zeroline.web.answers import ASKABLE, BASELINES, BUDGETS, Answer, Answers, Asked

TITLE = "zeroline: what a model bases a prediction on, measured from a stated baseline"
LEAD = "An explanation answers a question: *compared with what?* Pick a picture, say what counts as nothing, and look at the error."
SAMPLES = {f"{sample.caption} ({sample.name})": sample for sample in zoo.samples("digits-vit")}
ANSWER = 3  # outputs of an answer
KEPT = 3600.0  # seconds that an answer can be downloaded
STYLE = """
.gradio-container { --block-info-text-color: #4b5563; } .dark .gradio-container, .gradio-container.dark { --block-info-text-color: #d1d5db; }
footer { display: none !important; }
.answer iframe { width: 100%; height: 85vh; border: 1px solid var(--border-color-primary); background: white; }
.said { font-weight: 600; } .went-wrong { color: #b2182b; font-weight: 600; } .dark .went-wrong { color: #ff9c8f; }
.picture img { max-height: 14rem; image-rendering: pixelated; min-width: 8rem; }
"""


@dataclass(frozen=True)
class Parts:
    """What every tab reads, and how its button is wired."""

    gr: Any
    answers: Answers
    folder: Path
    sample: Any
    upload: Any
    model: Any
    target: Any
    text: Any

    def asked(self, sample: str, upload: bytes | None, model: str, **words: str) -> Asked:
        """The question of a picture, a model and the words of the page."""
        return Asked(_picture(self.answers, sample, upload)[0], model, **words)

    def shown(self, answer: Answer) -> tuple[Any, ...]:
        """The answer as the outputs hold it."""
        return _shown(answer, self.folder)


def page_of(answers: Answers, folder: Path) -> Any:
    """The ``gradio.Blocks`` of the page; downloads are written below ``folder``."""
    import gradio as gr

    models = answers.offered.names
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, int(KEPT))) as blocks:
        gr.Markdown(f"# {TITLE}\n{LEAD}")
        with gr.Row():
            with gr.Column(scale=2):
                sample = gr.Dropdown(list(SAMPLES), value=next(iter(SAMPLES)), label="sample")
                upload = gr.File(label="or a picture of yours", type="binary", file_count="single", height=130)
            shown = gr.HTML(elem_classes="picture", label="picture")
        with gr.Row():
            model = gr.Dropdown(list(models), value=models[0], label="model")
            target = gr.Textbox("top", label="target", info="top, a label, a number, or a contrast: seven - one", max_lines=1)
            text = gr.Textbox("", label="text", info="for models that read one", max_lines=1)
        preview = {"fn": _guarded(partial(_preview, answers), 1), "inputs": [sample, upload], "outputs": shown, "api_visibility": "private"}
        sample.change(**preview)
        upload.change(**preview)
        blocks.load(**preview)
        parts = Parts(gr, answers, folder, sample, upload, model, target, text)
        for name, tab in (("Explain", _explain), ("Compare two", _compare), ("Ground words", _ground), ("Rewrite", _rewrite)):
            with gr.Tab(name):
                tab(parts)
    return blocks


def _explain(parts: Parts) -> None:
    question = _question(parts)

    def ask(sample: str, upload: bytes | None, model: str, target: str, text: str, method: str, baseline: str, site: str) -> tuple[Any, ...]:
        asked = parts.asked(sample, upload, model, target=target, text=text, method=method, baseline=baseline, site=site)
        return parts.shown(parts.answers.explained(asked))

    _ask(parts, "Explain", ask, [parts.target, parts.text, *question], partial(_outputs, parts.gr))


def _compare(parts: Parts) -> None:
    gr = parts.gr
    with gr.Row():
        with gr.Column():
            first = _question(parts)
        with gr.Column():
            second = _question(parts, baseline="blur(8)")

    def ask(sample: str, upload: bytes | None, model: str, target: str, text: str, *words: str) -> tuple[Any, ...]:
        pairs = (words[:3], words[3:])
        a, b = (
            parts.asked(sample, upload, model, target=target, text=text, method=method, baseline=baseline, site=site)
            for method, baseline, site in pairs
        )
        left, right = parts.answers.compared(a, b)
        return (*parts.shown(left), *parts.shown(right))

    def side_by_side() -> list[Any]:
        with gr.Row():
            with gr.Column():
                left = _outputs(gr)
            with gr.Column():
                return [*left, *_outputs(gr)]

    _ask(parts, "Compare", ask, [parts.target, parts.text, *first, *second], side_by_side)


def _ground(parts: Parts) -> None:
    parts.gr.Markdown("Which words stand on which part of the picture: for a model of image and text, such as `zoo:digits-vqa`.")

    def ask(sample: str, upload: bytes | None, model: str, target: str, text: str) -> tuple[Any, ...]:
        return parts.shown(parts.answers.grounded(parts.asked(sample, upload, model, target=target, text=text)))

    _ask(parts, "Ground", ask, [parts.target, parts.text], partial(_outputs, parts.gr))


def _rewrite(parts: Parts) -> None:
    gr = parts.gr
    gr.Markdown("How little changes the answer: the smallest change found within a budget, judged on the picture as it is saved.")
    with gr.Row():
        to = gr.Textbox("second", label="to", info="a label, a number, second or any", max_lines=1)
        budget = gr.Dropdown(list(BUDGETS), value="4/255", label="budget", info="most change of any channel of any pixel")

    def ask(sample: str, upload: bytes | None, model: str, to: str, budget: str) -> tuple[Any, ...]:
        return parts.shown(parts.answers.rewritten(parts.asked(sample, upload, model), to, budget))

    _ask(parts, "Rewrite", ask, [to, budget], partial(_outputs, gr))


def _ask(parts: Parts, button: str, function: Callable[..., Any], inputs: Sequence[Any], outputs: Callable[[], list[Any]]) -> None:
    """A button above its outputs; one question at a time is worked on, the others wait in the queue."""
    pressed = parts.gr.Button(button, variant="primary")
    below = outputs()
    pressed.click(
        _guarded(function, len(below)),
        [parts.sample, parts.upload, parts.model, *inputs],
        below,
        api_visibility="private",
        concurrency_id="answers",
        concurrency_limit=1,
    )


def _question(parts: Parts, baseline: str = "black") -> tuple[Any, Any, Any]:
    """Method, baseline and site; the sites are those of the model that is chosen."""
    gr = parts.gr
    with gr.Row():
        method = gr.Dropdown(list(ASKABLE), value="integrated_gradients", label="method")
        start = gr.Dropdown(list(BASELINES), value=baseline, label="baseline", info="what counts as nothing")
        site = gr.Dropdown(_sites(parts.answers, parts.answers.offered.names[0]), value="", label="site", info="where the features are")
    parts.model.change(lambda name: gr.Dropdown(_sites(parts.answers, name), value=""), parts.model, site, api_visibility="private")
    return method, start, site


def _sites(answers: Answers, model: str) -> list[tuple[str, str]]:
    """The input, then the blocks, with what each is called on the page."""
    try:
        found = answers.offered.sites(model)
    except ZerolineError:
        found = ("",)  # the question itself will say what is wrong
    return [("the input", ""), *((one, one) for one in found[1:])]


def _outputs(gr: Any) -> list[Any]:
    """The sentence, the frame, and what can be taken along."""
    return [
        gr.HTML(elem_classes="status"),
        gr.HTML(elem_classes="answer"),
        gr.File(label="take along", file_count="multiple", interactive=False, visible=False),
    ]


def _picture(answers: Answers, sample: str, upload: bytes | None) -> tuple[Any, str]:
    """The upload where there is one, else the sample."""
    if upload is not None:
        return answers.limits.picture(bytes(upload))
    if not isinstance(sample, str) or sample not in SAMPLES:
        raise InputError(f"no sample {sample!r}")
    return SAMPLES[sample].image.convert("RGB"), ""


def _preview(answers: Answers, sample: str, upload: bytes | None) -> str:
    picture, note = _picture(answers, sample, upload)
    content = io.BytesIO()
    picture.save(content, "PNG")
    alt = "the picture that was uploaded" if upload is not None else f"the sample {sample}"
    return f'<img src="{address(content.getvalue(), "png")}" alt="{escape(alt)}"><p>{escape(note)}</p>'


def _shown(answer: Answer, folder: Path) -> tuple[Any, ...]:
    """What the three outputs hold: sentence, frame, report and record to take along."""
    import gradio as gr

    html = answer.html()
    said = f'<p class="said" role="status">{escape(answer.said)}</p>' + "".join(f"<p>Note: {escape(note)}</p>" for note in answer.notes)
    frame = f'<iframe sandbox="allow-scripts" title="the answer, to look into" srcdoc="{escape(html)}"></iframe>'
    _forget(folder)
    own = Path(tempfile.mkdtemp(dir=folder))
    (own / "report.html").write_text(html, encoding="utf-8")
    record, seen = answer.records[0]
    if isinstance(record, Rewriting):
        record.save(own)
        kept = own / "rewriting.safetensors"
    else:
        kept = own / "record.safetensors"
        record.save(kept)
        seen.attach(kept)
    return said, frame, gr.File([str(own / "report.html"), str(kept)], visible=True)


def _forget(folder: Path) -> None:
    """Answers of more than an hour ago are gone."""
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > KEPT:
            shutil.rmtree(path, ignore_errors=True)


def _guarded(function: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """What goes wrong is one sentence on the page; what nobody foresaw is also in the server's log."""
    import gradio as gr

    def said(sentence: str) -> Any:
        wrong = f'<p class="went-wrong" role="alert">{escape(" ".join(sentence.split()))}</p>'
        if outputs == 1:
            return wrong
        none: Sequence[Any] = ("", gr.File(visible=False))
        return (wrong, *none, *(("", *none) if outputs == 2 * ANSWER else ()))

    def guarded(*given: Any) -> Any:
        try:
            return function(*given)
        except ZerolineError as problem:
            return said(str(problem))
        except MemoryError:
            return said("there is not enough memory for this question here; ask with a smaller picture or model")
        except Exception as problem:
            traceback.print_exc(file=sys.stderr)
            return said(f"this went wrong here ({type(problem).__name__}); the server's log has it")

    return guarded
