"""Layers and methods side by side: each member is what the method gives by itself."""

import pytest
import torch
from torch import nn

import zeroline as zl
from methods.cam_reference import Tokens, made
from methods.once import OnceDifferentiable
from zeroline.errors import LoadError, NotFoundError, SiteError, TargetError, UsageError
from zeroline.model.blocks import blocks_of, cam_site, default_sites
from zeroline.testing.toys import Structured, Transformer, Words


@pytest.fixture(scope="module")
def at_layers(digits_vit, samples):
    return zl.layers(digits_vit, samples[3].inputs, target=zl.top(), baseline=zl.baseline.black())


def test_the_default_sites_are_the_input_and_every_block(at_layers):
    assert at_layers.labels == ("input:pixel_values", *(f"vit.layers.{i}" for i in range(4)))
    assert at_layers.lies["vit.layers.2"].grid == (8, 8)
    assert at_layers.lies["vit.layers.2"].prefix == 1
    assert at_layers.lies["input:pixel_values"].grid == (64, 64)


def test_every_layer_is_what_the_method_gives_there(at_layers, digits_vit, samples):
    for site, one in at_layers.members.items():
        alone = zl.integrated_gradients(digits_vit, samples[3].inputs, target=zl.top(), site=site, baseline=zl.baseline.black())
        assert torch.equal(one.values, alone.values), site
        assert one.difference == pytest.approx(alone.difference)
    assert all(one.execution.startswith("suffix") for site, one in at_layers.members.items() if site != "input:pixel_values")


def test_a_recipe_is_the_same_baseline_at_every_layer(digits_vit, samples):
    found = zl.layers(digits_vit, samples[3].inputs, target="nine", baseline=zl.baseline.neutral(zl.baseline.black()), method="gradient_x_input")
    outputs = torch.cat([one.baseline_output for one in found.members.values()])
    assert torch.allclose(outputs, outputs[:1].expand_as(outputs), atol=1e-4)  # all sites are cuts
    mean = zl.baseline.mean_of([s.inputs for s in samples[:4]])
    found = zl.layers(digits_vit, samples[3].inputs, target="nine", baseline=mean, method="gradient_x_input")
    for site in found.labels:
        alone = zl.gradient_x_input(digits_vit, samples[3].inputs, target="nine", site=site, baseline=mean)
        assert torch.allclose(found[site].values, alone.values, atol=1e-6), site


def test_a_layer_where_the_method_fails_says_why_and_the_others_stay(digits_vit, samples):
    def target(output):
        return output.logits[:, 9]

    found = zl.layers(digits_vit, samples[3].inputs, target=target, baseline=zl.baseline.zeros(), sites=["classifier", "input"], method="taylor")
    assert found.labels == ("classifier", "input:pixel_values")

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.second(self.first(x).detach().tanh() + 0 * x)

    found = zl.layers(Cut(), torch.ones(1, 3), target=0, baseline=zl.baseline.zeros(), sites=["first", "second"])
    assert found.labels == ("second",)
    assert "no gradient there" in found.failures["first"]
    assert "no gradient there" in repr(found)
    with pytest.raises(NotFoundError, match="it failed: the target changes with 'first'"):
        found["first"]
    with pytest.raises(zl.errors.GradientError):
        zl.layers(Cut(), torch.ones(1, 3), target=0, baseline=zl.baseline.zeros(), sites=["first"])


def test_blocks_are_found_without_knowing_the_model():
    torch.manual_seed(0)
    assert default_sites(Transformer().eval(), torch.randn(1, 5, 8)) == ["input:tokens", "blocks.0", "blocks.1"]
    assert default_sites(Words(), {"ids": torch.tensor([[1, 2]])}) == ["embedding:ids", "embed", "body"]
    assert blocks_of(Structured().eval(), {"features": torch.randn(1, 5, 4), "mask": torch.ones(1, 5)}) == ["recurrent[0]", "twice", "head"]


class TwoStreams(nn.Module):
    """A picture and a text that meet at the end; ``ignoring`` the picture leaves every block as it is."""

    def __init__(self, ignoring=False):
        super().__init__()
        self.ignoring = ignoring
        self.picture, self.text = (nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)) for _ in range(2))

    def forward(self, pixel_values, words):
        if self.ignoring:
            pixel_values = pixel_values * 0
        for block in self.picture:
            pixel_values = block(pixel_values)
        for block in self.text:
            words = block(words)
        return pixel_values * words

    main_input_name = "pixel_values"


