"""The study behind docs/attribution-error.md: which methods, layers and baselines account for what a model's score changes by.

    python benchmarks/attribution_error.py > docs/attribution-error.md

Prints the page and writes its figures to docs/images. Three models: digits-vit on photo-digits whose objects are known, EfficientNet-Lite0
(ImageNet weights) on photographs, MiniLM on sentences. Nothing here is a timing; one thread, so that the numbers are those of any machine
up to rounding. Takes about half an hour on one core (``--images 20`` for a look).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import zeroline as zl
from zeroline.errors import NotNeutralError
from zeroline.maths.evidence import chance, concentration, inside, pointing
from zeroline.maths.grids import as_map
from zeroline.measure.layers import lie_of
from zeroline.model.inputs import Inputs
from zeroline.model.reference import settle

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
SEED = 20261124  # used nowhere else
STEPS = 16  # points of deletion and insertion curves
B = zl.baseline
Maker = Callable[[], zl.Attribution]


@dataclass
class Row:
    """One way to explain, over all inputs: figures per input, [n]."""

    name: str
    site: str
    baseline: str
    error: Tensor
    local: Tensor | None
    evaluations: Tensor
    budget: dict[str, Tensor]
    difference: Tensor
    stopped: tuple[str, ...] = ()
    figures: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, found: Sequence[zl.Attribution], **figures: Tensor) -> Row:
        """From the records of all inputs (one of a batch, or one of each)."""
        size = torch.cat([torch.where(one.is_defined, one.difference.abs(), torch.nan) for one in found])  # no share of rounding
        local = [one.local_error for one in found]
        return cls(
            name,
            found[0].site,
            found[0].baseline,
            torch.cat([one.error.abs() for one in found]) / size,
            None if local[0] is None else torch.cat(local) / size,
            torch.cat([one.evaluations for one in found]),
            {part: torch.cat([one.budget[part] for one in found]) / size for part in found[0].budget},
            torch.cat([one.difference for one in found]),
            tuple(why for one in found for why in one.stopped),
            figures,
        )


def middle(figure: Tensor | None) -> float:
    """The median of what is a number."""
    known = figure[~figure.isnan()] if figure is not None else torch.empty(0)
    return float(known.double().median()) if len(known) else float("nan")


def share(value: float) -> str:
    return "-" if value != value else f"{value:.1%}" if value < 10 else f"{value:.0f}x"


def plain(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def main_columns(row: Row) -> list[str]:
    known = row.error[~row.error.isnan()]
    figures = [share(middle(row.error)), share(float(known.max()) if len(known) else float("nan")), share(middle(row.local))]
    return [row.name, f"`{row.site}`", row.baseline, *figures, f"{middle(row.evaluations):.0f}"]


MAIN = ("method", "site", "baseline", "error, median", "worst", "local error, median", "gradients, median")


def budget_table(rows: Sequence[Row]) -> None:
    """Medians of the parts of the error, signed, as shares of |difference|."""
    names = list(dict.fromkeys(name for row in rows for name in row.budget))
    cells = [[row.name, f"`{row.site}`", *(f"{middle(row.budget[n]):+.1%}" if n in row.budget else "" for n in names)] for row in rows]
    table(("method", "site", *names), cells)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation (no ties to speak of)."""
    ranks = [np.argsort(np.argsort(np.asarray(v))) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


# ---------------------------------------------------------------- photo-digits


@dataclass
class Digits:
    """Images with one digit each; what is measured on a map is measured on its sums over the 8 x 8 patches."""

    model: Any
    x: dict[str, Tensor]
    masks: Tensor
    others: Tensor

    @classmethod
    def made(cls, images: int) -> Digits:
        from zeroline.zoo.photo_digits import PhotoDigits
        from zeroline.zoo.train.common import pixels

        test, train = PhotoDigits("test", SEED), PhotoDigits("train", SEED)
        scenes = [test.scene(1) for _ in range(images)]
        masks = torch.from_numpy(np.stack([scene.objects[0].mask for scene in scenes]))
        return cls(zl.zoo.load("digits-vit"), {"pixel_values": pixels(scenes)}, masks, pixels([train.scene(1) for _ in range(100)]))

    def maps(self, found: zl.Attribution) -> Tensor:
        """Sums over patches, [n, 8, 8]; values on the class token are on no patch."""
        lie = lie_of(self.model, Inputs.of(self.model, self.x), found, None, None)
        heat = as_map(found.values.double(), lie.grid, lie.prefix if found.values.ndim == 3 else None)
        side = heat.shape[1] // 8
        return heat.reshape(len(heat), 8, side, 8, side).sum((2, 4))

    def measured(self, name: str, found: zl.Attribution, curves: bool = True) -> Row:
        maps = self.maps(found)
        figures = {
            "pointing": pointing(maps, self.masks),
            "inside": inside(maps, self.masks),
            "concentration": concentration(maps),
            "on patches": maps.sum((1, 2)) / found.difference,
        }
        if curves:
            drawn = zl.deletion_insertion(self.model, self.x, maps, target=zl.top(), baseline=B.black(), steps=STEPS)
            figures |= {"deletion": drawn.area("deletion"), "insertion": drawn.area("insertion")}
        return Row.of(name, [found], **figures)


def digits_methods(data: Digits) -> list[Row]:
    """Every method as it is used, each at its site from its baseline."""
    late, early = "vit.layers.2", "vit.embeddings.patch_embeddings.projection"
    zero = B.zeros()
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("gradient x input", "gradient_x_input", {"baseline": zero}),
        ("gradient x input", "gradient_x_input", {"baseline": B.black()}),
        ("Taylor, order 2", "taylor", {"baseline": B.black()}),
        *(
            (title, name, {"site": site, "baseline": zero})
            for site in (late, early)
            for title, name in (("Grad-CAM", "grad_cam"), ("LayerCAM", "layer_cam"), ("ODAM", "odam"))
        ),
        ("ODAM, smoothed", "odam", {"site": late, "baseline": zero, "smooth": 1.0}),
        ("Difference Map", "difference_map", {"site": late, "baseline": B.black()}),
        ("IG, Captum's default", "integrated_gradients", {"baseline": zero, "path": "gausslegendre", "n_steps": 50}),
        ("revised IG", "integrated_gradients", {"baseline": B.black()}),
        ("revised IG", "integrated_gradients", {"site": "vit.layers.1", "baseline": B.black()}),
        ("revised IG", "integrated_gradients", {"site": late, "baseline": B.black()}),
    ]
    return [data.measured(title, zl.METHODS[name](data.model, data.x, target=zl.top(), **more)) for title, name, more in asked]


