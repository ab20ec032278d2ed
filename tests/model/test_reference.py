"""Baselines that ask the model: the mean of a set, other words, a distribution of baselines."""

import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline.errors import BaselineError
from zeroline.testing.toys import Convolutional, Structured, Words


class Tokenizer:
    """What zeroline reads of a Hugging Face tokenizer."""

    mask_token_id, pad_token_id, unk_token_id = 9, 0, None
    mask_token, pad_token = "[MASK]", "[PAD]"
    all_special_ids = (0, 9, 10)


@pytest.fixture
def convolutional():
    torch.manual_seed(1)
    return Convolutional().double().eval(), torch.randn(2, 3, 6, 10, dtype=torch.float64)


@pytest.mark.parametrize("site", [None, "body.0", "body"])
def test_the_mean_of_a_set_is_the_mean_of_the_features_of_its_members(convolutional, site):
    model, x = convolutional
    members = [torch.randn(n, 3, 6, 10, dtype=torch.float64) for n in (1, 3, 2)]
    every = torch.cat(members)
    z0 = every if site is None else zl.capture(model, every, site).features[site]
    found = zl.gradient_x_input(model, x, target=0, site=site, baseline=zl.baseline.mean_of(members))
    truth = zl.gradient_x_input(model, x, target=0, site=site, baseline=z0.mean(0, keepdim=True))
    assert torch.allclose(found.values, truth.values, atol=1e-12)
    assert torch.allclose(found.baseline_output, truth.baseline_output, atol=1e-12)
    assert found.baseline == "mean of a set"


def test_the_mean_of_a_set_at_the_input_goes_through_the_model(convolutional):
    model, x = convolutional
    batch = torch.randn(4, 3, 6, 10, dtype=torch.float64)
    found = zl.gradient_x_input(model, x, target=0, site="body.0", baseline=zl.baseline.mean_of(batch, at="input"))
    assert torch.allclose(found.reference_output, model(batch.mean(0, keepdim=True))[:, 0].detach().expand(2), atol=1e-12)
    at_site = zl.gradient_x_input(model, x, target=0, site="body", baseline=zl.baseline.mean_of(batch))
    assert not torch.allclose(found.baseline_output, at_site.baseline_output)


def test_the_mean_of_a_set_at_joint_sites_and_of_keyword_inputs():
    torch.manual_seed(2)
    model = Structured().eval()
    mask = torch.ones(1, 5, dtype=torch.long)
    members = [{"features": torch.randn(1, 5, 4), "mask": mask} for _ in range(3)]
    x = {"features": torch.randn(2, 5, 4), "mask": mask.expand(2, -1)}
    found = zl.gradient_x_input(model, x, target=0, site="recurrent[0] + twice#1", baseline=zl.baseline.mean_of(members))
    for site in ("recurrent[0]", "twice#1"):
        z0 = torch.cat([zl.capture(model, m, site).features[site] for m in members]).mean(0)
        z = zl.capture(model, x, site).features[site]
        gradient = zl.capture(model, x, "recurrent[0] + twice#1", target=0).gradients[site]
        assert torch.allclose(found.parts[site], (z - z0) * gradient, atol=1e-6)


def test_a_set_of_mixed_shapes_has_no_mean(convolutional):
    model, x = convolutional
    members = [torch.randn(1, 3, *size, dtype=torch.float64) for size in ((6, 10), (6, 12))]
    with pytest.raises(BaselineError, match=r"different shapes at 'body.0': \(6, 6, 10\) and \(6, 6, 12\); a mean needs one shape"):
        zl.gradient_x_input(model, x, target=0, site="body.0", baseline=zl.baseline.mean_of(members))
    with pytest.raises(BaselineError, match="different shapes at 'input:image'"):
        zl.gradient_x_input(model, x, target=0, baseline=zl.baseline.mean_of(members))


def test_a_set_of_another_shape_is_not_stretched(convolutional):
    model, x = convolutional
    grey = torch.rand(4, 1, 6, 10, dtype=torch.float64)
    for at in ("site", "input"):
        with pytest.raises(BaselineError, match=r"has shape \(1, 6, 10\) per sample; the features of x have \(3, 6, 10\)"):
            zl.gradient_x_input(model, x, target=0, baseline=zl.baseline.mean_of(grey, at=at))


def test_a_token_beyond_the_vocabulary_is_one_clear_error():
    model = Words().eval()
    for token in (11, -1):
        with pytest.raises(BaselineError, match=rf"token {token} asked for every word; the embedding 'embed' has 11 entries: 0 to 10"):
            zl.gradient_x_input(model, {"ids": torch.tensor([[1, 2]])}, target=0, site="embedding:ids", baseline=zl.baseline.token(token))


