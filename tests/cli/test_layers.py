"""``zeroline layers`` as a user meets it: a row per site, where the evidence lies, the files, and what errors look like."""

import json
import math
from contextlib import contextmanager

import pytest
import torch
from PIL import Image, ImageDraw

from cli.test_baselines import IMAGE, MASK, NINE, SET, line_of, once, one_error, photos, pixels, saved_vit
from cli.test_cli import run
from zeroline.comparison import Comparison

BLOCKS = [f"vit.layers.{i}" for i in range(4)]
SITES = ["input:pixel_values", *BLOCKS]
FAST = ["--tolerance", "0.05", "--max-evaluations", "24"]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(folder, standard output) of a command with a mask."""
    folder = tmp_path_factory.mktemp("asked")
    status, out, err = once("layers", IMAGE, "--mask", MASK, "--out", folder, *FAST)
    assert (status, err) == (0, "")
    return folder, out


@contextmanager
def at_block(model, index, change):
    """The model with ``change`` applied to what a block gives."""
    handle = model.vit.layers[index].register_forward_hook(lambda module, given, found: change(found))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def answer(model, x):
    return float(model(pixel_values=x).logits[0, NINE])


def strict(text):
    """JSON as the standard has it: no NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_there_is_a_row_for_the_input_and_every_block_in_their_order(asked, digits_vit):
    _, out = asked
    assert "logit of nine" in out
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith(("input", "vit"))] == SITES
    difference = answer(digits_vit, pixels(IMAGE)) - answer(digits_vit, pixels(IMAGE, "black"))
    for site in SITES:  # all are cuts: what is explained is the same everywhere
        _, where, baseline, total, found, error, share = line_of(out, site)[:7]
        assert (where, baseline) == (site, "black")
        assert float(found) == pytest.approx(difference, abs=6e-3)
        assert float(total) - float(found) == pytest.approx(float(error), abs=2e-2)
        assert float(share.rstrip("%")) <= 5


def test_inside_and_by_chance_are_what_the_mask_covers(asked, samples):
    folder, out = asked
    mask = samples[3].masks[0]
    found = Comparison.load(folder / "layers.safetensors")
    covered = {"input:pixel_values": mask, **dict.fromkeys(BLOCKS, mask.view(8, 8, 8, 8).any(3).any(1))}
    for site, where in covered.items():
        values = found[site].values[0].double()
        heat = values.sum(0) if values.ndim == 3 else values[1:].sum(-1).view(8, 8)  # the first token is the class token
        positive = heat.clamp(min=0)
        top, inside, chance = line_of(out, site)[-3:]
        assert float(chance) == pytest.approx(float(where.double().mean()), abs=6e-3)
        if site == BLOCKS[-1]:  # read at the class token alone: nothing lies on the patches
            assert (top, inside) == ("-", "-")
            continue
        largest = positive.flatten().sort(descending=True).values[: round(0.1 * positive.numel())]
        assert float(top) == pytest.approx(float(largest.sum() / positive.sum()), abs=6e-3)
        assert float(inside) == pytest.approx(float(positive[where].sum() / positive.sum()), abs=6e-3)
    assert "in top 10 %" in out
    assert "by chance" in out


def test_three_files_are_written_and_the_record_is_what_can_be_loaded(asked):
    folder, out = asked
    assert sorted(p.name for p in folder.iterdir()) == ["figure.png", "layers.safetensors", "record.json"]
    assert all(str(p) in out for p in folder.iterdir())
    record = strict((folder / "record.json").read_text())
    assert strict(json.dumps(Comparison.load(folder / "layers.safetensors").to_dict())) == record
    assert list(record["members"]) == SITES
    assert (folder / "figure.png").stat().st_size > 10_000


def test_sites_with_a_star_are_every_match_and_the_same_command_gives_the_same_bytes(asked, tmp_path):
    status, out, _ = once("layers", IMAGE, "--sites", "input, vit.layers.*", "--out", tmp_path, *FAST)
    assert status == 0
    a, b = (Comparison.load(folder / "layers.safetensors") for folder in (asked[0], tmp_path))
    assert a.labels == b.labels
    for site in SITES:
        assert a[site].values.numpy().tobytes() == b[site].values.numpy().tobytes()
    assert (asked[0] / "record.json").read_bytes() == (tmp_path / "record.json").read_bytes()
    assert "inside" not in out  # no mask was given
    assert "by chance" not in out


