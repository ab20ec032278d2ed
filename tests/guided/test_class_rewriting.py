"""Class rewriting against closed forms, against the saved PNG read back by the test itself, and against what it must leave alone."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.optimize import linprog
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

import zeroline as zl
from guided.rewriting_toys import Bent, Linear, R, changed, lagging, levels, photo, sized, tensor, two_classes
from zeroline import zoo
from zeroline.errors import GradientError, InputError, ModelStateError, NonFiniteError, NotFoundError, TargetError, UsageError
from zeroline.guided.classifier import Classifier
from zeroline.guided.survival import HANDLINGS

HEIGHT, WIDTH = 24, 32
SAME = sized(WIDTH, HEIGHT)
PHOTOS = [photo(HEIGHT, WIDTH, seed, low=20, high=230) for seed in range(6)]


@pytest.fixture(scope="module")
def bent():
    return Bent(HEIGHT, WIDTH).double().eval()


@pytest.fixture(scope="module")
def nine():
    return zoo.samples("digits-vit")[3].image


@pytest.fixture(scope="module")
def cnn():
    return zoo.load("digits-cnn")


def answer(model, preprocess, image):
    """Scores of one picture, float64, asked without zeroline."""
    inputs = preprocess(image)
    like = next(model.parameters())
    with torch.no_grad():
        found = model(**{n: v.to(like.dtype) for n, v in inputs.items()}) if isinstance(inputs, dict) else model(inputs.to(like.dtype))
    return getattr(found, "logits", found)[0].double()


def read_back(found, folder):
    found.save_image(folder / "saved.png")
    with Image.open(folder / "saved.png") as opened:
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        return opened.copy()


def ssim(a, b):
    how = dict(channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return structural_similarity(levels(a).astype(float), levels(b).astype(float), **how)


def rewrite(model, image, **how):
    return zl.rewrite(model, image, **{"preprocess": SAME, "relevance": False, **how})


def same(a, b):
    """Two records of one picture: all but the relevance maps, and the last digits of probabilities."""
    one, other = a.to_dict(), b.to_dict()
    for when, shares in one.pop("probabilities").items():
        assert other["probabilities"][when] == pytest.approx(shares, rel=1e-6)
    del other["probabilities"]
    return torch.equal(a.rewritten, b.rewritten) and torch.equal(a.original, b.original) and one == other


# closed forms


@pytest.mark.parametrize("needed", [0.3, 0.9, 1.4, 2.6, 4.2, 7.5])
def test_the_least_l_infinity_of_a_linear_model_is_its_margin_over_the_one_norm(needed):
    for seed, image in enumerate(PHOTOS[:3]):
        model, w = two_classes(image, seed)
        lagging(model, image, by=needed / 255 * np.abs(w).sum())
        found = rewrite(model, image, to=1, linf=10 / 255, smallest=True)
        least = math.ceil(needed)
        assert found.success
        assert round(found.linf * 255) == least
        assert found.linf * 255 == pytest.approx(least, abs=1e-3)
        assert all(good == (round(epsilon * 255) >= least) for epsilon, good in found.tried)
        assert least == 1 or (least - 1) in [round(epsilon * 255) for epsilon, good in found.tried if not good]


@pytest.mark.parametrize("needed", [1.4, 2.6, 4.2])
def test_no_success_is_claimed_where_there_can_be_none(needed):
    image = PHOTOS[3]
    model, w = two_classes(image, 3)
    lagging(model, image, by=needed / 255 * np.abs(w).sum())
    found = rewrite(model, image, to=1, linf=math.floor(needed) / 255, restarts=2, steps=5)
    assert not found.success
    assert found.answer == "0"
    best = np.sign(w).reshape(3, HEIGHT, WIDTH).transpose(1, 2, 0) * math.floor(needed)  # what is nearest to success
    assert np.array_equal(levels(found.image) - levels(image), best)
    assert found.evaluations == 10


def shortest_in_whole_levels(w, gain):
    """The least L2 of a change in whole levels with w . change >= gain: levels bought one by one, the cheapest square per gain first."""
    sizes = np.arange(40)
    cost, what = np.repeat(2 * sizes + 1, len(w)), np.tile(np.abs(w), 40)
    order = np.argsort(cost / what)
    count = np.searchsorted(np.cumsum(what[order]) / 255, gain) + 1
    return np.sqrt(cost[order][:count].sum()) / 255


@pytest.mark.parametrize("needed", [0.02, 0.05, 0.3, 0.8])
def test_the_least_l2_of_a_linear_model_is_nearly_the_shortest_in_whole_levels(needed):
    for seed, image in enumerate(PHOTOS[:2]):
        model, w = two_classes(image, seed)
        lagging(model, image, by=needed * np.linalg.norm(w))
        found = rewrite(model, image, to=1, l2=2.0, smallest=True)
        length = np.linalg.norm((levels(found.image) - levels(image)) / 255)
        shortest = shortest_in_whole_levels(w, needed * np.linalg.norm(w))
        assert found.success
        assert length == pytest.approx(found.l2, rel=1e-6)
        assert needed < length  # |m| / |w|_2
        assert shortest * 0.999 <= length <= shortest * 1.06
        assert not rewrite(model, image, to=1, l2=needed * 0.99, steps=10).success


def test_no_rewriting_of_many_linear_classes_beats_the_linear_program_and_it_comes_near():
    for seed, image in enumerate(PHOTOS[:3]):
        draw = np.random.default_rng(seed)
        pixels = levels(image).transpose(2, 0, 1).ravel() / 255
        weight = draw.normal(size=(4, pixels.size))
        scores = weight @ pixels
        model = Linear(torch.from_numpy(weight), torch.from_numpy(np.array([9.0, 1.0, 0.0, 4.0]) - scores)).eval()
        own, to, own_scores = 0, 2, np.array([9.0, 1.0, 0.0, 4.0])
        others = [c for c in range(4) if c != to]
        # least t with (w_to - w_c) . d >= s_c - s_to and |d| <= t: in d+ and d- and t
        gain = np.stack([weight[to] - weight[c] for c in others])
        ones = np.ones((pixels.size, 1))
        upper = np.block([[-gain, np.zeros((3, 1))], [np.eye(pixels.size), -ones], [-np.eye(pixels.size), -ones]])
        limit = np.concatenate([-(own_scores[others] - own_scores[to]), np.zeros(2 * pixels.size)])
        bounds = [*zip(-pixels, 1 - pixels), (0, None)]
        least = linprog(np.r_[np.zeros(pixels.size), 1], upper, limit, bounds=bounds).x[-1] * 255
        found = rewrite(model, image, to=to, linf=30 / 255, smallest=True)
        assert found.success
        assert found.own == str(own)
        assert least <= round(found.linf * 255) <= math.ceil(least) + 1


# every budget, on the PNG


PLACE = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
PLACE[4:17, 9:30] = True
BUDGETS = {
    "default": {},
    "linf": dict(linf=3 / 255),
    "linf between levels": dict(linf=3.9 / 255),
    "l2": dict(l2=0.35),
    "ssim": dict(ssim=0.97),
    "linf and l2": dict(linf=2 / 255, l2=0.3),
    "linf and ssim": dict(linf=6 / 255, ssim=0.98),
    "l2 and ssim": dict(l2=0.2, ssim=0.99),
    "where": dict(where=PLACE),
    "where and linf": dict(where=PLACE, linf=8 / 255),
    "where and l2": dict(where=PLACE, l2=0.4),
    "where and ssim": dict(where=PLACE, ssim=0.95),
    "patches in a place": dict(where=PLACE, patches=9),
    "patches in a place, linf": dict(where=PLACE, patches=5, linf=12 / 255),
    "restarts": dict(linf=1 / 255, restarts=3, steps=8),
    "smallest": dict(linf=9 / 255, smallest=True),
    "smallest l2": dict(l2=1.5, smallest=True, steps=15),
    "smallest in a place": dict(where=PLACE, linf=40 / 255, smallest=True),
    "lead": dict(linf=9 / 255, lead=0.4),
}


def keeps(found, image, saved, how, slack=0.0):
    off = levels(saved) - levels(image)
    if "linf" in how or not set(how) & {"l2", "ssim", "patches", "where"}:
        assert np.abs(off).max() <= math.floor(how.get("linf", 4 / 255) * 255 + 1e-6)
    if "l2" in how:
        assert np.linalg.norm(off / 255) <= how["l2"] * (1 + 1e-7)
    if "ssim" in how:
        assert ssim(saved, image) >= how["ssim"] - slack
    if "where" in how and "patches" not in how:
        assert not changed(saved, image)[~how["where"].numpy()].any()


@pytest.mark.parametrize("name", BUDGETS)
def test_the_saved_picture_keeps_every_budget_and_is_judged_as_it_is(bent, tmp_path, name):
    how = BUDGETS[name]
    for image, to in itertools.product(PHOTOS[:2], ["second", "any"]):
        found = rewrite(bent, image, to=to, **how)
        saved = read_back(found, tmp_path)
        keeps(found, image, saved, how, slack=1e-7)
        before, after = answer(bent, SAME, image), answer(bent, SAME, saved)
        target = int(found.settings["to"])
        rest = torch.cat([after[:target], after[target + 1 :]]).max()
        assert found.own == str(int(before.argmax()))
        assert found.answer == str(int(after.argmax()))
        assert found.success == (float(after[target] - rest) > how.get("lead", 0.0))
        assert target != int(before.argmax())
        assert to == "any" or target == int(before.topk(2).indices[1])
        assert found.budget == pytest.approx(
            {
                k: math.floor(v * 255 + 1e-6) / 255 if k == "linf" else v
                for k, v in ({"linf": 4 / 255} if name in ("default",) else how).items()
                if k in ("linf", "l2", "ssim", "patches")
            }
        )


def test_most_of_these_budgets_are_wide_enough(bent):
    assert sum(rewrite(bent, PHOTOS[0], to="second", **how).success for how in BUDGETS.values()) >= 10


def test_patches_are_those_where_the_place_has_most_pixels(bent, tmp_path):
    place = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    place[3:12, 8:16] = True  # cells of 3 x 4 pixels: rows 1 to 3, columns 2 and 3 are full
    for count in (1, 4, 6, 20):
        found = rewrite(bent, PHOTOS[0], to="second", patches=count, where=place)
        cells = changed(read_back(found, tmp_path), PHOTOS[0]).reshape(8, 3, 8, 4).any((1, 3))
        assert found.touched == cells.sum() == min(count, 6)
        assert cells[1:4, 2:4].sum() == cells.sum()
        assert found.grid == (8, 8)


def test_patches_are_those_with_most_relevance_for_the_present_class(digits_vit, nine, tmp_path):
    heat = zl.attention_relevance(digits_vit, zoo.preprocess("digits-vit", nine), target="nine").grid()[0]
    for count in (1, 5):
        found = zl.rewrite(digits_vit, nine, to="four", patches=count, relevance=False)
        cells = changed(read_back(found, tmp_path), nine).reshape(8, 8, 8, 8).any((1, 3))
        best = torch.zeros(64, dtype=torch.bool)
        best[heat.flatten().topk(count).indices] = True
        assert np.array_equal(cells, best.view(8, 8).numpy())
        assert found.touched == count


def test_a_target_that_covers_the_digit_is_reached_through_ground_truth_alone(digits_vit, tmp_path):
    sample = zoo.samples("digits-vit")[3]
    found = zl.rewrite(digits_vit, sample.image, to="four", patches=12, where=sample.masks[0], linf=24 / 255, relevance=False)
    cells = changed(read_back(found, tmp_path), sample.image).reshape(8, 8, 8, 8).any((1, 3))
    inside = sample.masks[0].numpy().reshape(8, 8, 8, 8).sum((1, 3))
    assert 0 < cells.sum() <= 12
    assert (inside[cells] > 0).all()
    assert inside[cells].min() >= np.sort(inside.ravel())[::-1][11]


def test_an_epsilon_between_two_levels_is_the_lower_one(bent):
    assert same(rewrite(bent, PHOTOS[0], to="second", linf=3.9 / 255), rewrite(bent, PHOTOS[0], to="second", linf=3 / 255))


def test_the_default_budget_is_four_levels(bent):
    assert same(rewrite(bent, PHOTOS[0], to="second"), rewrite(bent, PHOTOS[0], to="second", linf=4 / 255))


def test_a_greater_lead_is_kept_and_reached_by_more_than_it(bent):
    for lead in (0.2, 0.8):
        found = rewrite(bent, PHOTOS[0], to="second", linf=30 / 255, lead=lead)
        assert found.success
        after = answer(bent, SAME, found.image).sort().values
        assert float(after[-1] - after[-2]) > lead
        hopeless = rewrite(bent, PHOTOS[0], to="second", linf=30 / 255, lead=100.0, steps=3)
        assert not hopeless.success
        assert hopeless.answer == found.to  # the model says it, but does not lead by a hundred logits


# the smallest


@pytest.mark.parametrize("which", [dict(linf=24 / 255), dict(l2=2.0), dict(linf=40 / 255, where=PLACE), dict(l2=2.0, linf=12 / 255)])
def test_the_smallest_is_never_larger_and_what_was_tried_says_why(bent, which):
    for image in PHOTOS[:3]:
        plain, least = (rewrite(bent, image, to="second", smallest=smallest, steps=20, **which) for smallest in (False, True))
        assert plain.success
        assert least.success
        assert plain.tried == ()
        norm = "l2" if "l2" in which else "linf"
        assert getattr(least, norm) <= getattr(plain, norm) + 1e-9
        assert least.tried[0] == (pytest.approx(which[norm]), True)
        failed = [epsilon for epsilon, good in least.tried if not good]
        good = [epsilon for epsilon, good in least.tried if good]
        assert getattr(least, norm) <= min(good) + 1e-6
        assert max(failed, default=0) < min(good)
        if norm == "linf":
            needed = round(least.linf * 255)
            assert needed == 1 or needed - 1 in [round(epsilon * 255) for epsilon in failed]
        else:
            assert max(failed) > getattr(least, norm) / 1.06


def test_the_smallest_of_an_impossible_budget_was_tried_once(bent):
    found = rewrite(bent, PHOTOS[0], to="second", linf=1 / 255, lead=50.0, smallest=True, steps=4)
    assert not found.success
    assert found.tried == ((1 / 255, False),)


@pytest.mark.parametrize("seed", range(4))
def test_where_the_path_errs_the_saved_picture_decides(seed, tmp_path):
    """A resize that rounds, and a model whose margins are as small as that rounding."""
    preprocess = sized(13, 11)
    model = Bent(11, 13, seed=seed, gain=12.0).double().eval()
    found = rewrite(model, PHOTOS[seed], to="second", linf=20 / 255, smallest=True, preprocess=preprocess, steps=10)
    assert 0.05 < found.settings["gap"] < 1.5
    saved = read_back(found, tmp_path)
    assert found.success == any(good for _, good in found.tried)
    assert found.success == (int(answer(model, preprocess, saved).argmax()) == int(found.settings["to"]))


def test_the_judge_is_asked_of_pictures_on_disk(bent):
    """Nothing but 8-bit pictures of the file's own mode and size reach the preprocessing."""
    seen = []

    def preprocess(image):
        seen.append(image)
        return SAME(image)

    found = rewrite(bent, PHOTOS[0], to="second", linf=6 / 255, preprocess=preprocess)
    assert found.judged >= 1
    assert any(np.array_equal(levels(image), levels(found.image)) for image in seen)
    assert {image.mode for image in seen} == {"RGB"}


