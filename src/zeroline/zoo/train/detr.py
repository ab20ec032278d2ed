"""Trains digits-detr from scratch. Two linear digit classifiers, on the backbone's map and on the encoder's output within the true boxes, learn
beside it and are thrown away: without them the class loss stays at chance for long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zeroline.zoo import digits_detr
from zeroline.zoo.digits_detr import GRID, corners
from zeroline.zoo.photo_digits import SIDE, PhotoDigits, Scene, Split
from zeroline.zoo.train.common import FRESH_SEED, POOL, TEST_SEED, TRAIN_SEED, learn, pixels

STEPS = 4_000
WIDTH = 64
OVERLAP, SURE = 0.5, 0.5  # of a box, of a class


def labels(scenes: list[Scene]) -> list[dict[str, Tensor]]:
    """Classes and boxes (centre, size, as shares of the image) as Hugging Face's loss takes them."""
    found = []
    for scene in scenes:
        box = torch.tensor([thing.box for thing in scene.objects]) / SIDE
        middle, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
        found.append({"class_labels": torch.tensor([thing.digit for thing in scene.objects]), "boxes": torch.cat([middle, size], 1)})
    return found


def regions(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Per object: its image [objects], weights of the map's cells in its box [objects, 64], its digit [objects]."""
    of, cells, digits = [], [], []
    for number, scene in enumerate(scenes):
        for thing in scene.objects:
            left, top, right, bottom = (side * GRID / SIDE for side in thing.box)
            weight = torch.zeros(GRID, GRID)
            weight[int(top) : -int(-bottom // 1), int(left) : -int(-right // 1)] = 1
            of.append(number)
            cells.append((weight / weight.sum()).flatten())
            digits.append(thing.digit)
    return torch.tensor(of), torch.stack(cells), torch.tensor(digits)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [n, 4] and [m, 4] (centre, size): [n, m]."""
    a, b = corners(a)[:, None], corners(b)[None, :]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return inner / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner)


@torch.no_grad()
def detected(model: Any, split: Split, seed: int, count: int, objects: int) -> dict[str, float]:
    """Shares of the true objects: found by a sure query of the right class whose box overlaps by half; by any query's box. And how many sure
    queries there are per true object."""
    data = PhotoDigits(split, seed)
    scenes = [data.scene(objects) for _ in range(count)]
    model.eval()
    output = model(pixels(scenes))
    share, chosen = output.logits.softmax(-1)[..., :-1].max(-1)
    whole = boxed = 0
    for i, truth in enumerate(labels(scenes)):
        near = overlap(output.pred_boxes[i], truth["boxes"]) > OVERLAP
        right = near & (chosen[i][:, None] == truth["class_labels"]) & (share[i] > SURE)[:, None]
        boxed += int(near.any(0).sum())
        whole += int(right.any(0).sum())
    total = count * objects
    return {"class and box": whole / total, "box": boxed / total, "sure queries per object": float((share > SURE).sum()) / total}


def trained() -> Any:
    """The model after its training, as Hugging Face's plain class."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = digits_detr.thawed(digits_detr.build())
    data = PhotoDigits("train", TRAIN_SEED)
    pool = [data.scene(1 + i % 2) for i in range(POOL)]
    heads = nn.ModuleList([nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 10)])
    seen: list[Tensor] = []
    projection = next(module for name, module in model.named_modules() if name.endswith("input_projection"))
    projection.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    both = nn.ModuleList([model, heads])
    optimiser = torch.optim.AdamW(both.parameters(), 1e-3, weight_decay=1e-4)
    for step in range(STEPS):
        scenes = [pool[i] for i in torch.randint(len(pool), (32,), generator=random)]
        seen.clear()
        model.train()
        output = model(pixels(scenes), labels=labels(scenes))
        of, cells, digits = regions(scenes)
        maps = (seen[0].flatten(2).transpose(1, 2), output.encoder_last_hidden_state)
        beside = [cross_entropy(head((cells[:, :, None] * one[of]).sum(1)), digits) for head, one in zip(heads, maps)]
        progress = step / STEPS
        rate = 8e-4 * min(1.0, (step + 1) / 60) * (1.0 if progress < 0.5 else max(0.05, (1 - progress) / 0.5))
        learn(optimiser, both, output.loss + 2 * beside[0] + 2 * beside[1], rate)
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}: loss {output.loss.item():.3f}, {detected(model, 'test', TEST_SEED, 150, 2)}", flush=True)
    plain = digits_detr.build()
    plain.load_state_dict(digits_detr.weights(model))
    return plain


def scores(model: nn.Module) -> dict[str, float]:
    """What the model card says, on a seed that nothing else uses."""
    found: dict[str, float] = {}
    for objects, count, words in ((1, 1000, "one digit"), (2, 1000, "two digits")):
        found |= {f"{words}, {name}": value for name, value in detected(model, "test", FRESH_SEED + objects - 1, count, objects).items()}
    return found
