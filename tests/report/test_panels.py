"""What several figures share: the map of a record, or none; a photograph, a map over it, and names that fit."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from zeroline import Attribution
from zeroline.relevance import Tokens
from zeroline.report import panels

PICTURE = np.random.default_rng(0).random((24, 32, 3)).astype(np.float32)


def record(values, *, parts=None, site="layer", baseline="black", output=3.0, there=1.0, method="by_hand", **figures):
    """A record whose figures are written by hand; per sample the same."""
    batch = len(values)
    each = {name: torch.full((batch,), figures[name]).double() for name in ("local_error", "map_error") if name in figures}
    budget = {name: torch.full((batch,), size).double() for name, size in figures.get("budget", {}).items()}
    return Attribution(
        parts=parts or {site: values}, method=method, target=("logit of a newt",) * batch, site=site, baseline=baseline,
        output=torch.full((batch,), output).double(), baseline_output=torch.full((batch,), there).double(),
        evaluations=torch.ones(batch, dtype=torch.int64), forward_passes=2, is_cut=True, resolution=1e-7, budget=budget, **each,
    )  # fmt: skip


def words(artist):
    """Everything that a figure or a part of it says, as one line."""
    from matplotlib.text import Text

    return " ".join(" ".join(found.get_text() for found in artist.findobj(Text)).split())


def shown(axes):
    """The axes that can be seen."""
    return [axis for axis in axes if axis.axison]


def test_the_map_of_an_image_is_its_sum_over_channels():
    values = torch.randn(2, 3, 4, 5)
    found = panels.heat_of(record(values), Tokens(0, (4, 5)), sample=1)
    assert found.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            assert found[i, j] == pytest.approx(sum(float(values[1, k, i, j]) for k in range(3)), abs=1e-6)


def test_an_image_has_a_map_even_where_nobody_says_how_it_lies():
    assert panels.heat_of(record(torch.ones(1, 3, 2, 4)), None).tolist() == [[3.0] * 4] * 2


def test_the_map_of_tokens_goes_row_by_row_and_leaves_class_and_register_tokens_out():
    values = torch.arange(16.0).view(1, 8, 2)
    values[0, :2] = 1000  # before the patches
    assert panels.heat_of(record(values), Tokens(2, (2, 3))).tolist() == [[9, 13, 17], [21, 25, 29]]


@pytest.mark.parametrize(
    ("shape", "lie"),
    [((1, 9, 2), Tokens()), ((1, 10, 2), Tokens(1)), ((1, 9, 2), None), ((1, 10, 2), Tokens(1, (2, 4))), ((1, 7), None), ((1, 7), Tokens(0, (7, 1)))],
)
def test_values_that_lie_on_no_grid_have_no_map_even_where_their_number_is_square(shape, lie):
    assert panels.heat_of(record(torch.ones(shape)), lie) is None


def test_of_a_joint_site_the_first_part_with_positions_is_drawn():
    image = torch.randn(1, 2, 3, 4)
    found = panels.heat_of(record(image, parts={"head": torch.ones(1, 5), "stage": image}), Tokens(0, (3, 4)))
    assert np.allclose(found, image[0].sum(0))


def test_a_photograph_is_drawn_as_it_is_and_a_missing_one_is_said():
    there, missing = Figure().subplots(1, 2)
    panels.photograph(there, PICTURE, "x")
    panels.photograph(missing, None, "z0")
    assert np.array_equal(there.images[0].get_array(), PICTURE)
    assert (there.get_title(), missing.get_title()) == ("x", "z0")
    assert "no picture" in words(missing)
    assert "no picture" not in words(there)
    assert not missing.images


def test_a_map_is_red_where_values_speak_for_and_blue_where_against():
    heat = np.zeros((3, 4))
    heat[0, 0], heat[2, 3] = 2.0, -2.0
    axis = Figure().subplots()
    panels.over(axis, PICTURE, heat, "title", "figures below")
    drawn = np.asarray(axis.images[0].get_array())
    assert drawn.shape == PICTURE.shape
    assert drawn[1, 1, 0] - drawn[1, 1, 2] > 0.2
    assert drawn[-2, -2, 2] - drawn[-2, -2, 0] > 0.2
    assert np.allclose(drawn[11, 14], drawn[11, 14, 0])  # nothing there: grey
    assert (axis.get_title(), axis.get_xlabel()) == ("title", "figures below")


def test_a_map_of_zeros_is_the_grey_photograph():
    axis = Figure().subplots()
    panels.over(axis, PICTURE, np.zeros((3, 4)), "", "")
    drawn = np.asarray(axis.images[0].get_array())
    grey = PICTURE.mean(-1)
    assert np.allclose(drawn, drawn[..., :1])
    assert np.corrcoef(drawn[..., 0].flatten(), grey.flatten())[0, 1] > 0.999


def test_without_a_map_the_panel_says_so():
    axis = Figure().subplots()
    panels.over(axis, PICTURE, None, "head", "sum 3")
    assert not axis.images
    assert "on no grid" in words(axis)
    assert (axis.get_title(), axis.get_xlabel()) == ("head", "sum 3")


@pytest.mark.parametrize("most", [8, 24, 34])
def test_long_names_keep_their_end(most):
    name = "model.encoder.layers.11.attention.output.dense.of.something.long"
    cut = panels.short(name, most)
    assert len(cut) == most
    assert cut.startswith("...")
    assert name.endswith(cut[3:])
    assert panels.short(name[:most], most) == name[:most]
