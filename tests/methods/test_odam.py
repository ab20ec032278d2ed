"""ODAM is its paper's formula, on any target and on the detections of a DETR."""

from types import MappingProxyType

import numpy as np
import pytest
import torch

import zeroline as zl
from attention_models import detr
from methods.cam_reference import Tokens, features_and_gradients, made, map_of
from zeroline.errors import SiteError, TargetError, UsageError


def test_the_map_is_the_papers_formula():
    model, x = made()
    a, g, _ = features_and_gradients(model, x, "features", 1)
    for rectify in (True, False):
        found = zl.odam(model, x, target=1, site="features", baseline=zl.baseline.zeros(), rectify=rectify)
        assert torch.allclose(found.per_pixel(), map_of(a, g, torch.zeros_like(a), rectify=rectify), atol=1e-12)


def test_smoothing_is_a_gaussian_filter_of_the_gradient_and_its_part_of_the_budget():
    from scipy.ndimage import gaussian_filter1d

    model, x = made()
    a, g, _ = features_and_gradients(model, x, "features", 1)
    smooth = torch.from_numpy(gaussian_filter1d(gaussian_filter1d(g.numpy(), 0.4, -1, mode="mirror"), 0.4, -2, mode="mirror"))
    found = zl.odam(model, x, target=1, site="features", baseline=zl.baseline.zeros(), smooth=0.4, rectify=False)
    assert np.allclose(found.per_pixel(), map_of(a, smooth, torch.zeros_like(a), rectify=False), atol=1e-10)
    assert torch.allclose(found.budget["smoothing"], (a * (smooth - g)).flatten(1).sum(1), atol=1e-10)
    assert torch.allclose(sum(found.budget.values()), found.error, atol=1e-6)


def test_smoothing_tokens_needs_their_grid_and_leaves_the_class_token_out():
    model, x = made(Tokens, (2, 3, 4, 6))
    asked = {"target": 1, "site": "block", "baseline": zl.baseline.zeros(), "smooth": 0.6, "rectify": False}
    found = zl.odam(model, x, grid=(2, 3), **asked)
    a, g, _ = features_and_gradients(model, x, "block", 1)
    from zeroline.baseline import blurred

    smooth = blurred(g[:, 1:].transpose(1, 2).reshape(2, 4, 2, 3), 0.6).flatten(2).transpose(1, 2)
    assert torch.allclose(found.values[:, 1:], a[:, 1:] * smooth, atol=1e-12)
    assert torch.allclose(found.values[:, 0], (a * g)[:, 0], atol=1e-12)
    words = torch.randn(2, 5, 8)
    with pytest.raises(SiteError, match="smoothing needs a grid"):
        zl.odam(torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Flatten(1)), words, target=1, site="0", baseline=zl.baseline.zeros(), smooth=1.0)
    with pytest.raises(UsageError, match="sigma above 0"):
        zl.odam(model, x, grid=(2, 3), **(asked | {"smooth": 0.0}))


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model, inputs = detr("sdpa")
    model.config.id2label = {0: "cat", 1: "dog", 2: "cup", 3: "bus"}
    model, inputs = model.double().eval(), {name: value.double() for name, value in inputs.items()}
    with torch.no_grad():  # some queries of the first sample say an object, some do not
        scores = model(pixel_values=inputs["pixel_values"][:1]).logits[0]
        margins = (scores[:, :4].amax(-1) - scores[:, 4]).sort().values
        model.class_labels_classifier.bias[-1] += (margins[2] + margins[3]) / 2
    return model, inputs


def site_of(model):
    return next(name for name, m in model.named_modules() if name.endswith("encoder.stages.1"))


def by_hook(model, inputs, read):
    """A and dA at the backbone's last stage for any number read off the output."""
    kept = []

    def leaf(m, i, o):
        kept.append(o.detach().requires_grad_())
        return kept[-1]

    hook = model.get_submodule(site_of(model)).register_forward_hook(leaf)
    value = read(model(**inputs))
    hook.remove()
    return kept[0].detach(), torch.autograd.grad(value.sum(), kept[0])[0], value.detach()


def objects(model, inputs, sample=0):
    with torch.no_grad():
        return (model(**inputs).logits[sample].argmax(-1) < 4).nonzero().flatten().tolist()


def test_the_class_score_of_a_detection_is_explained(detector):
    model, inputs = detector
    one = {"pixel_values": inputs["pixel_values"][:1]}
    query = objects(model, one)[0]
    found = zl.odam(model, one, target=zl.target.detection(query), site=site_of(model), baseline=zl.baseline.zeros())
    with torch.no_grad():
        label = int(model(**one).logits[0, query, :4].argmax())
    a, g, value = by_hook(model, one, lambda o: o.logits[:, query, label])
    assert torch.allclose(found.output, value)
    assert found.target == (f"logit of {model.config.id2label[label]} at detection {query}",)
    assert torch.allclose(found.per_pixel(), map_of(a, g, torch.zeros_like(a)), atol=1e-12)


COORDINATES = {
    "cx": lambda b: b[..., 0],
    "cy": lambda b: b[..., 1],
    "width": lambda b: b[..., 2],
    "height": lambda b: b[..., 3],
    "left": lambda b: b[..., 0] - b[..., 2] / 2,
    "top": lambda b: b[..., 1] - b[..., 3] / 2,
    "right": lambda b: b[..., 0] + b[..., 2] / 2,
    "bottom": lambda b: b[..., 1] + b[..., 3] / 2,
}


