"""Trains digits-vqa from scratch on questions about photo-digits, two per image, with the frozen digits-detr as its eyes.

As in LXMERT's own pre-training (Tan & Bansal 2019, section 3.1) words are sometimes masked and region features set to zero; here one word of
one question in six, and a rectangle of cells of one image in six, so that a missing word or object is something the model has seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zeroline.zoo import digits_detr, digits_vqa
from zeroline.zoo.digits_detr import GRID
from zeroline.zoo.digits_vqa import MASK, WORDS
from zeroline.zoo.photo_digits import PhotoDigits, Scene, Split
from zeroline.zoo.questions import ANSWERS, KINDS, Question, asked
from zeroline.zoo.train.common import FRESH_SEED, MODELS, POOL, TEST_SEED, TRAIN_SEED, learn, pixels

STEPS, IMAGES, EACH = 4_000, 48, 2
MASKED = 1 / 6


def eyes() -> Any:
    """The trained digits-detr."""
    from safetensors.torch import load_file

    detector = digits_detr.build()
    detector.load_state_dict(load_file(MODELS / "digits-detr" / "model.safetensors"))
    return detector.eval()


def words(questions: list[Question]) -> dict[str, Tensor]:
    """Ids and mask, all of one length: questions differ by a word."""
    return dict(digits_vqa.tokenizer()([q.text for q in questions], return_tensors="pt", padding=True))


def answers(questions: list[Question]) -> Tensor:
    """[n], as numbers."""
    return torch.tensor([ANSWERS.index(q.answer) for q in questions])


def blinded(ids: Tensor, features: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some questions with a word masked, some images with a rectangle of cells at zero (2 to 5 cells a side, as an object has)."""
    ids, features = ids.clone(), features.clone()
    for n in (torch.rand(len(ids), generator=random) < MASKED).nonzero()[:, 0].tolist():
        inner = (ids[n] >= WORDS.index(MASK) + 1).nonzero()[:, 0]
        ids[n, inner[torch.randint(len(inner), (1,), generator=random)]] = WORDS.index(MASK)
    grid = features.view(len(features), GRID, GRID, -1)
    for n in (torch.rand(len(features), generator=random) < MASKED).nonzero()[:, 0].tolist():
        height, width = torch.randint(2, 6, (2,), generator=random).tolist()
        top = int(torch.randint(GRID - height + 1, (1,), generator=random))
        left = int(torch.randint(GRID - width + 1, (1,), generator=random))
        grid[n, top : top + height, left : left + width] = 0
    return ids, grid.flatten(1, 2)


@torch.no_grad()
def accuracy(model: nn.Module, detector: Any, split: Split, seed: int, count: int, objects: int = 2) -> dict[str, float]:
    """Shares of questions answered right: all, and per kind. One question per image, kinds as ``asked`` draws them."""
    data, random = PhotoDigits(split, seed), np.random.default_rng(seed)
    scenes = [data.scene(objects) for _ in range(count)]
    questions = [asked(scene.objects, random) for scene in scenes]
    model.eval()
    given = {**words(questions), **digits_vqa.regions(detector, pixels(scenes))}
    right = model(**given).question_answering_score.argmax(1) == answers(questions)
    kinds = {kind: torch.tensor([q.kind == kind for q in questions]) for kind in KINDS}
    return {"all": float(right.float().mean()), **{kind: float(right[of].float().mean()) for kind, of in kinds.items()}}


def trained() -> Any:
    """The model after all steps."""
    torch.manual_seed(0)
    random, asking = torch.Generator().manual_seed(0), np.random.default_rng(0)
    model, detector = digits_vqa.build(), eyes()
    data = PhotoDigits("train", TRAIN_SEED)
    pool: list[Scene] = [data.scene(1 if i % 3 == 2 else 2) for i in range(POOL)]
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(STEPS):
        scenes = [pool[i] for i in torch.randint(len(pool), (IMAGES,), generator=random)]
        questions = [asked(scene.objects, asking) for scene in scenes for _ in range(EACH)]
        text, seen = words(questions), digits_vqa.regions(detector, pixels(scenes))
        seen = {name: value.repeat_interleave(EACH, 0) for name, value in seen.items()}
        text["input_ids"], seen["visual_feats"] = blinded(text["input_ids"], seen["visual_feats"], random)
        model.train()
        loss = cross_entropy(model(**text, **seen).question_answering_score, answers(questions))
        progress = step / STEPS
        learn(optimiser, model, loss, 1e-3 * min(1.0, (step + 1) / 60) * (1.0 if progress < 0.5 else max(0.02, (1 - progress) / 0.5)))
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, while training {accuracy(model, detector, 'test', TEST_SEED, 400)}", flush=True)
    return model


def scores(model: nn.Module) -> dict[str, float]:
    """What the model card says, on a seed that nothing else uses."""
    found: dict[str, float] = {}
    for objects in (1, 2):
        each = accuracy(model, eyes(), "test", FRESH_SEED + objects, 1500, objects)
        found |= {f"{objects} digit{'s' * (objects > 1)}, {name}": value for name, value in each.items()}
    return found
