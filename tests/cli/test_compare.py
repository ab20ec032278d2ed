"""``zeroline compare`` and the CAM family of ``zeroline explain`` as a user meets them: the table, budgets, options, files, errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cli.test_baselines import IMAGE, NINE, line_of, once, one_error, photos, pixels, saved_vit
from cli.test_cli import run
from zeroline import Attribution
from zeroline.comparison import Comparison

CAMS = ["grad_cam", "layer_cam", "odam", "difference_map"]
METHODS = ["gradient_x_input", "taylor", "integrated_gradients", *CAMS]
LAYER = "vit.layers.1"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(folder, standard output) of the command as it stands."""
    folder = tmp_path_factory.mktemp("asked")
    status, out, err = once("compare", IMAGE, "--out", folder)
    assert (status, err) == (0, "")
    return folder, out


def explained(folder, method, *options, site=LAYER, baseline="zeros"):
    """The record of ``zeroline explain``."""
    status, _, err = once("explain", IMAGE, "--method", method, "--site", site, "--baseline", baseline, *options, "--out", folder)
    assert (status, err) == (0, "")
    assert (folder / "figure.png").exists()
    return Attribution.load(folder / "attribution.safetensors")


def test_there_is_a_row_for_each_method_with_its_site_and_baseline(asked):
    _, out = asked
    assert "logit of nine" in out
    rows = {name: line_of(out, name) for name in METHODS}
    implied = ("grad_cam", "layer_cam", "odam")  # zero features, as their papers have it
    assert {name: row[2] for name, row in rows.items()} == {name: "zeros" if name in implied else "black" for name in METHODS}
    # after the last block only the class token has a gradient, so a map is asked for one block before
    assert {name: row[1] for name, row in rows.items()} == {name: "vit.layers.2" if name in CAMS else "input:pixel_values" for name in METHODS}


def test_sums_differences_errors_and_the_parts_of_errors_fit_together(asked):
    _, out = asked
    for name in METHODS:
        _, _, _, total, difference, error, share, *_, budget = line_of(out, name)
        assert float(total) - float(difference) == pytest.approx(float(error), abs=0.06)
        assert float(share.rstrip("%")) / 100 == pytest.approx(abs(float(error) / float(difference)), rel=1e-2)
        parts = dict(part.split(" ") for part in budget.split(", "))
        assert sum(map(float, parts.values())) == pytest.approx(float(error), rel=2e-2)
    assert list(parts) == ["truncation"]  # of the last, difference_map: nothing is pooled or rectified
    assert "pooling" in line_of(out, "grad_cam")[-1]


def test_three_files_are_written_and_the_record_is_what_can_be_loaded(asked):
    folder, out = asked
    assert sorted(p.name for p in folder.iterdir()) == ["comparison.safetensors", "figure.png", "record.json"]
    assert all(str(p) in out for p in folder.iterdir())
    record = json.loads((folder / "record.json").read_text())
    found = Comparison.load(folder / "comparison.safetensors")
    assert json.loads(json.dumps(found.to_dict())) == record
    assert found.labels == tuple(METHODS)
    assert (folder / "figure.png").stat().st_size > 10_000


def test_the_same_command_gives_the_same_bytes_and_json_is_one_document(asked, capsys, tmp_path):
    status, out, err = run(capsys, "compare", IMAGE, "--json", "--out", tmp_path)
    assert (status, err) == (0, "")
    a, b = (Comparison.load(folder / "comparison.safetensors") for folder in (asked[0], tmp_path))
    for name in METHODS:
        assert a[name].values.numpy().tobytes() == b[name].values.numpy().tobytes()
    shown = json.loads(out)
    assert sorted(shown.pop("files")) == sorted(map(str, tmp_path.iterdir()))
    assert shown == json.loads((asked[0] / "record.json").read_text())


