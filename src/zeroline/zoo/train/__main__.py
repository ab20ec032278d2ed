"""``python -m zeroline.zoo.train MODEL [--out DIR]``: train, measure on a seed that nothing else uses, write."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zeroline.zoo.train import clip, cnn, detr, vit, vqa
from zeroline.zoo.train.common import MODELS, save

TRAININGS = {
    "vit": ("digits-vit", vit),
    "clip": ("digits-clip", clip),
    "cnn": ("digits-cnn", cnn),
    "detr": ("digits-detr", detr),
    "vqa": ("digits-vqa", vqa),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=list(TRAININGS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    name, training = TRAININGS[arguments.model]
    model = training.trained().eval()
    scores = training.scores(model)
    print(json.dumps(scores))
    save(model, scores, arguments.out or MODELS / name)


if __name__ == "__main__":
    main()