PICTURE, TEXT = (["picture.0", "picture.1"], ["text.0", "text.1"])


@pytest.mark.parametrize(
    ("baseline", "blocks"),
    [
        (zl.baseline.zeros(at="input"), PICTURE),
        (zl.baseline.noise(0), PICTURE),
        (zl.baseline.zeros(), PICTURE + TEXT),  # zeros at the block itself
        (zl.baseline.distribution(zl.baseline.noise, draws=2), PICTURE),
        (zl.baseline.of({"pixel_values": torch.zeros(2, 4), "words": torch.zeros(2, 4)}), PICTURE + TEXT),
        (zl.baseline.mean_of([{"pixel_values": torch.zeros(2, 4), "words": torch.full((2, 4), 3.0)}], at="site"), PICTURE + TEXT),
    ],
)
def test_the_default_sites_are_those_that_the_baseline_reaches(baseline, blocks):
    torch.manual_seed(0)
    model, inputs = TwoStreams().eval(), {"pixel_values": torch.randn(2, 4), "words": torch.randn(2, 4)}
    found = zl.layers(model, inputs, target=0, baseline=baseline, method="gradient_x_input")
    assert found.labels == ("input:pixel_values", *blocks)


def test_a_block_that_one_sample_of_many_reaches_is_reached():
    model, x = TwoStreams().eval(), torch.randn(2, 4)
    x[0] = 0
    found = zl.layers(model, {"pixel_values": x, "words": torch.randn(2, 4)}, target=0, baseline=zl.baseline.zeros(at="input"))
    assert found.labels == ("input:pixel_values", *PICTURE)


def test_blocks_that_are_asked_for_are_never_left_out_and_a_baseline_that_changes_nothing_leaves_all():
    inputs = {"pixel_values": torch.zeros(1, 4), "words": torch.randn(1, 4)}
    ask = dict(target=0, baseline=zl.baseline.zeros(at="input"), method="gradient_x_input")
    assert zl.layers(TwoStreams().eval(), inputs, sites=["text.0", "picture.0"], **ask).labels == ("text.0", "picture.0")
    assert zl.layers(TwoStreams().eval(), inputs, **ask).labels == ("input:pixel_values", *PICTURE, *TEXT)
    moved = {**inputs, "pixel_values": torch.ones(1, 4)}
    assert zl.layers(TwoStreams(ignoring=True).eval(), moved, **ask).labels == (
        "input:pixel_values",
    )  # the model throws it away before its first block


FOUND = {
    "ViT": ["vit.layers.0", "vit.layers.1"],
    "Swin": ["swin.encoder.layers.0", "swin.encoder.layers.1"],
    "BERT": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "Llama": ["model.layers.0", "model.layers.1"],
    "T5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "CLIP": ["vision_model.encoder.layers.0", "vision_model.encoder.layers.1", "text_model.encoder.layers.0", "text_model.encoder.layers.1"],
}


@pytest.mark.parametrize("name", FOUND)
def test_blocks_of_families(name):
    from attention_models import FAMILIES

    family = next(f for f in FAMILIES if f.name.startswith(name))
    model, inputs = family.build("sdpa")
    found = blocks_of(model.eval(), inputs)
    assert [site.removesuffix("[0]") for site in found] == FOUND[name]


def test_a_cam_is_asked_at_the_last_block_with_more_than_one_gradient(digits_vit, samples):
    """At the last block only the class token is read."""
    assert cam_site(digits_vit, samples[0].inputs, zl.top()) == "vit.layers.2"
    model, x = made()
    assert cam_site(model, x, 0) == "features"
    with pytest.raises(SiteError, match="no block of this model has positions"):
        cam_site(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.ones(1, 3), 0)


def test_every_method_is_asked_where_and_from_where_it_stands(digits_vit, samples):
    x = samples[3].inputs
    found = zl.compare(digits_vit, x, target="nine", baseline=zl.baseline.blur(8))
    assert set(found.labels) == {"gradient_x_input", "taylor", "integrated_gradients", "grad_cam", "layer_cam", "odam", "difference_map"}
    assert {found[m].baseline for m in ("grad_cam", "layer_cam", "odam")} == {"zeros"}
    assert {found[m].baseline for m in ("gradient_x_input", "taylor", "integrated_gradients", "difference_map")} == {"blur(8)"}
    assert {found[m].site for m in ("grad_cam", "difference_map")} == {"vit.layers.2"}
    alone = zl.layer_cam(digits_vit, x, target="nine", site="vit.layers.2", baseline=zl.baseline.zeros())
    assert torch.equal(found["layer_cam"].values, alone.values)