@pytest.mark.parametrize(
    ("method", "site", "baseline"), [("taylor", "input", "black"), ("odam", "vit.layers.2", "zeros"), ("difference_map", "vit.layers.2", "black")]
)
def test_each_member_is_what_explain_gives(asked, tmp_path, method, site, baseline):
    member = Comparison.load(asked[0] / "comparison.safetensors")[method]
    alone = explained(tmp_path, method, site=site, baseline=baseline)
    assert torch.equal(member.values, alone.values)
    one, other = member.to_dict(), alone.to_dict()
    assert one.pop("forward_passes") <= other.pop("forward_passes")  # what the members share is run once
    assert one == other


def test_methods_and_sites_can_be_chosen(capsys, tmp_path):
    arguments = ["--methods", "odam, gradient_x_input", "--site", LAYER, "--grid-site", "vit.layers.0", "--baseline", "mean"]
    status, out, err = run(capsys, "compare", IMAGE, *arguments, "--out", tmp_path)
    assert (status, err) == (0, "")
    assert Comparison.load(tmp_path / "comparison.safetensors").labels == ("odam", "gradient_x_input")
    assert line_of(out, "odam")[1:3] == ["vit.layers.0", "zeros"]
    assert line_of(out, "gradient_x_input")[1:3] == [LAYER, "mean"]


@pytest.mark.parametrize(
    ("baseline", "name"), [("mean_of(FOLDER)", "mean of 3 in set at the input"), ("distribution(FOLDER, 3)", "3 of 3 inputs of set")]
)
def test_sets_of_images_are_the_baseline_of_methods_that_imply_none(capsys, tmp_path, digits_vit, baseline, name):
    folder = photos(tmp_path / "set")
    x, members = pixels(IMAGE), torch.cat([pixels(path) for path in sorted(folder.iterdir())])
    arguments = ["--methods", "gradient_x_input, grad_cam", "--baseline", baseline.replace("FOLDER", str(folder)), "--out", tmp_path / "out"]
    status, out, err = run(capsys, "compare", IMAGE, *arguments)
    assert (status, err) == (0, "")
    assert line_of(out, "grad_cam")[2] == "zeros"
    assert line_of(out, "gradient_x_input")[2] == name
    f = digits_vit(pixel_values=x.requires_grad_()).logits[0, NINE]
    (gradient,) = torch.autograd.grad(f, x)
    with torch.no_grad():
        total = (gradient * (x - members.mean(0))).sum()  # linear in the baseline: the same for a mean and for draws
        difference = f - digits_vit(pixel_values=members.mean(0, keepdim=True) if "mean" in baseline else members).logits[:, NINE].mean()
    found = [float(cell) for cell in line_of(out, "gradient_x_input")[3:5]]
    assert found == [pytest.approx(float(total), abs=6e-3), pytest.approx(float(difference), abs=6e-3)]


def test_values_that_lie_on_no_grid_get_a_figure_all_the_same(capsys, tmp_path):
    arguments = ["--methods", "gradient_x_input", "--site", "classifier", "--baseline", "zeros", "--out", tmp_path]
    status, out, err = run(capsys, "compare", IMAGE, *arguments)
    assert (status, err) == (0, "")
    assert line_of(out, "gradient_x_input")[-1] == "none"  # the logit is linear in the logits
    assert (tmp_path / "figure.png").stat().st_size > 10_000


OFF = {
    "grad_cam": ["--no-pool", "--no-rectify"],
    "layer_cam": ["--no-rectify-gradient", "--no-rectify"],
    "odam": ["--no-rectify"],
    "difference_map": [],
}


@pytest.mark.parametrize("baseline", ["zeros", "black"])
def test_with_everything_off_each_is_gradient_x_input(tmp_path, baseline):
    first = explained(tmp_path, "gradient_x_input", baseline=baseline)
    for method in CAMS:
        found = explained(tmp_path, method, *OFF[method], baseline=baseline)
        assert torch.equal(found.values, first.values)
        assert torch.equal(found.error, first.error)


@pytest.fixture(scope="module")
def felt(digits_vit):
    """Features of the layer and the gradient of the answer there, by autograd alone: [tokens, width] each."""
    seen = []
    handle = digits_vit.vit.layers[1].register_forward_hook(lambda *found: (seen.append(found[-1]), found[-1].retain_grad())[1])
    digits_vit(pixel_values=pixels(IMAGE)).logits[0, NINE].backward()
    handle.remove()
    digits_vit.zero_grad()
    return seen[0].detach()[0], seen[0].grad[0]