# what the record says


@pytest.mark.parametrize("how", [dict(linf=5 / 255), dict(l2=0.4), dict(where=PLACE)])
def test_the_distances_are_those_of_scikit_image_and_numpy(bent, how):
    for image in PHOTOS[:2]:
        found = rewrite(bent, image, to="second", **how)
        off = (levels(found.image) - levels(image)) / 255
        assert np.array_equal(found.original.permute(1, 2, 0).numpy(), levels(image))
        assert found.linf == pytest.approx(np.abs(off).max(), abs=1e-6)
        assert found.l2 == pytest.approx(np.linalg.norm(off), rel=1e-6)
        assert found.psnr == pytest.approx(peak_signal_noise_ratio(levels(image), levels(found.image), data_range=255), abs=1e-3)
        assert found.ssim == pytest.approx(ssim(found.image, image), abs=1e-7)
        assert found.touched == changed(found.image, image).reshape(8, 3, 8, 4).any((1, 3)).sum()
        assert np.array_equal(found.difference.permute(1, 2, 0).numpy(), levels(found.image) - levels(image))


def test_probabilities_are_softmax_of_the_models_scores(bent):
    found = rewrite(bent, PHOTOS[0], to="second", linf=6 / 255)
    for when, image in (("before", PHOTOS[0]), ("after", found.image)):
        shares = answer(bent, SAME, image).softmax(-1)
        assert found.probabilities[when] == pytest.approx({"own": float(shares[int(found.own)]), "to": float(shares[int(found.to)])})