def test_baselines_may_come_from_a_generator():
    found = zl.baseline.distribution(zl.baseline.constant(v) for v in (0.0, 1.0))
    assert [draw.name for draw in found.draws] == ["constant(0)", "constant(1)"]


@pytest.mark.parametrize("empty", [[], torch.zeros(0, 3, 6, 10), {"image": torch.zeros(0, 3)}, iter(())])
@pytest.mark.parametrize("kind", [zl.baseline.mean_of, zl.baseline.distribution])
def test_an_empty_set_is_refused(kind, empty):
    with pytest.raises(BaselineError, match="empty set of inputs"):
        kind(empty)


def test_a_set_without_the_site_is_one_clear_error():
    model = Structured().eval()
    mask = torch.ones(1, 5, dtype=torch.long)
    x = {"features": torch.randn(1, 5, 4), "mask": mask}
    with pytest.raises(BaselineError, match="has no 'features'; it has mask"):
        zl.gradient_x_input(model, x, target=0, site="input:features", baseline=zl.baseline.mean_of([{"mask": mask}]))
    with pytest.raises(BaselineError, match="takes a list of inputs, or one batch of them, not int"):
        zl.baseline.mean_of(3)


def test_words_are_replaced_and_special_tokens_stay():
    torch.manual_seed(3)
    model, ids = Words().eval(), torch.tensor([[10, 3, 4, 0], [10, 5, 9, 0]])
    for baseline, other in (
        (zl.baseline.mask_token(Tokenizer()), [[10, 9, 9, 0], [10, 9, 9, 0]]),
        (zl.baseline.pad_token(Tokenizer()), [[10, 0, 0, 0], [10, 0, 9, 0]]),
        (zl.baseline.token(7), [[7] * 4] * 2),
    ):
        found = zl.integrated_gradients(model, {"ids": ids}, target=0, site="embedding:ids", baseline=baseline)
        assert torch.allclose(found.reference_output, model(torch.tensor(other))[:, 0].detach().double(), atol=1e-6)
        same = ids == torch.tensor(other)
        assert not found.per_token()[same].any()
        assert bool(found.per_token()[~same].abs().min() > 0)
    assert zl.baseline.mask_token(Tokenizer()).name == "[MASK] for every word"


def test_the_zero_embedding_is_zeros_at_the_embedding():
    model, ids = Words().eval(), torch.tensor([[1, 2, 3, 4]])
    found = zl.gradient_x_input(model, {"ids": ids}, target=0, site="embedding:ids", baseline=zl.baseline.zeros())
    bias = model.body(torch.zeros(1, 6))[:, 0].detach().double()
    assert torch.allclose(found.baseline_output, bias, atol=1e-6)


def test_a_tokenizer_without_that_token_says_what_it_has():
    with pytest.raises(BaselineError, match="no unk token; it has mask, pad; zl.baseline.token"):
        zl.baseline.unknown_token(Tokenizer())


def test_words_cannot_be_replaced_in_a_model_that_reads_none(convolutional):
    model, x = convolutional
    with pytest.raises(BaselineError, match=r"replaces token ids, and 0 inputs could hold them \(none\)"):
        zl.gradient_x_input(model, x, target=0, baseline=zl.baseline.mask_token(Tokenizer()))


def test_masks_stay_those_of_x():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)

        def forward(self, input_ids, attention_mask):
            kept = self.embed(input_ids) * attention_mask[..., None]
            return self.head(kept.sum(1) / attention_mask.sum(1, keepdim=True))

    model, mask = Masked().eval(), torch.tensor([[1, 1, 0]])
    x = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": mask}
    found = zl.gradient_x_input(model, x, target=1, site="embedding:input_ids", baseline=zl.baseline.pad_token(Tokenizer()))
    assert torch.allclose(found.reference_output, model(torch.zeros(1, 3, dtype=torch.long), mask)[:, 1].detach().double(), atol=1e-6)