def test_sites_keep_the_order_asked_and_one_without_a_grid_has_no_evidence(capsys, tmp_path):
    status, out, err = run(capsys, "layers", IMAGE, "--sites", "classifier, vit.layers.0", "--json", "--out", tmp_path, *FAST)
    assert (status, err) == (0, "")
    found = strict(out)
    assert list(found["members"]) == ["classifier", "vit.layers.0"]
    assert list(found["evidence"]) == ["vit.layers.0"]
    assert sorted(found["files"]) == sorted(map(str, tmp_path.iterdir()))


def test_a_box_is_the_mask_of_its_rectangle(capsys, tmp_path):
    drawn = Image.new("L", (64, 64))
    ImageDraw.Draw(drawn).rectangle((8, 16, 39, 47), fill=255)
    drawn.save(tmp_path / "mask.png")
    seen = []
    for where in (["--box", "8,16,40,48"], ["--mask", tmp_path / "mask.png"]):
        status, out, _ = run(capsys, "layers", IMAGE, *where, "--sites", "input, vit.layers.3", "--json", "--out", tmp_path / "out", *FAST)
        assert status == 0
        seen.append(strict(out)["evidence"])
    assert seen[0] == seen[1]
    assert [row[2] for row in seen[0].values()] == [0.25, 0.25]  # 32 x 32 of 64 x 64 pixels, 4 x 4 of 8 x 8 patches
    assert seen[0]["vit.layers.3"][:2] == [None, None]


def test_what_does_not_converge_is_told_and_written(capsys, tmp_path):
    status, out, err = run(capsys, "layers", IMAGE, "--sites", "input", "--max-evaluations", "3", "--out", tmp_path)
    assert status == 0
    assert err.startswith("warning: ")
    assert "ended at max_evaluations=3" in err
    assert line_of(out, "input:pixel_values")[9] == "3"
    assert len(list(tmp_path.iterdir())) == 3


def test_the_mean_of_a_folder_is_taken_of_the_features_at_each_site(capsys, tmp_path, digits_vit):
    arguments = ["--baseline", f"mean_of({photos(tmp_path / 'set')})", "--sites", "input, vit.layers.1", "--out", tmp_path / "out"]
    status, out, _ = run(capsys, "layers", IMAGE, *arguments, *FAST)
    assert status == 0
    x, members, seen = pixels(IMAGE), [pixels(path) for path in SET], []
    with at_block(digits_vit, 1, lambda z: seen.append(z.detach())):
        for member in members:
            answer(digits_vit, member)
    with at_block(digits_vit, 1, lambda _: torch.stack(seen).mean(0)):
        there = answer(digits_vit, x)
    for site, f in (("input:pixel_values", answer(digits_vit, torch.stack(members).mean(0))), ("vit.layers.1", there)):
        assert float(line_of(out, site)[4]) == pytest.approx(answer(digits_vit, x) - f, abs=6e-3)