def test_methods_can_be_asked_with_labels_sites_baselines_and_options_of_their_own(digits_vit, samples):
    asked = {
        "plain": {"method": "grad_cam", "rectify": False, "site": "vit.layers.1"},
        "grad_cam": {"baseline": zl.baseline.black()},
        "rough": {"method": "integrated_gradients", "path": "riemann", "n_steps": 4},
    }
    found = zl.compare(digits_vit, samples[3].inputs, target="nine", baseline=zl.baseline.zeros(), methods=asked)
    assert found["plain"].site == "vit.layers.1"
    assert found["plain"].settings["rectify"] is False
    assert found["grad_cam"].baseline == "black"
    assert int(found["rough"].evaluations) == 4
    assert asked["plain"] == {"method": "grad_cam", "rectify": False, "site": "vit.layers.1"}  # the caller's own dict is left alone


def test_a_method_that_cannot_answer_says_why():
    found = zl.compare(OnceDifferentiable(), torch.ones(1, 3), target=0, baseline=zl.baseline.zeros(), methods=["gradient_x_input", "taylor"])
    assert found.labels == ("gradient_x_input",)
    assert "second derivative" in found.failures["taylor"]


def test_a_comparison_survives_saving(at_layers, tmp_path):
    at_layers.save(tmp_path / "c.safetensors")
    again = zl.Comparison.load(tmp_path / "c.safetensors")
    assert again.to_dict() == at_layers.to_dict()
    assert repr(again) == repr(at_layers)
    assert all(torch.equal(again[label].values, at_layers[label].values) for label in at_layers.labels)
    with pytest.raises(LoadError, match="holds comparison 1, not attribution"):
        zl.Attribution.load(tmp_path / "c.safetensors")
    at_layers["vit.layers.0"].save(tmp_path / "a.safetensors")
    with pytest.raises(LoadError, match="not comparison"):
        zl.Comparison.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda m, x: zl.layers(m, x, target=0, baseline=zl.baseline.zeros(), method="odm"), NotFoundError, "no method 'odm'; nearest: odam"),
        (lambda m, x: zl.layers(m, x, target=0, baseline=zl.baseline.zeros(), sites=[]), SiteError, "asked of no sites"),
        (lambda m, x: zl.layers(m, x, target=7, baseline=zl.baseline.zeros()), TargetError, "class 7 asked"),
        (lambda m, x: zl.compare(m, x, target=0, baseline=zl.baseline.zeros(), methods=[]), UsageError, "no methods"),
        (lambda m, x: zl.compare(m, x, target=0, baseline=zl.baseline.zeros(), methods=["gradcam"]), NotFoundError, "nearest: grad_cam"),
        (lambda m, x: zl.compare(m, x, target=0, baseline=zl.baseline.zeros(), grid_site="head.3"), SiteError, "have no positions"),
    ],
)
def test_bad_input_is_one_clear_error(ask, error, message):
    model, x = made()
    with pytest.raises(error, match=message):
        ask(model, x)


def test_tokens_of_a_plain_model_lie_as_the_running_pass_shows():
    model, x = made(Tokens, (1, 3, 4, 6))
    found = zl.layers(model, x, target=0, baseline=zl.baseline.zeros(at="input"), sites=["block"], method="gradient_x_input")
    assert (found.lies["block"].prefix, found.lies["block"].grid) == (1, (2, 3))


def test_a_grid_is_for_the_sites_that_have_so_many_tokens():
    from attention_models import swin

    model, inputs = swin("sdpa")
    asked = {"target": 0, "baseline": zl.baseline.zeros(at="input"), "method": "gradient_x_input"}
    asked["sites"] = ["swin.embeddings.norm", "swin.encoder.layers.1[0]"]
    own = zl.layers(model.eval(), inputs, **asked)
    tokens = {site: one.values.shape[1] for site, one in own.members.items() if one.values.ndim == 3}
    assert len(set(tokens.values())) > 1
    site, count = next(iter(tokens.items()))
    found = zl.layers(model, inputs, grid=(1, count), **asked)
    assert found.lies[site].grid == (1, count)
    assert found.labels == own.labels
    with pytest.raises(zl.errors.InputError, match="a grid of 3 x 999 with no prefix tokens given fits no site: "):
        zl.layers(model, inputs, grid=(3, 999), **asked)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda m, x: zl.layers(m, x, target=0, baseline=zl.baseline.zeros(), toleranse=1),
            "no option of integrated_gradients 'toleranse'; nearest: tolerance",
        ),
        (
            lambda m, x: zl.compare(m, x, target=0, baseline=zl.baseline.zeros(), methods={"grad_cam": {"poool": 1}}),
            "no option of grad_cam 'poool'; nearest: pool",
        ),
    ],
)
def test_an_option_that_the_method_does_not_take_gets_the_nearest(ask, message):
    with pytest.raises(NotFoundError, match=message):
        ask(*made())


