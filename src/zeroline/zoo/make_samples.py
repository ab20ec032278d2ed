"""Makes the sample images that ship with the package, from a seed: ``python -m zeroline.zoo.make_samples``.

Backgrounds are the two CC0 photographs of the test split only (see LICENSES.md). Writes one PNG per image, one
PNG per mask, and ``samples.json`` with classes, colours, boxes and captions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from zeroline.zoo.photo_digits import PhotoDigits

SEED = 7
FOLDER = Path(__file__).parent / "samples"


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


if __name__ == "__main__":
    main()