def handled(image):
    """The three handlings, by hand."""
    import io

    kept = io.BytesIO()
    image.save(kept, "JPEG", quality=90)
    moved = levels(image).copy()
    moved[:, 1:] = levels(image)[:, :-1]
    smaller = image.resize((round(image.width * 0.95), round(image.height * 0.95)), R.BICUBIC)
    return {"JPEG 90": Image.open(kept).convert("RGB"), "one-pixel shift": Image.fromarray(moved.astype(np.uint8)), "5 % rescale": smaller}


def test_survival_is_the_models_answer_after_each_handling(digits_vit, nine):
    found = zl.rewrite(digits_vit, nine, to="second", linf=8 / 255, relevance=False)
    names = digits_vit.config.id2label
    prepared = lambda image: zoo.preprocess("digits-vit", image)  # noqa: E731
    before, after = handled(nine), handled(found.image)
    assert set(found.survival) == {"JPEG 90", "one-pixel shift", "5 % rescale"}
    for name, one in found.survival.items():
        assert one.original == names[int(answer(digits_vit, prepared, before[name]).argmax())]
        assert one.rewritten == names[int(answer(digits_vit, prepared, after[name]).argmax())]
        assert one.kept == (one.rewritten == found.to)


@pytest.mark.parametrize("size", [(12, 13), (40, 31), (64, 64)])
def test_the_handlings_are_those_of_their_names(size):
    image = photo(*size, 4)
    for name, expected in handled(image).items():
        got = HANDLINGS[name](image)
        assert got.size == expected.size
        assert np.array_equal(levels(got), levels(expected))
    assert np.array_equal(levels(image), levels(photo(*size, 4)))