def test_grad_cam_pools_gradients_and_rectifies_positions(tmp_path, felt):
    z, g = felt
    pooled = torch.cat([z[:1] * g[:1], z[1:] * g[1:].mean(0)])  # the class token is no position
    assert torch.allclose(explained(tmp_path, "grad_cam", "--no-rectify").values[0], pooled, atol=1e-6)
    positive = pooled[1:].sum(1) > 0
    assert 0 < int(positive.sum()) < 64
    kept = torch.cat([pooled[:1], pooled[1:] * positive[:, None]])
    assert torch.allclose(explained(tmp_path, "grad_cam").values[0], kept, atol=1e-6)


def test_layer_cam_weighs_by_positive_gradients(tmp_path, felt):
    z, g = felt
    wanted = torch.cat([z[:1] * g[:1], z[1:] * g[1:].clamp(min=0)])
    assert torch.allclose(explained(tmp_path, "layer_cam", "--no-rectify").values[0], wanted, atol=1e-6)
    assert not torch.allclose(wanted, z * g, atol=1e-3)


def test_odam_smooths_gradients_over_the_grid(tmp_path, felt):
    from scipy.ndimage import gaussian_filter

    z, g = felt
    smooth = np.stack([gaussian_filter(channel.view(8, 8).double().numpy(), 1, mode="mirror") for channel in g[1:].T])
    wanted = torch.cat([z[:1] * g[:1], z[1:] * torch.from_numpy(smooth).flatten(1).T.float()])
    found = explained(tmp_path, "odam", "--smooth", "1", "--no-rectify")
    assert torch.allclose(found.values[0], wanted, atol=1e-6)
    assert not torch.allclose(found.values[0], z * g, atol=1e-3)
    assert found.settings["smooth"] == 1


@pytest.mark.parametrize("method", CAMS)
def test_normalised_values_are_those_before_over_the_largest_position(tmp_path, method):
    plain, normal = explained(tmp_path, method), explained(tmp_path, method, "--normalise")
    largest = plain.per_token()[0, 1:].abs().max()
    assert float(largest) > 1e-3
    assert torch.allclose(normal.values * largest, plain.values, atol=1e-5)
    assert float(normal.budget["normalisation"]) == pytest.approx(float(normal.total - plain.total), abs=1e-4)


