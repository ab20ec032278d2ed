"""The pictures of docs/start.md and docs/concepts.md: ``python docs/figures/draw.py [NAME ...]`` writes docs/images/NAME.png.

Every curve, map and number in them is computed here, by digits-vit on samples of the zoo.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import zeroline as zl
from zeroline import zoo
from zeroline.model.inputs import Inputs
from zeroline.model.normalisation import of as normalisation_of
from zeroline.model.reference import reference_inputs, settle
from zeroline.report.figure import save
from zeroline.report.panels import over, photograph

IMAGES = Path(__file__).parents[1] / "images"
BLUE, RED, GREY = "#3b6ea8", "#b5473c", "#9a9a9a"
MODEL = zoo.load("digits-vit")
DIGITS = [MODEL.config.id2label[i] for i in range(10)]
NINE, PAIR, TWO = (zoo.samples("digits-vit")[i] for i in (3, 12, 5))


def pictured(pixels):
    """[1, 3, H, W], as the model reads it, back to a picture."""
    known = normalisation_of(MODEL)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (known.mean, known.std))
    return (pixels[0] * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


@torch.no_grad()
def seen(pixels):
    """The class that the model sees, and its probability."""
    chances = MODEL(pixel_values=pixels).logits.softmax(-1)[0]
    return f"{DIGITS[int(chances.argmax())]} ({float(chances.max()):.2f})"


def settled(sample, baseline):
    """x0 of a baseline: what the model is shown in the place of x."""
    return reference_inputs(MODEL, Inputs.of(MODEL, sample.inputs), settle(MODEL, sample.inputs, baseline, None)).named["pixel_values"]


def explained(sample, baseline, **options):
    return zl.integrated_gradients(MODEL, sample.inputs, target=zl.top(), baseline=baseline, **options)


def rows_of_baselines(sample, baselines, head):
    """Baseline pictures above, what is measured from them below."""
    drawn = Figure(figsize=(2.6 * (len(baselines) + 1), 6.2), dpi=90, facecolor="white", layout="constrained")
    axes = drawn.subplots(2, len(baselines) + 1)
    drawn.suptitle(head, fontsize=12, fontweight="bold")
    picture = pictured(sample.inputs["pixel_values"])
    photograph(axes[0, 0], picture, "the image, x")
    axes[0, 0].set_xlabel(f"the model sees {seen(sample.inputs['pixel_values'])}", fontsize=9)
    axes[1, 0].axis("off")
    axes[1, 0].text(
        0.5, 0.5, "red: raises the score,\nblue: lowers it,\nfrom what it is\non the baseline above", ha="center", va="center", fontsize=10
    )
    for column, (name, baseline) in enumerate(baselines.items(), 1):
        one, x0 = explained(sample, baseline), settled(sample, baseline)
        photograph(axes[0, column], pictured(x0), f"baseline: {name}")
        axes[0, column].set_xlabel(f"the model sees {seen(x0)}", fontsize=9)
        figures = f"{float(one.output):.2f} - ({float(one.baseline_output):.2f}) = {float(one.difference):.2f}\nerror {float(one.error):+.3f}"
        over(axes[1, column], picture, one.per_pixel()[0].double().numpy(), "", f"{one.target[0]}, from {name}:\n{figures}")
        axes[1, column].xaxis.label.set_fontsize(9)
    for axis in axes.flat:
        axis.title.set_fontsize(10)
    return drawn


def start_baselines():
    """docs/start.md: one image, one answer, two baselines."""
    return rows_of_baselines(
        PAIR, {"black": zl.baseline.black(), "neutral": zl.baseline.neutral(zl.baseline.blur(8))}, "One image, one answer, two questions"
    )


def concept_baseline():
    other = zoo.samples("digits-vit")[9]
    asked = {
        "black": zl.baseline.black(),
        "blur(8)": zl.baseline.blur(8),
        "neutral": zl.baseline.neutral(zl.baseline.blur(8)),
        "another image": zl.baseline.of(other.inputs),
    }
    return rows_of_baselines(TWO, asked, "What counts as nothing decides what is explained")


@torch.no_grad()
def concept_target():
    logits = MODEL(**PAIR.inputs).logits[0]
    one, nine = DIGITS.index("one"), DIGITS.index("nine")
    drawn = Figure(figsize=(9, 3.4), dpi=90, facecolor="white", layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=[1, 2.4])
    photograph(left, pictured(PAIR.inputs["pixel_values"]), "x")
    colours = [RED if i == one else BLUE if i == nine else GREY for i in range(10)]
    right.bar(DIGITS, logits.tolist(), color=colours)
    right.axhline(0, color="black", linewidth=0.6)
    right.set_ylabel("logit")
    top, low = float(logits[one]), float(logits[nine])
    right.annotate(f"zl.top(): {top:.2f}", (one, top), (one + 0.6, top), fontsize=9, color=RED, va="center")
    right.annotate("", (8.2, top), (8.2, low), arrowprops={"arrowstyle": "<->", "color": "black"})
    right.text(8.1, (top + low) / 2 + 0.4, f'zl.contrast("one", "nine"): {top - low:.2f}', fontsize=9, ha="right")
    right.set_title("A target is one number that is read off the model's output", fontsize=11, fontweight="bold")
    return drawn


def concept_site():
    drawn = Figure(figsize=(11, 3.3), dpi=90, facecolor="white", layout="constrained")
    axis = drawn.subplots()
    axis.axis("off")
    axis.set_xlim(0, 11.2)
    axis.set_ylim(-0.35, 3)
    axis.set_title("A site is a tensor of the forward pass; a cut is one that every path passes", fontsize=11, fontweight="bold")

    def box(x, y, text, wide=1.3, colour="#eef2f7"):
        axis.add_patch(FancyBboxPatch((x, y), wide, 0.6, boxstyle="round,pad=0.05", facecolor=colour, edgecolor="#555555"))
        axis.text(x + wide / 2, y + 0.3, text, ha="center", va="center", fontsize=9)

    def arrow(a, b, **style):
        axis.add_patch(FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=11, color="#555555", **style))

    def site(x, y, text, cut, dy):
        axis.plot([x], [y], "o", color=BLUE if cut else RED, markersize=9, zorder=5)
        axis.text(x, y + dy, text, ha="center" if cut else "left", fontsize=8.5, color=BLUE if cut else RED)

    box(0.1, 0.7, "pixels", 0.9)
    box(2.1, 0.7, "patches, block 0")
    box(5.2, 1.9, "attention of block 1", 1.9)
    axis.text(7.95, 1.0, "+", ha="center", va="center", fontsize=15)
    box(9.9, 0.7, "head", 0.9)
    arrow((1.05, 1.0), (2.05, 1.0))
    arrow((3.45, 1.0), (7.8, 1.0))
    arrow((4.5, 1.0), (5.15, 2.15), connectionstyle="arc3,rad=-0.3")
    arrow((7.15, 2.15), (7.95, 1.2), connectionstyle="arc3,rad=-0.3")
    arrow((8.15, 1.0), (9.85, 1.0))
    axis.text(6.1, 0.72, "residual: a way around the attention", ha="center", fontsize=8.5, color="#555555")
    site(1.55, 1.0, "the input\n1 x 3 x 64 x 64", True, -0.85)
    site(4.0, 1.0, '"vit.layers.0"\n1 x 65 x 64', True, -0.85)
    site(7.68, 1.95, '"vit.layers.1.attention"\nno cut: the residual passes it by', False, 0.55)
    site(9.0, 1.0, '"vit.layers.1"\n1 x 65 x 64', True, -0.85)
    return drawn


def concept_path():
    x, x0 = NINE.inputs["pixel_values"], settled(NINE, zl.baseline.black())
    shares = torch.linspace(0, 1, 201)
    points = (x0 + shares.view(-1, 1, 1, 1) * (x - x0)).requires_grad_()
    f = MODEL(pixel_values=points).logits[:, DIGITS.index("nine")]
    slope = (torch.autograd.grad(f.sum(), points)[0] * (x - x0)).flatten(1).sum(1)
    one = explained(NINE, zl.baseline.black())
    drawn = Figure(figsize=(11, 4.6), dpi=90, facecolor="white", layout="constrained")
    grid = drawn.add_gridspec(2, 5, height_ratios=[1, 2])
    for column, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        photograph(drawn.add_subplot(grid[0, column]), pictured(x0 + share * (x - x0)), f"t = {share:g}")
    left, right = drawn.add_subplot(grid[1, :2]), drawn.add_subplot(grid[1, 2:])
    left.plot(shares, f.detach(), color=BLUE)
    left.set_title(f"f along the path: from {float(one.baseline_output):.2f} to {float(one.output):.2f}", fontsize=10)
    right.plot(shares, slope, color=RED)
    right.fill_between(shares, slope, color=RED, alpha=0.2)
    every = 200 // 4
    right.plot(shares[::every], slope[::every], "o", color="black", markersize=5)
    right.set_title(f"its slope: the area is the difference, {float(one.difference):.2f}; dots: the first five nodes", fontsize=10)
    for axis in (left, right):
        axis.set_xlabel("t: share of the way from the baseline to x")
        axis.axhline(0, color="black", linewidth=0.6)
    return drawn


def concept_error():
    asked = {
        "gradient x input": zl.gradient_x_input(MODEL, NINE.inputs, target=zl.top(), baseline=zl.baseline.black()),
        "Taylor, order 2": zl.taylor(MODEL, NINE.inputs, target=zl.top(), baseline=zl.baseline.black()),
        "IG, 4 midpoints": explained(NINE, zl.baseline.black(), path="midpoint", n_steps=4),
        "IG, adaptive": explained(NINE, zl.baseline.black()),
    }
    difference = float(next(iter(asked.values())).difference)
    drawn = Figure(figsize=(9, 2.9), dpi=90, facecolor="white", layout="constrained")
    axis = drawn.subplots()
    for row, one in enumerate(asked.values()):
        total = float(one.total)
        axis.barh(row, total, color=GREY, height=0.55)
        axis.plot([total, difference], [row, row], color=RED, linewidth=2.5)
        axis.text(max(total, difference) + 0.3, row, f"error {total - difference:+.2f}", va="center", fontsize=9, color=RED)
    axis.axvline(difference, color="black", linewidth=1, linestyle="--")
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_yticks(range(len(asked)), list(asked))
    axis.set_xlim(right=difference + 6)
    axis.set_xlabel(f"sum of the values; dashed: f(x) - f(baseline) = {difference:.2f}")
    axis.set_title("The attribution error is what the values leave unaccounted for", fontsize=11, fontweight="bold")
    return drawn


PICTURES = {
    "start-baselines": start_baselines,
    "concept-target": concept_target,
    "concept-site": concept_site,
    "concept-baseline": concept_baseline,
    "concept-path": concept_path,
    "concept-error": concept_error,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PICTURES:
        save(PICTURES[name](), IMAGES / f"{name}.png")
        print(f"docs/images/{name}.png")