def digits_baselines(data: Digits) -> dict[str, Any]:
    """The candidates, recipes followed once for all layers; a neutral one that some images do not reach is left out, and said."""
    asked = {
        "black": B.black(),
        "grey (zeros)": B.zeros(at="input"),
        "mean colour": B.mean(),
        "blur(8)": B.blur(8),
        "noise": B.noise(0),
        "mean of 100 images": B.mean_of(data.others, at="input"),
        "mean features of 100": B.mean_of(data.others),
        "8 of 100 images": B.distribution(data.others, draws=8),
        "neutral from black": B.neutral(B.black()),
        "neutral from blur(8)": B.neutral(B.blur(8)),
    }
    found: dict[str, Any] = {}
    for name, baseline in asked.items():
        try:
            found[name] = settle(data.model, data.x, baseline)
        except NotNeutralError as problem:
            missed = sum(kl > 0.01 for kl in problem.kl)
            print(f"\n`{name}` was not reached for {missed} of {len(problem.kl)} images and is left out: {problem}\n")
    return found


def digits_layers(data: Digits, baselines: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Revised IG at every layer from every baseline."""
    found = {}
    for name, baseline in baselines.items():
        at_layers = zl.layers(data.model, data.x, target=zl.top(), baseline=baseline)
        found[name] = [data.measured(name, one, curves=False) for one in at_layers.members.values()]
    return found


def digits_same_cost(data: Digits, baselines: Mapping[str, Any], nodes: int) -> dict[str, list[Row]]:
    """The trapezoid rule with as many nodes for every baseline: what is left of the local error."""
    asked = {"path": "trapezoid", "n_steps": nodes}
    wanted = {n: b for n, b in baselines.items() if not isinstance(b, B.Distribution)}
    return {
        name: [data.measured(name, zl.integrated_gradients(data.model, data.x, target=zl.top(), site=site, baseline=b, **asked), curves=False)]
        for name, b in wanted.items()
        for site in (None,)
    }


def digits_audit(data: Digits, baselines: Mapping[str, Any]) -> dict[str, tuple[float, float, str]]:
    """Median KL over log K, distance, and the commonest kind of verdict per baseline."""
    found = {}
    for name, baseline in baselines.items():
        audit = zl.audit_baseline(data.model, data.x, zl.top(), baseline)
        words = [audit.verdict(row, b).split(":")[0].split(" (")[0].split(" to ")[0] for row in audit.baselines for b in range(len(audit.output))]
        kinds = sorted(set(words), key=words.count, reverse=True)
        opinion = torch.cat([one.opinion for one in audit.baselines.values()])
        distance = torch.cat([one.distance for one in audit.baselines.values()])
        found[name] = (middle(opinion), middle(distance), f"{kinds[0]} ({words.count(kinds[0]) / len(words):.0%})")
    return found


def digits(images: int) -> dict[str, Any]:
    data = Digits.made(images)
    accurate = float((data.model(**data.x).logits.argmax(1) == _labels(images)).float().mean())
    print(f"\n## digits-vit on {images} photo-digits images (seed {SEED}; accuracy {accurate:.1%})\n")
    print("Target: the logit of the model's top class. Errors are shares of the difference.")
    rows = digits_methods(data)
    print("\n### Methods as they are used")
    table(MAIN, [main_columns(row) for row in rows])
    print("### Error budgets: median of each part, signed")
    budget_table(rows)
    print("### What each way of judging would have said")
    by_chance = middle(chance(torch.ones(images, 8, 8), data.masks))
    print(
        f"\nDeletion and insertion: mean of the curve as a share of the difference, black cells, {STEPS} steps (low deletion and high insertion"
        f" count as good). Pointing: share of images whose largest patch touches the digit. Inside: median share of positive values on patches"
        f" that it touches (by chance {by_chance:.2f})."
    )
    heads = ("method", "site", "baseline", "error, median", "deletion", "insertion", "pointing", "inside", "sum on patches / difference")
    cells = []
    for row in rows:
        hits = float(row.figures["pointing"].nanmean())
        cells.append(
            [
                row.name,
                f"`{row.site}`",
                row.baseline,
                share(middle(row.error)),
                *(plain(middle(row.figures[k])) for k in ("deletion", "insertion")),
                plain(hits),
                *(plain(middle(row.figures[k])) for k in ("inside", "on patches")),
            ]
        )
    table(heads, cells)
    baselines = digits_baselines(data)
    audit = digits_audit(data, baselines)
    by_layer = digits_layers(data, baselines)
    print("### Revised IG from every baseline: at the input")
    heads = ("baseline", "KL / log K", "distance", "verdict", "error, median", "local error, median", "gradients, median", "inside", "pointing")
    cells = []
    for name, at_sites in by_layer.items():
        row, (opinion, distance, verdict) = at_sites[0], audit[name]
        hits = float(row.figures["pointing"].nanmean())
        cells.append(
            [
                name,
                plain(opinion),
                plain(distance),
                verdict,
                share(middle(row.error)),
                share(middle(row.local)),
                f"{middle(row.evaluations):.0f}",
                plain(middle(row.figures["inside"])),
                plain(hits),
            ]
        )
    table(heads, cells)
    sites = [row.site for row in next(iter(by_layer.values()))]
    for title, read in (
        ("worst error over the images", lambda row: share(float(row.error[~row.error.isnan()].max()))),
        ("gradient evaluations, median", lambda row: f"{middle(row.evaluations):.0f}"),
        ("share of the positive patch values inside the digit, median", lambda row: plain(middle(row.figures["inside"]))),
        ("share of the positive patch values in the top 10 % of patches, median", lambda row: plain(middle(row.figures["concentration"]))),
        ("sum on patches over difference (the rest is on the class token), median", lambda row: plain(middle(row.figures["on patches"]))),
    ):
        print(f"### Revised IG at every layer: {title}")
        table(("baseline", *(f"`{site}`" for site in sites)), [[name, *map(read, at_sites)] for name, at_sites in by_layer.items()])
    print("### The same number of evaluations for every baseline (trapezoid rule at the input): local error, error and evidence inside")
    same = {nodes: digits_same_cost(data, baselines, nodes) for nodes in (9, 17)}
    names = list(same[9])
    cells = []
    for name in names:
        both = [share(middle(figure)) for nodes in same for figure in (same[nodes][name][0].local, same[nodes][name][0].error)]
        cells.append([name, *both, plain(middle(same[17][name][0].figures["inside"]))])
    table(("baseline", "local error, 9 nodes", "error, 9", "local error, 17 nodes", "error, 17", "inside, 17"), cells)
    figures(rows, by_layer)
    return {"rows": rows, "by_layer": by_layer, "same": same, "audit": audit}


def _labels(images: int) -> Tensor:
    from zeroline.zoo.photo_digits import PhotoDigits

    test = PhotoDigits("test", SEED)
    return torch.tensor([test.scene(1).objects[0].digit for _ in range(images)])


def figures(rows: Sequence[Row], by_layer: Mapping[str, Sequence[Row]]) -> None:
    """Two pictures: the errors of the methods, and where the evidence lies by layer and baseline."""
    from matplotlib.figure import Figure

    from zeroline.report.figure import save

    drawn = Figure(figsize=(9, 5.2), dpi=120, facecolor="white", layout="constrained")
    axis = drawn.subplots()
    labels = [f"{row.name}\n{row.site.removeprefix('vit.').replace('embeddings.patch_embeddings.', '')}, {row.baseline}" for row in rows]
    errors = [row.error[~row.error.isnan()].clamp(min=1e-6).tolist() for row in rows]
    axis.boxplot(errors, orientation="horizontal", widths=0.6, whis=(5, 95), showfliers=False)
    axis.set_yticks(range(1, len(rows) + 1), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(0.01, color="#777777", linestyle=":", linewidth=1)
    axis.set_xlabel("attribution error as a share of the difference (box: quartiles, whiskers: 5 to 95 % of images; dotted: 1 %)", fontsize=8)
    save(drawn, ROOT / "docs/images/study-errors.png")
    drawn = Figure(figsize=(9, 4.2), dpi=120, facecolor="white", layout="constrained")
    axis = drawn.subplots()
    for (name, at_sites), mark in zip(by_layer.items(), "os^vDPX*<>"):
        axis.plot(range(len(at_sites)), [middle(row.figures["inside"]) for row in at_sites], marker=mark, markersize=5, linewidth=1.2, label=name)
    sites = [row.site for row in next(iter(by_layer.values()))]
    axis.set_xticks(range(len(sites)), sites, fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_ylabel("positive values inside the digit", fontsize=9)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(drawn, ROOT / "docs/images/study-layers.png")


# ------------------------------------------------------------------ photographs

PHOTOGRAPHS = (
    ("astronaut.png", "skimage", "data"),
    ("chelsea.png", "skimage", "data"),
    ("coffee.png", "skimage", "data"),
    ("rocket.jpg", "skimage", "data"),
    ("china.jpg", "sklearn", "datasets/images"),
    ("flower.jpg", "sklearn", "datasets/images"),
)
CELLS = 14


def each(ask: Callable[[Tensor], zl.Attribution], inputs: Sequence[Any]) -> list[zl.Attribution]:
    """A record for every input."""
    return [ask(x) for x in inputs]


def photographs(crops: int) -> dict[str, Any]:
    from oracles.real_models import BLACK, efficientnet, photograph

    model = efficientnet()
    places = [(0.5, 0.5), (0.1, 0.2), (0.9, 0.8)][:crops]
    inputs = [photograph(*which, at=at) for which in PHOTOGRAPHS for at in places]
    print(f"\n## EfficientNet-Lite0 (ImageNet weights) on {len(inputs)} crops of {len(PHOTOGRAPHS)} photographs\n")
    print("Target: the logit of the top class. `bn2` is the last convolutional layer, behind it only a mean and a linear layer.")
    black, zero, last, middle_ = B.black(*BLACK), B.zeros(), "bn2", "blocks.4"

    def measured(title: str, name: str, **more: Any) -> Row:
        found = each(lambda x: zl.METHODS[name](model, x, target=zl.top(), **more), inputs)
        maps = [_cells(as_map(one.values.double())) for one in found]
        drawn = [zl.deletion_insertion(model, x, m, target=zl.top(), baseline=black, steps=STEPS) for x, m in zip(inputs, maps)]
        areas = {which: torch.cat([one.area(which) for one in drawn]) for which in ("deletion", "insertion")}
        return Row.of(title, found, **areas)

    rows = [
        measured("gradient x input", "gradient_x_input", baseline=zero),
        measured("gradient x input", "gradient_x_input", baseline=black),
        measured("Taylor, order 2", "taylor", baseline=black),
        *(
            measured(title, name, site=site, baseline=zero)
            for site in (last, middle_)
            for title, name in (("Grad-CAM", "grad_cam"), ("LayerCAM", "layer_cam"), ("ODAM", "odam"))
        ),
        measured("Difference Map", "difference_map", site=last, baseline=black),
        measured("Difference Map", "difference_map", site=middle_, baseline=black),
        measured("IG, Captum's default", "integrated_gradients", baseline=zero, path="gausslegendre", n_steps=50),
        measured("revised IG", "integrated_gradients", baseline=black),
        measured("revised IG", "integrated_gradients", site=middle_, baseline=black),
        measured("revised IG", "integrated_gradients", site=last, baseline=black),
    ]
    table((*MAIN, "deletion", "insertion"), [[*main_columns(r), *(plain(middle(r.figures[k])) for k in ("deletion", "insertion"))] for r in rows])
    print("### Error budgets: median of each part, signed")
    budget_table(rows)
    print("### Revised IG at every layer, black baseline")
    sites = zl.layers(model, inputs[0], target=zl.top(), baseline=black, method="gradient_x_input").labels
    at_layers = []
    for site in (*sites, last):
        records = each(lambda x, s=site: zl.integrated_gradients(model, x, target=zl.top(), site=s, baseline=black), inputs)
        at_layers.append(Row.of(site, records))
    table(MAIN[1:], [main_columns(row)[1:] for row in at_layers])
    print("### Revised IG at the input, every baseline")
    members = B.mean_of([photograph(*which) for which in PHOTOGRAPHS], at="input")
    neutral = B.neutral(B.blur(16), low=float((0 - BLACK[0][0]) / BLACK[1][0]), high=float((1 - BLACK[0][0]) / BLACK[1][0]))
    candidates = {
        "black": black,
        "grey (zeros)": zero,
        "mean colour": B.mean(),
        "blur(16)": B.blur(16),
        "mean of the photographs": members,
        "neutral from blur(16)": neutral,
    }
    cells = []
    for name, baseline in candidates.items():
        settled = [settle(model, x, baseline) for x in inputs]
        row = Row.of(name, [zl.integrated_gradients(model, x, target=zl.top(), baseline=b) for x, b in zip(inputs, settled)])
        audits = [zl.audit_baseline(model, x, zl.top(), b) for x, b in zip(inputs, settled)]
        opinion = middle(torch.cat([one.opinion for audit in audits for one in audit.baselines.values()]))
        cells.append([name, plain(opinion), *main_columns(row)[3:]])
    table(("baseline", "KL / log K", *MAIN[3:]), cells)
    return {"rows": rows, "layers": at_layers}


def _cells(maps: Tensor) -> Tensor:
    """Sums over 14 x 14 cells of the picture (smaller maps as they are)."""
    side = maps.shape[1] // CELLS
    return maps if side < 1 else maps.reshape(len(maps), CELLS, side, CELLS, side).sum((2, 4))


# -------------------------------------------------------------------- sentences

SENTENCES = (
    ("the kitten sleeps on the warm sofa", "a cat naps"),
    ("stocks fell sharply on monday", "the market crashed"),
    ("she plays the violin in a small orchestra", "a musician performs"),
    ("heavy rain flooded the streets of the old town", "a storm caused damage"),
    ("the chef added too much salt to the soup", "the meal tasted bad"),
    ("our train was delayed for two hours", "the journey took longer than planned"),
    ("the doctor prescribed a stronger medicine", "a patient was treated"),
    ("children built a castle of sand near the water", "kids played at the beach"),
    ("the new phone takes beautiful photographs at night", "a camera works in the dark"),
    ("farmers harvest wheat at the end of the summer", "crops are collected"),
    ("the team scored in the last minute and won", "a close football match"),
    ("scientists found water under the surface of the planet", "a discovery in space"),
    ("he forgot his keys and climbed through the window", "a man was locked out"),
    ("the museum opened an exhibition of modern painting", "art is shown to visitors"),
    ("the old bridge collapsed during the earthquake", "a structure was destroyed"),
    ("my brother learns three languages at school", "a student studies foreign words"),
    ("the company lost millions because of a software error", "a bug was expensive"),
    ("a dog barked at the postman all morning", "an animal made noise"),
    ("the river froze in january and we went skating", "ice in winter"),
    ("the judge sent the thief to prison for five years", "a criminal was punished"),
    ("fresh bread smells wonderful in the morning", "the bakery is pleasant"),
    ("the pilot landed the plane safely in the fog", "an aircraft arrived"),
    ("voters rejected the tax in the referendum", "people decided against a law"),
    ("the library lends books to everyone for free", "reading costs nothing"),
)


def sentences(count: int) -> dict[str, Any]:
    from oracles.real_models import minilm, similarity_to

    model, tokenizer = minilm()
    pairs = [tuple(dict(tokenizer(text, return_tensors="pt")) for text in pair) for pair in SENTENCES[:count]]
    targets = [similarity_to(model, tokens, anchor) for tokens, anchor in pairs]
    words, embedding = B.pad_token(tokenizer), "embedding:input_ids"
    print(f"\n## MiniLM (all-MiniLM-L6-v2) on {len(pairs)} sentences\n")
    print("Target: cosine of the sentence's embedding with that of another sentence. Deletion and insertion replace words by [PAD].")

    def measured(title: str, name: str, curves: bool = True, **more: Any) -> Row:
        found = [zl.METHODS[name](model, tokens, target=target, **more) for (tokens, _), target in zip(pairs, targets)]
        if not curves:
            return Row.of(title, found)
        asked = {"site": embedding, "baseline": words}
        drawn = [
            zl.deletion_insertion(model, tokens, one.per_token(), target=target, steps=one.values.shape[1], **asked)
            for (tokens, _), target, one in zip(pairs, targets, found)
        ]
        return Row.of(title, found, **{which: torch.cat([one.area(which) for one in drawn]) for which in ("deletion", "insertion")})

    zero = B.zeros()
    rows = [
        measured("gradient x input", "gradient_x_input", site=embedding, baseline=zero),
        measured("gradient x input", "gradient_x_input", site=embedding, baseline=words),
        measured("Taylor, order 2", "taylor", site=embedding, baseline=words),
        measured("Grad-CAM", "grad_cam", site="encoder.layer.3", baseline=zero),
        measured("LayerCAM", "layer_cam", site="encoder.layer.3", baseline=zero),
        measured("ODAM", "odam", site="encoder.layer.3", baseline=zero),
        measured("Difference Map", "difference_map", site="encoder.layer.3", baseline=words),
        measured("IG, Captum's default", "integrated_gradients", site=embedding, baseline=zero, path="gausslegendre", n_steps=50),
        measured("revised IG", "integrated_gradients", site=embedding, baseline=words),
        measured("revised IG", "integrated_gradients", site="encoder.layer.3", baseline=words),
    ]
    table((*MAIN, "deletion", "insertion"), [[*main_columns(r), *(plain(middle(r.figures[k])) for k in ("deletion", "insertion"))] for r in rows])
    print("### Error budgets: median of each part, signed")
    budget_table(rows)
    print("### Revised IG at every layer from every baseline: median error, median local error, median gradient evaluations")
    candidates = {
        "[PAD]": words,
        "[MASK]": B.mask_token(tokenizer),
        "[UNK]": B.unknown_token(tokenizer),
        "zero embedding (zeros at the site)": zero,
        "mean of the tokens at the site": B.mean(at="site"),
    }
    sites = (embedding, *(f"encoder.layer.{i}" for i in range(6)))
    cells, by_layer = [], {}
    for name, baseline in candidates.items():
        by_layer[name] = [_or_none(measured, name, "integrated_gradients", curves=False, site=site, baseline=baseline) for site in sites]
        cells.append([name, *map(three_figures, by_layer[name])])
    table(("baseline", *(f"`{site}`" for site in sites)), cells)
    return {"rows": rows, "by_layer": by_layer}


def three_figures(row: Row | None) -> str:
    return "fails" if row is None else f"{share(middle(row.error))}, {share(middle(row.local))}, {middle(row.evaluations):.0f}"


def _or_none(make: Callable[..., Row], *given: Any, **more: Any) -> Row | None:
    try:
        return make(*given, **more)
    except zl.errors.RunError as problem:
        print(f"\n{str(problem).split(';')[0]}\n")
        return None


# ----------------------------------------------------------------------- verdict


def agreement(rows: Sequence[Row], figure: str, sign: float) -> float:
    """Rank correlation over methods: do a small error and a good figure go together?"""
    return spearman([-middle(row.error) for row in rows], [sign * float(row.figures[figure].nanmean()) for row in rows])


def verdict(found: Mapping[str, Any]) -> None:
    """The paper's claims beside what was measured: every number and every yes or no is computed from the rows above."""
    print("## What holds here, and what does not\n")
    rows = []
    for name, part in found.items():
        first_order = [middle(r.error) for r in part["rows"] if r.name not in ("revised IG", "IG, Captum's default")]
        revised = [r for r in part["rows"] if r.name == "revised IG"]
        captum = next(r for r in part["rows"] if r.name == "IG, Captum's default")
        exact = sum(error <= 0.01 for error in first_order)
        claim = "first-order methods (gradient x input, Taylor, the CAM family) do not account for the difference"
        said = f"median errors {share(min(first_order))} to {share(max(first_order))}; {exact} of {len(first_order)} within 1 %"
        rows.append([name, claim, said, "yes" if not exact else "not all: see its table"])
        within = float((captum.error <= 0.01).double().mean())
        said = f"{within:.0%} of the inputs within 1 % at 50 steps (median {share(middle(captum.error))}, worst {share(float(captum.error.max()))})"
        rows.append([name, "IG with a fixed number of steps leaves an error that nobody sees", said, "yes" if within < 0.95 else "hardly"])
        worst = max(float(r.error.max()) for r in revised)
        said = f"worst error over all inputs and layers shown: {share(worst)}; worst local error {share(max(float(r.local.max()) for r in revised))}"
        late = [(r.stopped[i], float(r.difference[i])) for r in revised for i in (r.error > 0.0101).nonzero().flatten().tolist()]
        if late:
            whys = "; ".join(f"{why} at a difference of {difference:.2g}" for why, difference in late)
            said += f"; {len(late)} of {sum(len(r.error) for r in revised)} above 1 %: {whys}"
        rows.append([name, "a revised IG with a stated baseline accounts for it at any layer", said, "yes" if worst <= 0.0101 else "not everywhere"])
        for figure, sign in (("deletion", -1.0), ("insertion", 1.0)):
            r = agreement(part["rows"], figure, sign)
            claim = f"{figure} curves rank methods otherwise than the attribution error"
            rows.append([name, claim, f"rank correlation {r:+.2f}", "yes" if r < 0.5 else "no: they agree here"])
    digits_found = found.get("digits-vit")
    if digits_found:
        rows += digits_verdict(digits_found)
    table(("model", "claim (our reading of the paper)", "measured", "holds"), rows)


def digits_verdict(found: Mapping[str, Any]) -> list[list[str]]:
    """What only images with known objects can tell."""
    by_layer, same = found["by_layer"], found["same"]
    rows = []
    for figure in ("pointing", "inside"):
        r = agreement(found["rows"], figure, 1.0)
        holds = "yes" if r >= 0.5 else "only weakly" if r > 0 else "no"
        rows.append([f"{figure}: methods with a small error find the object", f"rank correlation {r:+.2f}", holds])
    depth = [middle(row.figures["concentration"]) for row in by_layer["black"]]
    known = [v for v in depth if v == v]
    ending = "" if len(known) == len(depth) else "; at the last layer all of it is on the class token"
    said = f"from black, share in the top 10 % of patches by layer: {', '.join(map(plain, depth))}{ending}"
    rows.append(["evidence concentrates with depth", said, "yes" if known == sorted(known) else "no: not on this model"])
    at_input = {name: middle(r[0].figures["inside"]) for name, r in by_layer.items()}
    rows.append(ranked("a neutral baseline puts most evidence inside the object (at the input)", at_input, plain, True))
    rows.append(ranked("the mean of a set puts most evidence inside the object (at the input)", at_input, plain, True, "mean of"))
    local = {name: middle(r[0].local) for name, r in same[17].items()}
    rows.append(ranked("a neutral baseline has the smallest local error at 17 evaluations", local, share, False))
    rows.append(ranked("the mean of a set has the smallest local error at 17 evaluations", local, share, False, "mean of"))
    return [["digits-vit", *row] for row in rows]


def ranked(claim: str, figure: Mapping[str, float], spelled: Callable[[float], str], high: bool, who: str = "neutral") -> list[str]:
    """A claim that a kind of baseline is the best by a figure, and the order that was found."""
    order = sorted(figure, key=figure.__getitem__, reverse=high)
    said = ", ".join(f"{name} {spelled(figure[name])}" for name in order)
    return [claim, said, "yes" if order[0].startswith(who) else f"no: {order[0]} is first"]


HEAD = """# Attribution error: a study

*Do the values of an explanation account for what the score changed by, from which baseline, and what do other ways of judging say?*

This page is printed by `python benchmarks/attribution_error.py`, tables, figures and the yes and no at the end included. It tests claims of Cui &
Fan, "The Neglected Baseline in Model Interpretation" (arXiv 2605.22417), as we read its abstract, on three models that run without a network.
How the figures are defined: [concepts.md](concepts.md); how to ask the same of your own model: [baselines.md](baselines.md).

Caveats: deletion and insertion replace cells by the baseline and so show the model inputs that it never saw; they are here because people use
them. Pointing and inside say where an explanation points, not that it is right. Values on the class token lie on no patch: maps of late layers
show what is left.
"""


PARTS = {"digits-vit": digits, "EfficientNet-Lite0": photographs, "MiniLM": sentences}


def measured_part(name: str, size: int) -> tuple[dict[str, Any], str]:
    """One model's part: what the verdict reads, and the tables as text."""
    from only import make_importable

    make_importable()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what did not converge is in the errors of the tables
    tables = io.StringIO()
    with contextlib.redirect_stdout(tables):
        found = PARTS[name](size)
    print(f"{name}: measured", file=sys.stderr, flush=True)
    return found, tables.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--crops", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=len(SENTENCES))
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--jobs", type=int, default=1, help="models measured at the same time, each in a process and thread of its own")
    arguments = parser.parse_args()
    sizes = {"EfficientNet-Lite0": arguments.crops, "digits-vit": arguments.images, "MiniLM": arguments.sentences}  # the longest first
    wanted = {name: size for name, size in sizes.items() if arguments.only in (None, name)}
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        waiting = {name: pool.submit(measured_part, name, size) for name, size in wanted.items()}
        parts = {name: waiting[name].result() for name in PARTS if name in waiting}
    print(HEAD)
    verdict({name: found for name, (found, _) in parts.items()})
    if "digits-vit" in parts:
        print("![Attribution errors of the methods on digits-vit](images/study-errors.png)\n")
        print("![Evidence inside the digit by layer and baseline](images/study-layers.png)")
    print("".join(text for _, text in parts.values()).rstrip())


if __name__ == "__main__":
    main()