def test_a_class_that_outlives_everything_and_one_that_outlives_nothing():
    """A model that looks at the mean only keeps its class; one that looks at the finest checks loses it."""

    class Mean(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(100.0))
            self.by = by

        def forward(self, pixels):
            high, wide = pixels.shape[-2:]
            checks = ((torch.arange(high)[:, None] + torch.arange(wide)[None]) % 2).to(pixels) * 2 - 1
            value = (pixels - 0.5).mean((1, 2, 3)) if self.by == "mean" else (pixels * checks).mean((1, 2, 3))
            return torch.stack([value * 0, (value - 0.02) * self.scale], 1)

    flat = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
    outlives = rewrite(Mean("mean").eval(), flat, to=1, linf=12 / 255, preprocess=tensor, lead=0.5)
    assert outlives.success
    assert all(one.kept and one.rewritten == "1" and one.original == "0" for one in outlives.survival.values())
    fragile = rewrite(Mean("checks").eval(), flat, to=1, linf=12 / 255, preprocess=tensor)
    assert fragile.success
    assert not fragile.survival["one-pixel shift"].kept
    assert not fragile.survival["5 % rescale"].kept


def test_relevance_is_that_of_both_classes_on_both_pictures(digits_vit, nine):
    found = zl.rewrite(digits_vit, nine, to="four", linf=6 / 255)
    alone = {
        "before": zl.attention_relevance(digits_vit, zoo.preprocess("digits-vit", nine), target="nine"),
        "after": zl.attention_relevance(digits_vit, zoo.preprocess("digits-vit", found.image), target="four"),
    }
    assert set(found.relevance) == set(alone)
    for when, one in alone.items():
        assert torch.allclose(found.relevance[when].grid(), one.grid(), atol=1e-6)
    assert zl.rewrite(digits_vit, nine, to="four", linf=6 / 255, relevance=False).relevance == {}


def test_a_model_without_attention_says_so(cnn, nine):
    found = zl.rewrite(cnn, nine, to="second", linf=6 / 255)
    assert found.relevance == {}
    assert any("no attention relevance: the model has no attention" in note for note in found.notes)
    with pytest.raises(UsageError, match="patches are ranked by attention relevance, which this model has none of"):
        zl.rewrite(cnn, nine, to="second", patches=4)


# the zoo's models through their own preprocessing


@pytest.mark.parametrize("name", ["digits-vit", "digits-cnn"])
def test_the_zoos_models_are_rewritten_through_what_they_came_with(name, cnn, digits_vit, tmp_path):
    model = {"digits-vit": digits_vit, "digits-cnn": cnn}[name]
    sample = zoo.test_set(name)[17]
    wide = sample.image.resize((90, 71), R.BICUBIC)  # neither square nor of the model's size
    names = model.config.id2label
    for image in (sample.image, wide):
        found = zl.rewrite(model, image, to="second", linf=8 / 255, relevance=False)
        saved = read_back(found, tmp_path)
        assert found.success
        assert names[int(answer(model, lambda i: zoo.preprocess(name, i), saved).argmax())] == found.to == found.answer
        assert names[int(answer(model, lambda i: zoo.preprocess(name, i), image).argmax())] == found.own
        assert np.abs(levels(saved) - levels(image)).max() <= 8


