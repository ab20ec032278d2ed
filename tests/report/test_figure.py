"""Figures show what the record holds: scale centred on zero, sums kept, what is left out said."""

import numpy as np
import torch

import zeroline as zl
from zeroline.report import figure
from zeroline.testing.toys import Convolutional


def explained():
    torch.manual_seed(0)
    model, x = Convolutional().eval(), torch.rand(2, 3, 6, 10)
    return zl.gradient_x_input(model, x, target=[0, 1], baseline=zl.baseline.zeros()), x


def test_the_colour_scale_is_centred_on_zero_and_white_is_nothing():
    found, x = explained()
    seen = figure.view(found, x[1].permute(1, 2, 0).numpy(), sample=1)
    drawn = figure.figure(found, seen, sample=1)
    (image,) = [axis.get_images()[0] for axis in drawn.axes if axis.get_title().startswith("values at")]
    assert image.norm.vmin == -image.norm.vmax
    assert np.allclose(image.get_array(), found.values[1].sum(0))
    assert min(image.cmap(image.norm(0.0))[:3]) > 0.95


def test_cells_keep_the_sum():
    heat = np.random.default_rng(0).normal(size=(50, 33))
    summed, side = figure.cells(heat)
    assert side == 4
    assert max(summed.shape) <= 16
    assert np.isclose(summed.sum(), heat.sum())
    assert np.isclose(summed[0, 0], heat[:4, :4].sum())


def test_the_caption_names_the_error():
    found, _ = explained()
    one = found.sample(0)
    assert f"{float(one.error[0]):+.2g}" in figure.caption(one)
    assert "undefined" not in figure.caption(one)


def test_values_on_class_tokens_are_said_to_be_off_the_picture():
    tokens = torch.ones(1, 5, 2)
    found, _ = explained()
    from dataclasses import replace

    record = replace(found.sample(0), parts={"layer": tokens})
    drawn = figure.figure(record, figure.view(record, np.ones((8, 8, 3), dtype=np.float32)))
    assert "+2 of it lies on tokens that are no patches" in drawn.get_supxlabel()


def test_an_empty_map_can_be_drawn(tmp_path):
    from dataclasses import replace

    found, x = explained()
    record = replace(found.sample(0), parts={"input": torch.zeros(1, 3, 6, 10)})
    drawn = figure.figure(record, figure.view(record, x[0].permute(1, 2, 0).numpy()))
    figure.save(drawn, tmp_path / "figure.png")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


def test_the_overlay_has_the_size_of_the_photograph_for_any_map():
    for rows, columns in ((6, 10), (40, 17), (1, 3)):
        view = figure.View(np.full((24, 31, 3), 0.5, dtype=np.float32), None, np.random.default_rng(0).normal(size=(rows, columns)), 1.0)
        assert figure.overlay(view).shape == (24, 31, 3)
