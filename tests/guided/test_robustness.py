"""Robustness over a set: the smallest epsilons are those of single rewritings, shares are counted by hand, fragility is one cell at a time."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import zeroline as zl
from guided.rewriting_toys import Bent, levels, photo, sized, tensor, two_classes
from zeroline import records, zoo
from zeroline.errors import LoadError, UsageError
from zeroline.maths.intervals import wilson
from zeroline.maths.rank import spearman
from zeroline.thresholds import Robustness


@pytest.fixture(scope="module")
def chosen():
    return zoo.test_set("digits-vit")[:6]


@pytest.fixture(scope="module")
def found(digits_vit, chosen):
    return zl.robustness(digits_vit, [s.image for s in chosen], names=[s.name for s in chosen], name="digits-vit")


def test_each_picture_has_the_epsilon_of_its_own_rewriting(digits_vit, chosen, found):
    for i, sample in enumerate(chosen):
        alone = zl.rewrite(digits_vit, sample.image, to="any", linf=16 / 255, smallest=True)
        assert alone.success
        assert float(found.smallest[i]) == pytest.approx(alone.linf, abs=1e-12)
        assert float(found.smallest[i]) == pytest.approx(np.abs(levels(alone.image) - levels(sample.image)).max() / 255, abs=1e-12)
        assert (found.own[i], found.to[i]) == (alone.own, alone.answer)
        assert float(found.ssim[i]) == pytest.approx(alone.ssim)
        assert int(found.evaluations[i]) == alone.evaluations


def test_rates_count_pictures(found):
    for level in (0.5, 1, 2, 3, 4, 5, 16):
        count = sum(round(float(s) * 255) <= level for s in found.smallest)
        assert found.rate(level / 255) == pytest.approx((count / 6, *wilson(count, 6)))
    curve = found.curve()
    assert [round(point["epsilon"] * 255) for point in curve] == list(range(1, 17))
    assert [point["share"] for point in curve] == sorted(point["share"] for point in curve)


def test_fragility_is_the_gain_of_one_cell_at_a_time(digits_vit, chosen, found):
    one = zl.rewrite(digits_vit, chosen[0].image, to="any", linf=16 / 255, smallest=True)
    to = int(one.settings["to"])

    def lead(image):
        scores = digits_vit(**zoo.preprocess("digits-vit", image)).logits[0].detach().double()
        return float(scores[to] - scores[torch.arange(10) != to].max())

    before, after = lead(chosen[0].image), lead(one.image)
    for row, column in ((0, 0), (3, 2), (5, 5), (7, 7)):
        mixed = levels(chosen[0].image).astype(np.uint8)
        place = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        mixed[place] = levels(one.image)[place]
        alone = (lead(Image.fromarray(mixed)) - before) / (after - before)
        assert float(found.fragility[0, row, column]) == pytest.approx(alone, abs=1e-4)
    assert float(found.additivity()[0]) == pytest.approx(float(found.fragility[0].sum()))


def test_cells_of_a_linear_model_add_up():
    image = photo(24, 32, 3, 60, 190)
    model, _ = two_classes(image)
    with torch.no_grad():
        scores = model(tensor(image).double())[0] - model.bias
        model.bias.copy_(torch.stack([torch.zeros(()).double(), scores[0] - scores[1] - 3.0]))
    found = zl.robustness(model, [image], preprocess=lambda i: tensor(i).double(), linf=8 / 255)
    assert bool(found.success[0])
    assert float(found.additivity()[0]) == pytest.approx(1, abs=1e-4)


def test_agreement_is_the_rank_correlation_with_attention_relevance(digits_vit, chosen, found):
    for i in (0, 3):
        own = zl.attention_relevance(digits_vit, chosen[i].inputs, target=found.own[i])
        assert float(found.agreement[i]) == pytest.approx(float(spearman(found.fragility[i].flatten(), own.grid()[0].double().flatten())), abs=1e-4)


def test_a_model_without_attention_has_no_agreement():
    found = zl.robustness(zoo.load("digits-cnn"), [zoo.test_set("digits-cnn")[0].image])
    assert math.isnan(float(found.agreement[0]))
    assert found.fragility.shape == (1, 8, 8)


def test_what_stands_within_the_budget_is_infinite_and_counts(chosen, digits_vit):
    found = zl.robustness(digits_vit, [s.image for s in chosen], linf=1 / 255, steps=3)
    stood = ~found.success
    assert bool(stood.any())
    assert bool(found.smallest[stood].isinf().all())
    assert bool(found.fragility[stood].isnan().all())
    assert found.rate(1 / 255)[0] == pytest.approx(float(found.success.double().mean()))
    assert found.median()[0] == math.inf
    assert "> 1/255" in repr(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_pictures_that_cannot_be_asked_about_are_named(digits_vit, chosen):
    small = Image.new("RGB", (6, 6))
    same = next(s for s in zoo.test_set("digits-vit") if s.labels[0] == 3)
    found = zl.robustness(digits_vit, [chosen[0].image, small, same.image], names=["a", "b", "c"], to="three")
    assert found.names == ("a",)
    assert "at least" in found.failures["b"]
    assert "already" in found.failures["c"]
    with pytest.raises(UsageError, match=r"none of the 1 pictures can be asked about; b: .*at least"):
        zl.robustness(digits_vit, [small], names=["b"])


def test_survival_is_the_share_of_the_rewritten_that_keep_the_new_class(digits_vit, chosen, found):
    kept = {name: [] for name in found.survived}
    for sample in chosen:
        one = zl.rewrite(digits_vit, sample.image, to="any", linf=16 / 255, smallest=True, relevance=False)
        for name, handled in one.survival.items():
            kept[name].append(handled.kept)
    assert found.survived == pytest.approx({name: float(np.mean(values)) for name, values in kept.items()})


def test_pictures_of_several_sizes_and_the_euclidean_norm():
    model = Bent(12, 16).eval()
    images = [photo(24, 32, 1), photo(30, 20, 2), photo(24, 32, 3)]
    found = zl.robustness(model, images, l2=3.0, preprocess=sized(16, 12))
    assert found.norm == "l2"
    for i, image in enumerate(images):
        alone = zl.rewrite(model, image, to="any", l2=3.0, smallest=True, preprocess=sized(16, 12), relevance=False)
        assert float(found.smallest[i]) == pytest.approx(alone.l2 if alone.success else math.inf)
    assert [point["epsilon"] for point in found.curve()][-1] == pytest.approx(3)


@pytest.mark.parametrize(
    ("how", "words"),
    [({"linf": 0.1, "l2": 1.0}, "one norm"), ({"linf": 0.0}, "budget of nothing"), ({"names": ["a"]}, "1 names were given for 2 images")],
)
def test_what_does_not_go_together_is_refused(digits_vit, chosen, how, words):
    with pytest.raises(UsageError, match=words):
        zl.robustness(digits_vit, [s.image for s in chosen[:2]], **how)


def test_no_picture_is_refused(digits_vit):
    with pytest.raises(UsageError, match="no image was given"):
        zl.robustness(digits_vit, [])


def test_the_record_comes_back(found, tmp_path):
    found.save(tmp_path / "r.safetensors")
    again = Robustness.load(tmp_path / "r.safetensors")
    assert repr(again) == repr(found)
    assert again.to_dict() == found.to_dict()
    for name in ("smallest", "psnr", "ssim", "evaluations", "fragility", "agreement"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    with pytest.raises(LoadError):
        zl.Rewriting.load(tmp_path / "r.safetensors")


@pytest.mark.parametrize("lacking", ["names", "smallest", "survived"])
def test_a_damaged_record_is_a_load_error(found, tmp_path, lacking):
    found.save(tmp_path / "r.safetensors")
    record, tensors = records.read(tmp_path / "r.safetensors", "a robustness")
    record.pop(lacking, None)
    tensors.pop(lacking, None)
    records.write(tmp_path / "r.safetensors", tensors, record)
    with pytest.raises(LoadError, match="damaged"):
        Robustness.load(tmp_path / "r.safetensors")


def test_the_most_fragile_picture_comes_first(found):
    shown = [row[3] for row in found.rows()]
    assert shown == sorted(shown, key=lambda words: float(words.split("/")[0]))


def test_progress_counts_pictures(digits_vit, chosen):
    seen = []
    zl.robustness(digits_vit, [s.image for s in chosen[:3]], report=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