def test_modules_of_one_class_are_told_apart():
    model, x = made()
    found = zl.layers(model, x, target=0, baseline=zl.baseline.zeros(), method="gradient_x_input", sites=[model.features[0], model.head[0]])
    assert found.labels == ("features.0", "head.0")


def test_one_site_and_one_method_need_no_list():
    model, x = made()
    asked = {"target": 0, "baseline": zl.baseline.zeros()}
    assert zl.layers(model, x, sites="features", method="odam", **asked).labels == ("features",)
    assert zl.compare(model, x, methods="odam", **asked).labels == ("odam",)


class Counted(nn.Module):
    """Four blocks whose outputs are written on."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(4)])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            x += 0.5
        return self.head(x)


def test_layers_share_the_passes_before_their_sites_and_give_the_same_values():
    torch.manual_seed(0)
    model, x, ran = Counted().double().eval(), torch.randn(3, 6).double(), [0] * 4
    for i, block in enumerate(model.blocks):
        block[0].register_forward_hook(lambda m, a, o, i=i: ran.__setitem__(i, ran[i] + len(o)))
    asked = {"target": [0, 1, 2], "path": "trapezoid", "n_steps": 9}
    baseline, sites = zl.baseline.zeros(at="input"), [f"blocks.{i}" for i in range(4)]

    def rows(ask):
        ran[:] = [0] * 4
        return ask(), list(ran)

    rows(lambda: zl.layers(model, x, baseline=baseline, sites=sites, **asked))  # the one-time tests
    together, shared = rows(lambda: zl.layers(model, x, baseline=baseline, sites=sites, **asked))
    alone, apart = rows(lambda: [zl.integrated_gradients(model, x, site=site, baseline=baseline, **asked) for site in sites])
    assert all(torch.equal(together[site].values, one.values) for site, one in zip(sites, alone))
    assert all(together[site].reference_output.tolist() == one.reference_output.tolist() for site, one in zip(sites, alone))
    assert apart[0] == 4 * 2 * 3  # x and x0 for every site: nothing before a site runs along its path
    assert shared[0] == 2 * 3  # x and x0 once
    assert sum(shared) < sum(apart)


def test_shared_passes_serve_sites_in_any_order():
    """Of a later site first: what was recorded behind an earlier site must not be taken up behind it."""
    torch.manual_seed(0)
    model, x = Counted().double().eval(), torch.randn(2, 6).double()
    asked = {"target": 1, "baseline": zl.baseline.constant(0.7, at="input"), "path": "midpoint", "n_steps": 5}
    found = zl.layers(model, x, sites=["blocks.3", "blocks.1", "blocks.0", "blocks.2"], **asked)
    for site, one in found.members.items():
        torch.manual_seed(0)
        fresh = Counted().double().eval()
        alone = zl.integrated_gradients(fresh, x, site=site, **asked)
        assert one.is_cut is True
        assert torch.allclose(one.values, alone.values, atol=1e-14), site
        assert torch.equal(one.difference, alone.difference)


def test_what_was_shared_is_forgotten_after_the_call():
    from zeroline.model.shared import current, sharing

    model, x = made()
    zl.layers(model, x, target=0, baseline=zl.baseline.zeros(), sites=["features"])
    assert current(model) is None
    with sharing(model):
        assert current(model) is not None
        assert current(nn.Linear(1, 1)) is None
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        assert current(model) is None  # other weights: what was recorded says nothing any more


def test_a_route_through_attentions_is_no_member_and_said_to_be_one(digits_vit, samples):
    with pytest.raises(NotFoundError, match="no method 'rollout'.*rollout goes through attentions and has no attribution error"):
        zl.compare(digits_vit, samples[0].inputs, target=0, baseline=zl.baseline.black(), methods=["rollout"])
