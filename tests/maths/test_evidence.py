"""Where a map's evidence lies, against loops written from the definitions."""

import math

import pytest
import torch

from zeroline.errors import InputError
from zeroline.maths.evidence import chance, concentration, coverage, inside, pointing

# rows and columns of maps, height and width of masks: as large, larger (by whole numbers, and not), smaller by whole numbers
SIZES = [((3, 5), (3, 5)), ((2, 3), (8, 6)), ((3, 4), (7, 10)), ((1, 6), (5, 13)), ((4, 6), (2, 3)), ((4, 6), (4, 2)), ((6, 2), (1, 1))]


def touched(shape, mask):
    """Positions whose cell has a part in common with a pixel of the mask, both laid over the same picture."""
    (rows, columns), (height, width) = shape, mask.shape

    def meet(cell, cells, pixel, pixels):
        return max(cell * pixels, pixel * cells) < min((cell + 1) * pixels, (pixel + 1) * cells)

    return {
        (i, j)
        for i in range(rows)
        for j in range(columns)
        for y in range(height)
        for x in range(width)
        if mask[y, x] and meet(i, rows, y, height) and meet(j, columns, x, width)
    }


def positives(heat):
    rows, columns = heat.shape
    return {(i, j): max(float(heat[i, j]), 0.0) for i in range(rows) for j in range(columns)}


def drawn(shape, size, batch=3):
    """Signed maps, and masks that hold about a fifth of their pixels (one at least)."""
    maps = torch.randn(batch, *shape)
    masks = torch.rand(batch, *size) < 0.2
    masks[:, -1, 0] = True
    return maps, masks


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_inside_is_the_share_of_positive_values_that_the_mask_touches(shape, size):
    maps, masks = drawn(shape, size)
    found = inside(maps, masks)
    for heat, mask, share in zip(maps, masks, found):
        values = positives(heat)
        assert float(share) == pytest.approx(sum(values[at] for at in touched(shape, mask)) / sum(values.values()))


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_chance_is_the_share_of_positions_and_what_an_even_map_has_inside(shape, size):
    maps, masks = drawn(shape, size)
    wanted = [len(touched(shape, mask)) / (shape[0] * shape[1]) for mask in masks]
    assert chance(maps, masks).tolist() == pytest.approx(wanted)
    assert inside(torch.full((3, *shape), 0.25), masks).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_pointing_says_whether_the_largest_value_is_on_the_mask(shape, size):
    maps, masks = drawn(shape, size, batch=24)
    found = pointing(maps, masks)
    wanted = []
    for heat, mask in zip(maps, masks):
        best = max(((i, j) for i in range(shape[0]) for j in range(shape[1])), key=lambda at: float(heat[at]))
        wanted.append(best in touched(shape, mask))
    assert found.tolist() == wanted


def test_the_largest_value_is_meant_and_not_the_largest_size():
    maps, masks = torch.tensor([[[-9.0, 1.0, 0.0]]]), torch.tensor([[[True, False, False]]])
    assert pointing(maps, masks).tolist() == [0.0]
    assert pointing(-maps, masks).tolist() == [1.0]


@pytest.mark.parametrize("maps", [torch.zeros(1, 2, 2), -torch.ones(1, 2, 2)])
def test_a_map_without_positive_values_points_nowhere(maps):
    assert bool(pointing(maps, torch.ones(1, 4, 4, dtype=torch.bool)).isnan().all())


def test_a_mask_larger_one_way_and_smaller_the_other_loses_no_pixel():
    mask = torch.zeros(1, 2, 8, dtype=torch.bool)
    mask[0, 0, 1] = True
    assert chance(torch.ones(1, 4, 2), mask).tolist() == [0.25]
    assert chance(torch.ones(1, 3, 1), torch.tensor([[[False], [True]]])).tolist() == pytest.approx([2 / 3])


def test_a_share_that_is_none_is_one_clear_error():
    with pytest.raises(InputError, match=r"share=1.5 of the positions was asked; above 0, at most 1"):
        concentration(torch.ones(1, 2, 2), 1.5)