def test_a_class_is_a_number_or_a_name(digits_vit, nine):
    by_name, by_number = (zl.rewrite(digits_vit, nine, to=to, linf=6 / 255, relevance=False) for to in ("Four", 4))
    assert torch.equal(by_name.rewritten, by_number.rewritten)
    assert by_name.to == by_number.to == "four"
    named = zl.rewrite(digits_vit, nine, to="d4", linf=6 / 255, relevance=False, labels={f"d{i}": i for i in range(10)})
    assert torch.equal(named.rewritten, by_name.rewritten)
    assert (named.own, named.to) == ("d9", "d4")


def test_any_is_whichever_leads_the_present_class_first(bent):
    for image in PHOTOS:
        found = rewrite(bent, image, to="any", linf=20 / 255)
        assert found.success
        assert found.settings["asked"] == "any"
        assert found.to == found.answer != found.own


def test_labels_that_are_called_any_or_second_are_classes(bent):
    image = PHOTOS[0]
    own = int(answer(bent, SAME, image).argmax())
    least = int(answer(bent, SAME, image).argmin())
    assert least != own
    for word in ("any", "second"):
        found = rewrite(bent, image, to=word, linf=40 / 255, labels={word: least}, steps=5)
        assert int(found.settings["to"]) == least


PREPARED = {
    "cropped": lambda image: tensor(image.resize((40, 30)).crop((4, 3, 36, 27))),
    "letterboxed": lambda image: tensor(ImageOps.pad(image, (WIDTH, HEIGHT), color=(90, 20, 200))),
    "mirrored BGR, as a mapping": lambda image: {"pixels": SAME(ImageOps.mirror(image)).flip(1)},
    "grey": lambda image: SAME(image.convert("L")) * 2 - 1,
}


@pytest.mark.parametrize("name", PREPARED)
def test_a_picture_is_rewritten_through_other_preprocessing(name, tmp_path):
    model = Bent(HEIGHT, WIDTH, seed=2).double().eval()
    image = photo(37, 45, 5)

    def preprocess(image):
        found = PREPARED[name](image)
        return found["pixels"] if isinstance(found, dict) else found

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, pixels):
            return {"logits": self.inner(pixels)}

    asked = Named().eval() if "mapping" in name else model
    found = zl.rewrite(asked, image, to="second", linf=10 / 255, preprocess=PREPARED[name], relevance=False)
    assert found.success
    assert int(answer(model, preprocess, read_back(found, tmp_path)).argmax()) == int(found.settings["to"])
    if name == "cropped":  # what the model never sees is never changed
        assert not changed(found.image, image)[:, :3].any()


# laws


def test_a_batch_is_what_its_pictures_are_alone_whatever_their_order_and_size():
    model = Bent(HEIGHT, WIDTH).double().eval()
    images = [*PHOTOS[:3], photo(30, 25, 7), photo(30, 25, 8), photo(25, 30, 9)]
    names = [int(answer(model, SAME, image).argmax()) for image in images]
    to = ["second", "any", (names[2] + 1) % 4, "any", (names[4] + 2) % 4, "second"]
    where = [None, PLACE, None, None, torch.ones(30, 25, dtype=torch.bool), None]
    for how in (dict(linf=3 / 255, restarts=2, steps=8, seed=5), dict(linf=12 / 255, smallest=True, steps=10), dict(l2=0.5), dict(ssim=0.98)):
        told = []
        together = rewrite(model, images, to=to, where=where, report=lambda done, total: told.append((done, total)), **how)  # noqa: B023
        assert told == [(k, 6) for k in range(1, 7)]
        alone = [rewrite(model, image, to=t, where=w, **how) for image, t, w in zip(images, to, where)]
        assert all(map(same, together, alone))
        order = [4, 0, 5, 2, 1, 3]
        again = rewrite(model, [images[k] for k in order], to=[to[k] for k in order], where=[where[k] for k in order], **how)
        assert all(same(one, together[k]) for one, k in zip(again, order))


def test_more_pictures_than_fit_a_batch():
    model = Bent(12, 16).double().eval()
    images = [photo(12, 16, seed) for seed in range(35)]
    together = rewrite(model, images, to="any", linf=6 / 255, preprocess=sized(16, 12), steps=10)
    for number in (0, 31, 32, 34):
        assert same(together[number], rewrite(model, images[number], to="any", linf=6 / 255, preprocess=sized(16, 12), steps=10))


def test_a_batch_of_the_zoo_is_what_its_pictures_are_alone():
    model = copy.deepcopy(zoo.load("digits-vit")).double()
    images = [sample.image for sample in zoo.test_set("digits-vit")[:3]]
    together = zl.rewrite(model, images, to="second", patches=8, linf=16 / 255, steps=6)
    for image, one in zip(images, together):
        alone = zl.rewrite(model, image, to="second", patches=8, linf=16 / 255, steps=6)
        assert torch.equal(alone.rewritten, one.rewritten)
        assert alone.survival == one.survival
        assert torch.allclose(alone.relevance["after"].grid(), one.relevance["after"].grid(), atol=1e-9)