@pytest.mark.parametrize("source", ["FOLDER", "noise"])
def test_a_distribution_explains_the_mean_difference_to_its_draws(capsys, tmp_path, digits_vit, source):
    folder = photos(tmp_path / "set")
    arguments = ["--baseline", f"distribution({source.replace('FOLDER', str(folder))}, 3)", "--sites", "input, vit.layers.2"]
    status, out, _ = run(capsys, "layers", IMAGE, *arguments, "--out", tmp_path / "out", "--max-evaluations", "6")
    assert status == 0
    members = [pixels(path) for path in SET]
    if source == "noise":
        members = [2 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))[None] - 1 for seed in range(3)]
    wanted = answer(digits_vit, pixels(IMAGE)) - sum(answer(digits_vit, member) for member in members) / 3
    for site in ("input:pixel_values", "vit.layers.2"):
        assert float(line_of(out, site)[4]) == pytest.approx(wanted, abs=1e-2)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of pictures that are 32 high and 48 wide: 4 x 6 patches."""
    return f"hf:{saved_vit(tmp_path_factory.mktemp('wide') / 'model', (32, 48), ('cat', 'dog', 'ox'))}"


@pytest.mark.parametrize(("box", "rows", "columns"), [("0,0,64,16", slice(0, 1), slice(None)), ("32,0,64,64", slice(None), slice(3, None))])
def test_a_hugging_face_folder_with_a_grid_that_is_not_square_works(capsys, tmp_path, wide, box, rows, columns):
    status, out, err = run(capsys, "layers", IMAGE, "--model", wide, "--target", "ox", "--box", box, "--json", "--out", tmp_path, *FAST)
    assert (status, err) == (0, "")
    shown = strict(out)
    found = Comparison.load(tmp_path / "layers.safetensors")
    assert found.target == ("logit of ox",)
    assert shown["lies"]["vit.layers.0"] == {"prefix": 1, "grid": [4, 6]}
    heat = found["vit.layers.0"].values[0, 1:].double().sum(-1).view(4, 6).clamp(min=0)
    _, inside, chance = shown["evidence"]["vit.layers.0"]
    assert inside == pytest.approx(float(heat[rows, columns].sum() / heat.sum()))
    assert chance == pytest.approx(heat[rows, columns].numel() / 24)
    assert math.isclose(shown["evidence"]["input:pixel_values"][2], chance)
    assert (tmp_path / "figure.png").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--mask", "FOLDER/small.png"], 2, "is 32 x 48; the image is 64 x 64"),
        (["--mask", MASK, "--box", "1,1,9,9"], 2, "--mask and --box were both given"),
        (["--mask", "FOLDER/nothing.png"], 2, "no image file"),
        (["--mask", "FOLDER/text.png"], 1, "as an image"),
        (["--mask", "FOLDER/black.png"], 2, "holds no pixel"),
        (["--box", "1,1,9"], 2, "cannot read --box '1,1,9'; write LEFT,TOP,RIGHT,BOTTOM"),
        (["--box", "a,b,c,d"], 2, "cannot read --box"),
        (["--box", "0.5,1,9,9"], 2, "cannot read --box"),
        (["--box", "10,10,30,65"], 2, "is not within the image of 64 x 64"),
        (["--box=-1,10,30,40"], 2, "is not within the image of 64 x 64"),
        (["--box", "30,10,30,40"], 2, "is not within the image of 64 x 64"),
        (["--sites", "vit.layres.*"], 2, "no module 'vit.layres.*'; nearest: vit.layers"),
        (["--sites", "vit.layers.0, vit.layers.9"], 2, "no module 'vit.layers.9'; nearest: vit.layers"),
        (["--sites", ""], 2, "asked of no sites"),
        (["--grid", "9x9"], 2, "a grid of 9 x 9"),
        (["--grid", "8by8"], 2, "write ROWSxCOLUMNS"),
        (["--tolerance", "0"], 2, "tolerance=0 was asked"),
        (["--max-evaluations", "1"], 2, "max_evaluations=1 was asked"),
        (["--baseline", "mean_of(FOLDER/nowhere)"], 2, "no folder"),
        (["--baseline", "neutral(zeros)"], 1, "KL from uniform is"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_files(capsys, tmp_path, arguments, status, message):
    Image.new("L", (32, 48), 255).save(tmp_path / "small.png")
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("this is no image")
    found, out, err = run(capsys, "layers", IMAGE, *[a.replace("FOLDER", str(tmp_path)) for a in arguments], "--out", tmp_path / "out")
    assert (found, out) == (status, "")
    one_error(err, message)
    assert not (tmp_path / "out").exists()


def test_warnings_say_which_layer(capsys, tmp_path):
    status, _, err = run(capsys, "layers", IMAGE, "--max-evaluations", "4", "--sites", "input, vit.layers.0", "--out", tmp_path)
    assert status == 0
    assert "warning: vit.layers.0: 1 of 1 samples ended at max_evaluations=4" in " ".join(err.split())


def test_a_layer_named_twice_is_asked_once(capsys, tmp_path, monkeypatch):
    import zeroline as zl
    from zeroline.methods import METHODS

    asked = []
    monkeypatch.setitem(METHODS, "integrated_gradients", lambda *a, **k: (asked.append(k["site"]), zl.gradient_x_input(*a, **k))[1])
    run(capsys, "layers", IMAGE, "--sites", "vit.layers.1, vit.layers.*", "--out", tmp_path)
    assert asked == [f"vit.layers.{i}" for i in (1, 0, 2, 3)]


@pytest.mark.parametrize(("option", "value"), [("--box", "10,--5,30,40"), ("--target", "²"), ("--grid", "²x²")])
def test_numbers_that_are_none_are_usage_errors(capsys, tmp_path, option, value):
    status, _, err = run(capsys, "layers", IMAGE, option, value, "--out", tmp_path / "out")
    assert status == 2
    assert err.startswith("error: ")
    assert "unexpected" not in err