@pytest.mark.parametrize("share", [0.1, 0.34, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(3, 7), (1, 11), (8, 4)])
def test_concentration_is_the_share_in_the_top_positions(shape, share):
    maps = torch.randn(4, *shape)
    count = max(1, round(share * shape[0] * shape[1]))
    for heat, found in zip(maps, concentration(maps, share)):
        ordered = sorted(positives(heat).values(), reverse=True)
        assert float(found) == pytest.approx(sum(ordered[:count]) / sum(ordered))


def test_an_even_map_is_as_concentrated_as_the_share_and_one_position_wholly():
    even, single = torch.ones(4, 5), torch.zeros(4, 5)
    single[2, 3] = 0.01
    assert concentration(torch.stack([even, single]), 0.25).tolist() == pytest.approx([0.25, 1.0])
    assert concentration(single[None], 1e-6).tolist() == [1.0]  # one position at least


def test_negative_values_are_no_evidence():
    maps, masks = drawn((3, 4), (6, 8))
    for figure in (lambda m: inside(m, masks), concentration):
        assert torch.equal(figure(maps), figure(torch.where(maps < 0, 7 * maps, maps)))


def test_the_scale_of_a_map_does_not_matter_down_to_tiny_values():
    maps, masks = drawn((3, 4), (6, 8))
    for scale in (1e-30, 1e30):
        assert torch.allclose(inside(maps * scale, masks), inside(maps, masks), rtol=1e-5)
        assert torch.allclose(concentration(maps * scale), concentration(maps), rtol=1e-5)


def test_a_map_without_positive_values_gives_nan_and_leaves_the_others_of_the_batch_alone():
    maps = torch.stack([torch.zeros(2, 3), torch.full((2, 3), -1.0), torch.eye(2, 3)])
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[:, :2, :2] = True  # position (0, 0)
    for found, whole in ((concentration(maps, 0.5), 1.0), (inside(maps, masks), 0.5)):
        assert [math.isnan(share) for share in found.tolist()] == [True, True, False]
        assert float(found[2]) == whole
    assert chance(maps, masks).tolist() == pytest.approx([1 / 6] * 3)


def test_an_empty_mask_holds_nothing_and_a_full_one_everything():
    maps = torch.rand(2, 3, 5) + 0.1
    masks = torch.stack([torch.zeros(9, 7), torch.ones(9, 7)]).bool()
    assert inside(maps, masks).tolist() == pytest.approx([0, 1])
    assert chance(maps, masks).tolist() == [0, 1]
    assert pointing(maps, masks).tolist() == [False, True]


@pytest.mark.parametrize("masks", [torch.ones(4, 6), torch.ones(3, 4, 6), torch.ones(2, 1, 4, 6)])
@pytest.mark.parametrize("figure", [inside, chance, pointing])
def test_masks_that_do_not_go_with_the_maps_are_one_clear_error(figure, masks):
    with pytest.raises(InputError, match=r"masks \[batch, height, width\] go with maps \[batch, rows, columns\]"):
        figure(torch.rand(2, 2, 3), masks.bool())


@pytest.mark.parametrize(("shape", "size"), SIZES)
@pytest.mark.parametrize("mass", [0.3, 0.5, 1.0])
def test_coverage_is_the_objects_share_among_the_fewest_positions_that_hold_the_mass(shape, size, mass):
    maps, masks = drawn(shape, size)
    found = coverage(maps, masks, mass)
    for heat, mask, share in zip(maps, masks, found):
        object_, values = touched(shape, mask), positives(heat)
        order = sorted(values, key=lambda place: -values[place])
        total, held, taken = sum(values.values()), 0.0, set()
        for place in order:
            if held >= mass * total * (1 - 1e-9):
                break
            taken.add(place)
            held += values[place]
        if total == 0:
            assert math.isnan(float(share))
        else:
            assert float(share) == pytest.approx(len(taken & object_) / len(object_))


def test_coverage_of_nothing_positive_is_undefined_and_a_mass_of_zero_is_refused():
    maps, masks = -torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    assert math.isnan(float(coverage(maps, masks)))
    with pytest.raises(InputError, match="mass=0 of the positive values"):
        coverage(maps, masks, 0)