@pytest.mark.parametrize("coordinate", COORDINATES)
def test_every_coordinate_of_its_box_is_explained(detector, coordinate):
    model, inputs = detector
    one = {"pixel_values": inputs["pixel_values"][:1]}
    query = objects(model, one)[0]
    target = zl.target.box(query, coordinate)
    found = zl.odam(model, one, target=target, site=site_of(model), baseline=zl.baseline.zeros(), rectify=False)
    a, g, value = by_hook(model, one, lambda o: COORDINATES[coordinate](o.pred_boxes[:, query]))
    assert torch.allclose(found.output, value)
    assert torch.allclose(found.values, a * g, atol=1e-12)


def test_any_detector_is_explained_through_a_callable(detector):
    model, inputs = detector
    area = zl.target.output(lambda o: o.pred_boxes[:, 2, 2] * o.pred_boxes[:, 2, 3], "area of box 2")
    found = zl.odam(model, inputs, target=area, site=site_of(model), baseline=zl.baseline.zeros(), rectify=False)
    a, g, _ = by_hook(model, inputs, area.function)
    assert torch.allclose(found.values, a * g, atol=1e-12)


def test_the_best_detection_is_the_highest_class_score_among_queries_that_detect_something(detector):
    model, inputs = detector
    one = {"pixel_values": inputs["pixel_values"][:1]}
    there = objects(model, one)
    assert 0 < len(there) < 5
    found = zl.odam(model, one, target=zl.target.detection(), site=site_of(model), baseline=zl.baseline.zeros())
    with torch.no_grad():
        output = model(**one)
    assert float(found.output) == pytest.approx(float(output.logits[0, there, :4].max()), abs=1e-12)
    chosen = zl.target.detection(label="bus").resolve(output, {"cat": 0, "dog": 1, "cup": 2, "bus": 3})
    assert chosen.classes.tolist() == [3]
    assert chosen.queries.tolist()[0] in there


class Detections:
    """What a detector of three queries and two classes gives; the second query has the highest class logit, and is empty."""

    labels = MappingProxyType({"cat": 0, "dog": 1})

    @staticmethod
    def output(bias=0.0):
        logits = torch.tensor([[[1.0, 0.0, 0.0], [5.0, 0.0, 9.0], [0.0, 2.0, 0.0]], [[3.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 2.0, 0.0]]])
        logits[..., 2] += bias
        return {"logits": logits, "pred_boxes": torch.rand(2, 3, 4)}


def test_the_best_detection_may_be_another_query_in_each_sample_and_is_never_an_empty_one():
    chosen = zl.target.detection().resolve(Detections.output(), Detections.labels)
    assert chosen.queries.tolist() == [2, 0]
    assert chosen.describe(2) == ("logit of dog at detection 2", "logit of cat at detection 0")
    rows = torch.tensor([1, 0, 1])  # row r of a later pass is sample rows[r]
    later = {name: value[rows] for name, value in Detections.output().items()}
    assert chosen.read(later, rows).tolist() == [3.0, 2.0, 3.0]
    box = zl.target.box("top", "width").resolve(Detections.output(), Detections.labels)
    assert torch.equal(box.read(later, rows), later["pred_boxes"][torch.arange(3), torch.tensor([0, 2, 0]), 2])
    with pytest.raises(TargetError, match="the model says 'no object' at all of its 3 queries"):
        zl.target.detection().resolve(Detections.output(20.0), Detections.labels)


@pytest.mark.parametrize("index", ["best", 1.7, [1, 2], True, None])
def test_an_index_is_a_query_number_or_top(index):
    for make in (zl.target.detection, lambda i: zl.target.box(i, "left")):
        with pytest.raises(TargetError, match="give a query number, or 'top'"):
            make(index)


def test_no_detection_at_that_index_is_one_clear_error(detector):
    model, inputs = detector
    one = {"pixel_values": inputs["pixel_values"][:1]}
    there = objects(model, one)
    absent = next(q for q in range(5) if q not in there)
    for target, message in (
        (zl.target.detection(9), "detection 9 asked; the model has 5 queries: 0 to 4; detections: "),
        (zl.target.detection(absent), rf"no detection at {absent}: the model says 'no object' there \(0\.\d\d\); detections: {there[0]}"),
        (zl.target.box(absent, "left"), "no object"),
        (zl.target.detection(there[0], "tree"), "no class 'tree'; possible: cat, dog, cup, bus"),
        (zl.target.detection(there[0], 7), "class 7 asked; the detector has 4"),
    ):
        with pytest.raises(UsageError, match=message):
            zl.odam(model, one, target=target, site=site_of(model), baseline=zl.baseline.zeros())
    with pytest.raises(UsageError, match="no box coordinate 'middle'; possible: cx"):
        zl.target.box(0, "middle")
    classifier, x = made()
    with pytest.raises(TargetError, match="a detection target reads logits .* and pred_boxes"):
        zl.odam(classifier, x, target=zl.target.detection(0), site="features", baseline=zl.baseline.zeros())