def test_a_mask_of_one_picture_leaves_the_budget_of_the_other(bent):
    alone = rewrite(bent, PHOTOS[1], to="second")
    assert same(rewrite(bent, PHOTOS[:2], to="second", where=[PLACE, None])[1], alone)


def test_a_smooth_picture_before_a_hard_one_changes_nothing():
    model = Bent(11, 13).double().eval()
    smooth = Image.fromarray(np.tile(np.linspace(40, 200, WIDTH).astype(np.uint8), (HEIGHT, 1))).convert("RGB")
    hard = Image.fromarray(np.kron(np.random.default_rng(0).integers(0, 2, (6, 8)), np.ones((4, 4))).astype(np.uint8) * 255).convert("RGB")

    def preprocess(image):
        return nn.functional.interpolate(tensor(image), (11, 13), mode="bicubic")

    alone = rewrite(model, hard, to="second", preprocess=preprocess)
    assert same(rewrite(model, [smooth, hard], to="second", preprocess=preprocess)[1], alone)


def test_the_same_seed_makes_the_same_picture_and_another_seed_may_not(bent):
    how = dict(to="second", linf=1 / 255, restarts=3, steps=6)
    assert same(rewrite(bent, PHOTOS[0], seed=4, **how), rewrite(bent, PHOTOS[0], seed=4, **how))
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert same(rewrite(bent, PHOTOS[0], seed=4, **how), rewrite(bent, PHOTOS[0], seed=4, **how))
        state = torch.random.get_rng_state()
        rewrite(bent, PHOTOS[0], seed=4, **how)
        assert torch.equal(torch.random.get_rng_state(), state)
    hopeless = dict(to="second", linf=2 / 255, restarts=2, steps=1, lead=60.0)
    others = [rewrite(bent, image, seed=seed, **hopeless) for image in PHOTOS[:1] for seed in (0, 1)]
    assert others[0].settings["seed"] != others[1].settings["seed"]


def test_every_attempt_counts_its_gradients(bent):
    for steps, restarts in ((1, 1), (7, 1), (3, 4)):
        found = rewrite(bent, PHOTOS[0], to="second", linf=1 / 255, lead=60.0, steps=steps, restarts=restarts)
        assert not found.success
        assert found.evaluations == steps * restarts
        assert found.judged == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(bent, mode):
    plain = rewrite(bent, PHOTOS[0], to="second", linf=6 / 255)
    with mode():
        found = rewrite(bent, PHOTOS[0], to="second", linf=6 / 255)
    assert plain.success
    assert same(found, plain)
    assert not found.rewritten.requires_grad


