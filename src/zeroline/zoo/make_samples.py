"""Makes the sample images that ship with the package, from a seed: ``python -m zeroline.zoo.make_samples``.

Backgrounds are the two CC0 photographs of the test split only (see LICENSES.md). Writes one PNG per image, one
PNG per mask, and ``samples.json`` with classes, colours, boxes and captions. The test set, one digit per image and every
colour and digit twice, is one sheet of images and one of masks, with ``test_set.json``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from zeroline.zoo import SHEET
from zeroline.zoo.photo_digits import COLOURS, DIGITS, SIDE, PhotoDigits, Scene

SEED = 7
TEST_SEED, EACH = 8, 2
FOLDER = Path(__file__).parent / "samples"
TEST_SET = Path(__file__).parent / "test_set"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    data = PhotoDigits("test", SEED, photographs=("coffee", "gravel"))
    entries = []
    for number in range(24):
        scene = data.scene(1 if number < 12 else 2)
        name = f"{number:02d}"
        Image.fromarray(scene.pixels).save(FOLDER / f"{name}.png")
        objects = []
        for k, thing in enumerate(scene.objects):
            mask = f"{name}-mask{k}.png"
            Image.fromarray(thing.mask.astype(np.uint8) * 255).convert("1").save(FOLDER / mask, optimize=True)
            objects.append({"digit": thing.digit, "colour": thing.colour, "box": list(thing.box), "mask": mask})
        entries.append({"name": name, "image": f"{name}.png", "caption": scene.caption, "objects": objects})
    (FOLDER / "samples.json").write_text(json.dumps(entries, indent=1) + "\n")
    make_test_set()


def make_test_set() -> None:
    TEST_SET.mkdir(exist_ok=True)
    data = PhotoDigits("test", TEST_SEED, photographs=("coffee", "gravel"))
    waiting = Counter({(colour, digit): EACH for colour in COLOURS for digit in range(len(DIGITS))})
    chosen: list[Scene] = []
    while waiting:
        scene = data.scene(1)
        thing = scene.objects[0]
        if waiting[thing.colour, thing.digit] > 0:
            waiting[thing.colour, thing.digit] -= 1
            waiting += Counter()  # those with none left go
            chosen.append(scene)
    lines = len(chosen) // SHEET
    sheet, masks = Image.new("RGB", (SIDE * SHEET, SIDE * lines)), Image.new("1", (SIDE * SHEET, SIDE * lines))
    for number, scene in enumerate(chosen):
        place = (SIDE * (number % SHEET), SIDE * (number // SHEET))
        sheet.paste(Image.fromarray(scene.pixels), place)
        masks.paste(Image.fromarray(scene.objects[0].mask.astype(np.uint8) * 255).convert("1"), place)
    sheet.save(TEST_SET / "images.png", optimize=True)
    masks.save(TEST_SET / "masks.png", optimize=True)
    things = [scene.objects[0] for scene in chosen]
    entries = [{"digit": t.digit, "colour": t.colour, "box": list(t.box)} for t in things]
    (TEST_SET / "test_set.json").write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


if __name__ == "__main__":
    main()