def test_a_hugging_face_folder_works_without_a_network(capsys, tmp_path):
    model = f"hf:{saved_vit(tmp_path / 'model')}"
    status, out, err = run(capsys, "compare", IMAGE, "--model", model, "--target", "dog - cat", "--methods", "taylor, layer_cam", "--out", tmp_path)
    assert (status, err) == (0, "")
    assert "logit of dog - cat" in out
    assert line_of(out, "layer_cam")[1] == "vit.layers.0"
    assert Comparison.load(tmp_path / "comparison.safetensors").lies["layer_cam"].grid == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["compare", "--methods", "taylor, grad_kam"], 2, "no method 'grad_kam'; nearest: grad_cam"),
        (["compare", "--methods", ""], 2, "no methods"),
        (["compare", "--grid-site", "classifier"], 2, "features of shape (1, 10) have no positions"),
        (["compare", "--grid-site", "vit.layers.9"], 2, "no module 'vit.layers.9'"),
        (["compare", "--grid", "9x9"], 2, "a grid of 9 x 9"),
        (["compare", "--target", "sevn"], 2, "nearest: seven"),
        (["compare", "--baseline", "mean_of(FOLDER/empty)"], 2, "holds no image"),
        (["compare", "--baseline", "distribution(FOLDER/nowhere, 2)"], 2, "no folder"),
        (["compare", "--baseline", "neutral(zeros)"], 1, "KL from uniform is"),
        (["explain", "--site", LAYER, "--method", "odam", "--smooth", "0"], 2, "smooth=0 was asked"),
        (["explain", "--site", LAYER, "--method", "odam", "--smooth", "-1"], 2, "smooth=-1 was asked"),
        (["explain", "--site", LAYER, "--method", "layer_cam", "--no-pool"], 2, "--pool means nothing to layer_cam; it belongs to grad_cam"),
        (["explain", "--site", LAYER, "--method", "grad_cam", "--smooth", "1"], 2, "--smooth means nothing to grad_cam; it belongs to odam"),
        (["explain", "--site", "classifier", "--method", "grad_cam", "--baseline", "zeros"], 2, "have no positions"),
        (["explain", "--site", LAYER, "--method", "grad_cam", "--grid", "9x9"], 2, "a grid of 9 x 9"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_files(capsys, tmp_path, arguments, status, message):
    (tmp_path / "empty").mkdir()
    command, *rest = (a.replace("FOLDER", str(tmp_path)) for a in arguments)
    found, out, err = run(capsys, command, IMAGE, *rest, "--out", tmp_path / "out")
    assert (found, out) == (status, "")
    one_error(err, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--grid", "4x4"], "a grid of 4 x 4 with 1 prefix tokens has 17 tokens"), (["--prefix", "3"], "with 3 prefix tokens has 67 tokens")],
)
def test_a_grid_that_does_not_hold_all_patches_is_refused(capsys, tmp_path, more, message):
    for command in (["compare", IMAGE, "--methods", "grad_cam"], ["explain", IMAGE, "--method", "grad_cam", "--site", "vit.layers.1"]):
        status, _, err = run(capsys, *command, *more, "--out", tmp_path / "out")
        assert status == 2
        assert message in err
        assert not (tmp_path / "out").exists()


def test_an_infinite_blur_is_a_usage_error(capsys, tmp_path):
    status, _, err = run(capsys, "explain", IMAGE, "--method", "odam", "--smooth", "inf", "--site", "vit.layers.1", "--out", tmp_path / "out")
    assert status == 2
    assert "smooth=inf was asked" in err


def test_records_are_json_as_they_are(capsys, tmp_path):
    run(capsys, "compare", IMAGE, "--methods", "grad_cam", "--out", tmp_path)
    assert Comparison.load(tmp_path / "comparison.safetensors").to_dict() == json.loads((tmp_path / "record.json").read_text())


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A small DETR as a Hugging Face folder, some of whose queries say an object on the sample image."""
    from transformers import DetrImageProcessorPil

    from attention_models import detr

    folder = tmp_path_factory.mktemp("detr")
    torch.manual_seed(0)
    model = detr("sdpa")[0].eval()
    model.config.id2label = {0: "cat", 1: "dog", 2: "cup", 3: "bus"}
    processor = DetrImageProcessorPil(size={"height": 64, "width": 96})
    with torch.no_grad():
        scores = model(**processor(images=Image.open(IMAGE).convert("RGB"), return_tensors="pt")).logits[0]
        margins = (scores[:, :4].amax(-1) - scores[:, 4]).sort()
        model.class_labels_classifier.bias[-1] += (margins.values[2] + margins.values[3]) / 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, margins.indices.tolist()


@pytest.mark.parametrize(
    ("target", "read"),
    [("detection QUERY", "at detection QUERY"), ("detection top bus", "logit of bus at"), ("box QUERY left", "left of the box of")],
)
def test_a_detection_and_its_box_are_explained_from_the_command_line(capsys, tmp_path, detector, target, read):
    folder, order = detector
    query = str(order[-1])
    site = "model.backbone.model.encoder.stages.1"
    arguments = ["--model", f"hf:{folder}", "--method", "odam", "--site", site, "--baseline", "zeros", "--out", tmp_path / "out"]
    status, out, err = run(capsys, "explain", IMAGE, *arguments, "--target", target.replace("QUERY", query))
    assert (status, err) == (0, "")
    assert read.replace("QUERY", query) in out
    assert (tmp_path / "out" / "figure.png").exists()
    status, _, err = run(capsys, "explain", IMAGE, *arguments, "--target", f"detection {order[0]}")
    assert status == 2
    assert f"no detection at {order[0]}: the model says 'no object' there" in err