def trace(model):
    """Everything of a model that a rewriting might touch."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
        [m.training for m in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        [sorted(vars(m)) for m in model.modules()],
    )


def unchanged(before, after):
    return all(torch.equal(before[0][name], after[0][name]) for name in before[0]) and before[0].keys() == after[0].keys() and before[1:] == after[1:]


class Failing(Bent):
    """Raises on a call to come."""

    def __init__(self, at):
        super().__init__(HEIGHT, WIDTH)
        self.at, self.calls = at, 0

    def forward(self, pixels):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("no more")
        return super().forward(pixels)


def test_the_model_is_as_it_was(nine):
    for name in ("digits-vit", "digits-cnn"):
        model = zoo.load(name)
        next(model.parameters()).requires_grad_(False)
        before = trace(model)
        zl.rewrite(model, nine, to="second", linf=6 / 255)
        assert unchanged(before, trace(model))


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_the_model_is_as_it_was_after_an_exception(at):
    model = Failing(at).eval()
    model.second.requires_grad_(False)
    before = trace(model)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="no more"):
            rewrite(model, PHOTOS[0], to="second", linf=6 / 255)
        assert not torch.is_grad_enabled()
    assert unchanged(before, trace(model))


def test_the_pictures_given_are_as_they_were(bent):
    image = with_alpha = PHOTOS[0].copy()
    with_alpha.putalpha(200)
    before = with_alpha.tobytes(), with_alpha.mode
    rewrite(bent, image, to="second")
    assert (image.tobytes(), image.mode) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_precision(digits_vit, nine, dtype, tmp_path):
    model = copy.deepcopy(digits_vit).to(dtype)
    found = zl.rewrite(model, nine, to="second", linf=8 / 255, relevance=False)
    saved = read_back(found, tmp_path)
    assert found.success
    assert int(answer(model, lambda image: zoo.preprocess("digits-vit", image), saved).argmax()) == int(found.settings["to"])
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_single_and_double_precision_agree_on_what_is_found(digits_vit, nine):
    plain = zl.rewrite(digits_vit, nine, to="second", linf=8 / 255, smallest=True, relevance=False)
    double = zl.rewrite(copy.deepcopy(digits_vit).double(), nine, to="second", linf=8 / 255, smallest=True, relevance=False)
    assert (plain.to, plain.success, plain.linf) == (double.to, double.success, double.linf)


def test_success_is_brought_back_along_its_own_line():
    """Of a linear model the least share of a change is known: 20.3 levels of those that the first step took."""
    image = photo(HEIGHT, WIDTH, 3, low=90, high=160)
    model, w = two_classes(image, 3)
    lagging(model, image, by=20.3 / 255 * np.abs(w).sum())
    found = rewrite(model, image, to=1, linf=60 / 255)
    assert found.success
    assert found.evaluations <= 2
    assert 21 <= round(found.linf * 255) <= 22


def test_gradients_are_counted_over_the_whole_bisection(bent):
    counted = Bent(HEIGHT, WIDTH).double().eval()
    calls = []
    counted.register_forward_pre_hook(lambda module, given: calls.append(given[0].requires_grad))
    for how in (dict(linf=12 / 255, smallest=True), dict(l2=1.0, smallest=True, steps=6), dict(linf=1 / 255, restarts=3, lead=50.0, steps=4)):
        calls.clear()
        assert rewrite(counted, PHOTOS[0], to="second", **how).evaluations == sum(calls)


def test_every_picture_keeps_its_own_place_while_others_drop_out(bent):
    corner, left = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    corner[:1, :1], left[:, :16] = True, True
    places = [corner, PLACE, left]
    found = rewrite(bent, PHOTOS[:3], to="second", where=places, linf=60 / 255, smallest=True, steps=8)
    assert [one.success for one in found] == [False, True, True]
    for one, image, place in zip(found, PHOTOS, places):
        assert not changed(one.image, image)[~place.numpy()].any()
        assert same(one, rewrite(bent, image, to="second", where=place, linf=60 / 255, smallest=True, steps=8))


def test_patches_need_not_be_square(tmp_path):
    class Patched(Bent):
        class config:
            patch_size = (6, 4)

    place = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    place[6:12, 8:16] = True  # one row of patches, two columns
    found = rewrite(Patched(HEIGHT, WIDTH).eval(), PHOTOS[0], to="second", where=place, patches=2, linf=60 / 255)
    assert found.grid == (4, 8)
    assert np.array_equal(changed(read_back(found, tmp_path), PHOTOS[0]), place.numpy())


def test_more_pictures_than_fit_one_call_are_all_asked():
    model, images = Bent(12, 16).double().eval(), [photo(12, 16, seed) for seed in range(40)]
    images[7] = photo(15, 12, 7)  # of another size, as prepared too
    said = Classifier(model, lambda image: tensor(image) if image.width == 16 else sized(16, 12)(image), {})
    expected = torch.stack([answer(model, said.preprocess, image) for image in images])
    assert torch.allclose(said.scores(images), expected)


# input that is converted, or refused


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK"])
def test_other_pictures_are_converted_and_the_record_says_so(bent, mode):
    given = PHOTOS[0].convert("RGB")
    if mode in ("RGBA", "LA"):
        given = given.convert(mode)
        given.putalpha(77)
    else:
        given = given.convert(mode)
    found = rewrite(bent, given, to="second", linf=8 / 255)
    assert f"{mode} converted to RGB" in found.notes[0]
    assert ("transparency dropped" in found.notes[0]) == ("A" in mode)
    assert np.array_equal(found.original.permute(1, 2, 0).numpy(), levels(given))
    assert rewrite(bent, PHOTOS[0], to="second", linf=8 / 255).notes == ()


def test_sixteen_bits_are_converted_and_the_record_says_so(bent):
    deep = Image.fromarray((levels(PHOTOS[0])[..., 0] * 257).astype(np.uint16))
    found = rewrite(bent, deep, to="second", linf=8 / 255)
    assert found.notes == ("16-bit grey brought to 8 bits per channel",)
    assert np.array_equal(found.original[1].numpy(), levels(PHOTOS[0])[..., 0])


def refused(error, words, model, image=None, **how):
    with pytest.raises(error, match=words):
        rewrite(model, PHOTOS[0] if image is None else image, **{"to": "second", **how})


def test_the_present_class_is_refused(bent, digits_vit, nine):
    own = int(answer(bent, SAME, PHOTOS[0]).argmax())
    refused(TargetError, f"says '{own}' of this picture already; ask for another class", bent, to=own)
    with pytest.raises(TargetError, match="says 'nine' of this picture already"):
        zl.rewrite(digits_vit, nine, to="nine")
    with pytest.raises(TargetError, match="says 'nine' of this picture already"):
        zl.rewrite(digits_vit, [nine, nine], to=["four", 9])


def test_an_unknown_class_is_refused(digits_vit, nine, bent):
    with pytest.raises(NotFoundError, match="'fuor'.*nearest: four"):
        zl.rewrite(digits_vit, nine, to="fuor")
    with pytest.raises(TargetError, match="10"):
        zl.rewrite(digits_vit, nine, to=10)
    refused((TargetError, NotFoundError), "four", bent, to="four")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (dict(linf=0), "linf=0: a budget of nothing"),
        (dict(l2=0.0), "l2=0: a budget of nothing"),
        (dict(patches=0), "patches=0: a budget of nothing"),
        (dict(linf=-1 / 255), "a budget of nothing"),
        (dict(linf=float("nan")), "linf=nan"),
        (dict(l2=float("inf")), "l2=inf"),
        (dict(linf=0.99 / 255), "less than 1/255, one level of an 8-bit picture"),
        (dict(linf=4), "linf=4: pixels lie in 0..1; write 4 levels as 4/255"),
        (dict(ssim=1.0), "ssim=1 was asked; the least similarity lies between 0 and 1"),
        (dict(ssim=0.0), "between 0 and 1"),
        (dict(ssim=float("nan")), "between 0 and 1"),
        (dict(steps=0), "0 steps and 1 restarts"),
        (dict(restarts=0), "at least 1 of each"),
        (dict(lead=-0.1), "lead=-0.1 logits was asked; at least 0"),
        (dict(lead=float("inf")), "lead=inf"),
        (dict(smallest=True), "smallest looks for the least epsilon"),
        (dict(smallest=True, ssim=0.9), "smallest looks for the least epsilon"),
        (dict(patches=65, where=torch.ones(HEIGHT, WIDTH)), "65 patches were asked; the model has 8 x 8 = 64"),
        (dict(where=torch.ones(3, 4)), r"where is \(3, 4\); the picture is 24 x 32"),
        (dict(where=torch.zeros(HEIGHT, WIDTH)), "where holds no pixel"),
        (dict(to=[1, 2]), "2 classes were given for 1 images"),
        (dict(where=[None, None]), "2 masks were given for 1 images"),
    ],
)
def test_a_budget_of_nothing_and_options_that_do_not_fit_are_refused(bent, how, words):
    if how == dict(smallest=True):
        how = dict(smallest=True, where=torch.ones(HEIGHT, WIDTH))
    with pytest.raises((UsageError, InputError), match=words):
        rewrite(bent, PHOTOS[0], **{"to": "second", **how})


def test_an_l2_of_less_than_a_level_is_refused_as_well(bent):
    refused(UsageError, "one level", bent, l2=0.9 / 255)


def test_no_picture_is_refused(bent):
    with pytest.raises(UsageError, match="no image was given"):
        rewrite(bent, [], to=[])
    for nothing in (torch.zeros(3, 24, 32), np.zeros((24, 32, 3), np.uint8)):
        refused(InputError, "a picture is a PIL image, not", bent, nothing)


def test_a_picture_smaller_than_a_patch_is_refused(bent, digits_vit):
    refused(InputError, "the picture is 40 x 10; at least 11 x 11", bent, photo(10, 40))
    assert rewrite(bent, photo(11, 40), to="second", linf=40 / 255).original.shape == (3, 11, 40)
    with pytest.raises(InputError, match="at least"):
        zl.rewrite(digits_vit, photo(7, 64), to="second")

    class Patched(Bent):
        class config:
            patch_size = 16

    refused(InputError, "the picture is 15 x 40; at least 16 x 16", Patched(HEIGHT, WIDTH).eval(), photo(40, 15))


def test_preprocessing_without_a_gradient_is_refused(bent):
    draw = np.random.default_rng(0)
    for step in (ImageOps.equalize, ImageOps.autocontrast, ImageOps.solarize):
        refused(InputError, "does more than resize, crop, pad and normalise", bent, preprocess=lambda image, step=step: SAME(step(image)))
    refused(
        InputError,
        "does more than|not the same twice",
        bent,
        preprocess=lambda image: SAME(image) + torch.from_numpy(draw.normal(size=(1, 3, 1, 1))).float(),
    )

    class Reader(Bent):
        def forward(self, ids):
            return self.second.sum(1)[None] + ids.sum()

    refused(InputError, "gives no image", Reader(HEIGHT, WIDTH).eval(), preprocess=lambda image: {"ids": torch.zeros(1, 3)})
    with pytest.raises(InputError, match="does not say how pictures are prepared.*give preprocess="):
        zl.rewrite(bent, PHOTOS[0], to="second")


def test_scores_without_a_gradient_are_refused(bent):
    class Detached(Bent):
        def forward(self, pixels):
            return super().forward(pixels.detach())

    class Counted(Bent):
        def forward(self, pixels):
            return super().forward(pixels).round().detach()

    for model in (Detached(HEIGHT, WIDTH).eval(), Counted(HEIGHT, WIDTH).eval()):
        refused(GradientError, "no gradient with respect to its image", model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(value):
    class Broken(Bent):
        def forward(self, pixels):
            return super().forward(pixels) * torch.tensor([1.0, 1.0, value, 1.0])

    refused(NonFiniteError, "NaN or infinity", Broken(HEIGHT, WIDTH).eval())


def test_scores_that_are_no_numbers_on_the_saved_picture_only_are_refused(bent):
    class Late(Bent):
        def forward(self, pixels):
            found = super().forward(pixels)
            return (
                found
                if pixels.requires_grad
                else torch.where((pixels.float() == tensor(PHOTOS[0])).all((1, 2, 3), keepdim=True)[:, 0, 0], found, torch.nan)
            )

    refused(NonFiniteError, "NaN or infinity", Late(HEIGHT, WIDTH).eval(), linf=20 / 255)
    said = Classifier(Late(HEIGHT, WIDTH).eval(), SAME, {})
    assert said.scores(PHOTOS[:1]).isfinite().all()
    with pytest.raises(NonFiniteError, match=r"NaN or infinity \(4 of 12\)"):
        said.scores([PHOTOS[0], PHOTOS[0], PHOTOS[1]])


def test_a_model_in_training_is_refused():
    model = nn.Sequential(Bent(HEIGHT, WIDTH), nn.Dropout(0.5)).train()
    refused(ModelStateError, "training mode", model)
    refused(ModelStateError, "torch.nn.Module", lambda pixels: pixels)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("to", ["second", "any"])
def test_a_model_of_one_class_is_refused(to):
    refused(TargetError, "class", Bent(HEIGHT, WIDTH, classes=1).eval(), to=to)


def test_a_model_of_one_size_whose_preprocessing_does_not_resize_is_rewritten(bent):
    found = rewrite(bent, PHOTOS[0], to="second", linf=8 / 255, preprocess=tensor)
    assert found.success
    assert set(found.survival) == {"JPEG 90", "one-pixel shift"}
    assert any(note.startswith("5 % rescale: the model does not take the picture") for note in found.notes)