@pytest.mark.parametrize("name", ["integrated_gradients", "grad_cam", "taylor"])
def test_a_distribution_is_the_mean_over_its_draws(convolutional, name):
    model, x = convolutional
    draws = [zl.baseline.zeros(), zl.baseline.constant(0.5), zl.baseline.mean_of(x)]
    asked = {"target": [0, 2], "site": "body.0"}
    found = zl.METHODS[name](model, x, baseline=zl.baseline.distribution(draws), **asked)
    each = [zl.METHODS[name](model, x, baseline=draw, **asked) for draw in draws]
    assert torch.allclose(found.values, sum(one.values for one in each) / 3, atol=1e-12)
    assert torch.allclose(found.difference, sum(one.difference for one in each) / 3, atol=1e-12)
    assert torch.allclose(found.error, sum(one.error for one in each) / 3, atol=1e-12)
    assert torch.allclose(found.error_spread, torch.stack([one.error for one in each]).std(0), atol=1e-12)
    assert torch.equal(found.evaluations, sum(one.evaluations for one in each))
    assert torch.allclose(sum(found.budget.values()), found.error, atol=1e-12)
    assert "rounding" not in found.budget  # float64 values have none
    assert found.settings["draws"] == 3
    assert f"{float(found.error_spread[0]):.3g} over 3 draws" in repr(found)


def test_draws_depend_on_the_seed_alone_and_serve_every_sample(convolutional):
    model, x = convolutional
    pool = torch.randn(9, 3, 6, 10, dtype=torch.float64)

    def values(seed, inputs=x):
        return zl.gradient_x_input(model, inputs, target=0, baseline=zl.baseline.distribution(pool, draws=3, seed=seed)).values

    assert torch.equal(values(0), values(0))
    assert not torch.allclose(values(0), values(1))
    assert torch.allclose(values(0)[1:], values(0, x[1:]), atol=1e-12)
    chosen = zl.baseline.distribution(pool, draws=3, seed=0)
    assert len({draw.name for draw in chosen.draws}) == 3
    assert chosen.seed == 0


def test_expected_gradients_of_a_linear_model_have_their_closed_form():
    torch.manual_seed(0)
    model, x, pool = nn.Linear(4, 2).double(), torch.randn(2, 4).double(), torch.randn(6, 4).double()
    found = zl.integrated_gradients(model, x, target=1, baseline=zl.baseline.distribution(pool, draws=6))
    assert torch.allclose(found.values, model.weight[1] * (x - pool.mean(0)), atol=1e-12)


def test_draws_of_a_function_use_one_seed_each():
    found = zl.baseline.distribution(zl.baseline.noise, draws=3, seed=5)
    assert [draw.seed for draw in found.draws] == [5, 6, 7]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zl.baseline.distribution(torch.randn(2, 3), draws=3), "3 draws asked of 2; give draws=2 or fewer"),
        (lambda: zl.baseline.distribution(zl.baseline.black()), "needs several baselines"),
        (lambda: zl.baseline.distribution(lambda seed: seed), "must give a baseline"),
        (lambda: zl.baseline.distribution(torch.randn(2, 3), draws=0), "1 to 10,000 are possible"),
        (lambda: zl.baseline.neutral("black"), "begins at a baseline"),
        (lambda: zl.baseline.neutral(zl.baseline.zeros(), kl=0), "kl must be above 0"),
        (lambda: zl.baseline.neutral(zl.baseline.zeros(), low=1.0, high=0.0), "low below high"),
        (lambda: zl.baseline.mean_of(torch.zeros(1, 2))(torch.zeros(1, 2)), "is a recipe that needs the model"),
    ],
)
def test_baselines_that_cannot_be_are_one_clear_error(make, message):
    with pytest.raises(BaselineError, match=message):
        make()


def test_one_other_input_serves_a_batch_of_many(convolutional):
    model, x = convolutional
    one = torch.randn(1, 3, 6, 10, dtype=torch.float64)
    single = zl.gradient_x_input(model, x, target=0, site="body", baseline=zl.baseline.of(one))
    many = zl.gradient_x_input(model, x, target=0, site="body", baseline=zl.baseline.of(one.expand(2, -1, -1, -1)))
    assert torch.equal(single.values, many.values)


def test_recipes_are_followed_once_for_several_sites(convolutional):
    from zeroline.model.reference import settle_sites

    model, x = convolutional
    passes = []
    hook = model.head.register_forward_hook(lambda *_: passes.append(1))
    found = settle_sites(model, x, zl.baseline.mean_of([x, x * 2, x * 3]), ["body.0", "body.2", "body"])
    hook.remove()
    assert len(passes) == 3  # one for each member, not for each site
    for site, baseline in zip(("body.0", "body.2", "body"), found):
        z0 = zl.capture(model, torch.cat([x, x * 2, x * 3]), site).features[site].mean(0)
        assert torch.allclose(baseline.features[0][0], z0, atol=1e-12)
