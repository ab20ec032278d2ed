"""Budgets: what is kept is kept by the 8-bit picture, and a projection is the nearest that the definition allows along its direction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeroline.maths.budgets import Budget, l2, linf, quantised, whole_levels

SHAPE = (3, 3, 5, 8)  # rows, channels, height, width


def drawn(seed, size=0.1):
    """8-bit originals, changes that leave 0..1 here and there, and a place: float64."""
    draw = np.random.default_rng(seed)
    original = torch.from_numpy(draw.integers(0, 256, SHAPE) / 255)
    change = torch.from_numpy(draw.normal(0, size, SHAPE))
    where = torch.from_numpy(draw.random((SHAPE[0], 1, *SHAPE[2:])) < 0.7)
    return original, change, where


def alike(a, b):
    """A stand-in for structural similarity: 1 for equal pictures, less the further they are apart."""
    return 1 - (a - b).flatten(1).abs().mean(1)


def budgets(where):
    everywhere = torch.ones_like(where)
    rows = torch.tensor([2.0, 5.0, 30.0], dtype=torch.float64) / 255
    length = torch.tensor([0.05, 0.2, 3.0], dtype=torch.float64)
    least = torch.tensor([0.99, 0.995, 0.5], dtype=torch.float64)
    return {
        "place": Budget(where),
        "linf": Budget(everywhere, linf=rows),
        "l2": Budget(everywhere, l2=length),
        "ssim": Budget(everywhere, ssim=least, similarity=alike),
        "l2 in a place": Budget(where, l2=length),
        "all of them": Budget(where, rows, length, least, alike),
    }


ALL = list(budgets(torch.ones(3, 1, 5, 8, dtype=torch.bool)))


def test_quantised_is_the_nearest_whole_level():
    values = np.random.default_rng(0).uniform(-0.2, 1.2, 5000)
    found = quantised(torch.from_numpy(values)).numpy()
    whole = np.arange(256) / 255
    nearest = whole[np.abs(values[:, None] - whole).argmin(1)]
    assert np.array_equal(found, nearest)


def test_whole_levels_stay_as_they_are():
    for dtype in (torch.float32, torch.float64):
        whole = torch.arange(256, dtype=dtype) / 255
        assert torch.equal(quantised(whole), whole)


def test_the_norms_are_those_of_numpy_row_by_row():
    _, change, _ = drawn(0)
    flat = change.numpy().reshape(3, -1)
    assert l2(change).numpy() == pytest.approx(np.linalg.norm(flat, axis=1))
    assert linf(change).numpy() == pytest.approx(np.linalg.norm(flat, np.inf, axis=1))


def test_a_long_sum_of_squares_loses_nothing_in_single_precision():
    change = torch.full((1, 3, 512, 512), 1 / 255)
    assert float(l2(change)) == pytest.approx(np.sqrt(3 * 512 * 512) * float(np.float32(1 / 255)), rel=1e-12)


@pytest.mark.parametrize("level", [*range(1, 40), 100, 127, 200, 254, 255])
def test_an_epsilon_between_two_levels_allows_the_lower(level):
    assert whole_levels(level / 255) == level
    assert whole_levels((level + 0.99) / 255) == level
    assert whole_levels((level - 0.01) / 255) == level - 1
    assert whole_levels(float(np.float32(level / 255))) == level
    assert whole_levels(sum([1 / 255] * level)) == level  # a little less than the quotient, or more


@pytest.mark.parametrize("seed", range(3))
def test_a_place_and_l_infinity_clip_each_pixel_by_itself(seed):
    original, change, where = drawn(seed)
    most = torch.tensor([2.0, 5.0, 30.0], dtype=torch.float64) / 255
    found = Budget(where, linf=most).project(original, change).numpy()
    x, d, inside = original.numpy(), change.numpy(), where.numpy()
    nearest = np.clip(np.clip(np.where(inside, d, 0), -most.numpy()[:, None, None, None], most.numpy()[:, None, None, None]), -x, 1 - x)
    assert np.allclose(found, nearest, atol=1e-15)


def test_without_bounds_only_the_place_and_the_range_remain():
    original, change, where = drawn(1, size=0.8)
    found = Budget(where).project(original, change).numpy()
    assert np.allclose(found, np.where(where.numpy(), np.clip(change.numpy(), -original.numpy(), 1 - original.numpy()), 0), atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ALL)
def test_the_picture_that_is_saved_keeps_to_all_of_it(name, seed):
    original, change, where = drawn(seed, size=0.3)
    budget = budgets(where)[name]
    x = (original.numpy() * 255).round()
    saved = (quantised(original + budget.project(original, change)).numpy() * 255).round()
    off = saved - x
    assert saved.min() >= 0
    assert saved.max() <= 255
    assert not (off != 0)[~np.broadcast_to(budget.where.numpy(), SHAPE)].any()
    for row in range(3):
        if budget.linf is not None:
            assert np.abs(off[row]).max() <= round(float(budget.linf[row]) * 255)
        if budget.l2 is not None:
            assert np.linalg.norm(off[row] / 255) <= float(budget.l2[row]) + 1e-9
        if budget.ssim is not None:
            assert 1 - np.abs(off[row] / 255).mean() >= float(budget.ssim[row]) - 1e-12


@pytest.mark.parametrize("name", ["l2", "ssim", "all of them"])
def test_a_change_too_long_is_shrunk_as_little_as_need_be_and_keeps_its_direction(name):
    original, change, where = drawn(2, size=0.3)
    budget = budgets(where)[name]
    loose = Budget(budget.where, budget.linf).project(original, change)  # what is clipped pixel by pixel
    found = budget.project(original, change)
    rows = [row for row in range(3) if not bool(budget.kept(original, loose)[row])]
    assert rows
    for row in rows:
        scale = float(found[row].norm() / loose[row].norm())
        assert torch.allclose(found[row], loose[row] * scale, atol=1e-12)
        assert 0 < scale < 1
        longer = budget.kept(original, loose * (scale + 2**-10))
        assert not bool(longer[row])


@pytest.mark.parametrize("name", ALL)
def test_a_change_within_the_budget_stays_as_it_is(name):
    original, change, where = drawn(3, size=0.5)
    budget = budgets(where)[name]
    once = budget.project(original, change)
    assert torch.allclose(budget.project(original, once), once, atol=1e-15)
    small = torch.where(budget.where & (original > 0.1) & (original < 0.9), change * 1e-3, 0.0)
    assert torch.allclose(budget.project(original, small), small, atol=1e-15)


@pytest.mark.parametrize("name", ALL)
def test_rows_share_nothing(name):
    original, change, where = drawn(4, size=0.3)
    budget = budgets(where)[name]
    together = budget.project(original, change)
    for order in ([2, 0, 1], [1], [2, 2]):
        index = torch.tensor(order)
        assert torch.equal(budget.rows(index).project(original[index], change[index]), together[index])


def test_l2_is_asked_of_the_rounded_picture():
    original = torch.full((2, 3, 4, 4), 100 / 255, dtype=torch.float64)
    one_level = np.sqrt(3 * 16) / 255
    budget = Budget(torch.ones(2, 1, 4, 4, dtype=torch.bool), l2=torch.tensor([one_level * 0.999, one_level], dtype=torch.float64))
    assert budget.kept(original, torch.full_like(original, 0.4 / 255)).tolist() == [True, True]  # rounds to no change
    assert budget.kept(original, torch.full_like(original, 0.6 / 255)).tolist() == [False, True]  # rounds to a whole level
    assert budget.kept(original, torch.full_like(original, 1.6 / 255)).tolist() == [False, False]


def test_the_least_similarity_itself_is_kept():
    original, change, where = drawn(5)
    seen = quantised(original + change)
    exact = alike(seen, original)
    everywhere = torch.ones_like(where)
    assert Budget(everywhere, ssim=exact, similarity=alike).kept(original, change).all()
    assert not Budget(everywhere, ssim=exact + 1e-9, similarity=alike).kept(original, change).any()


def test_a_budget_below_one_level_leaves_the_picture():
    original, change, where = drawn(6, size=0.5)
    found = Budget(torch.ones_like(where), l2=torch.full((3,), 0.5 / 255, dtype=torch.float64)).project(original, change)
    assert torch.equal(quantised(original + found), original)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.integers(1, 255), size=st.floats(0.001, 2.0))
def test_single_precision_adds_no_level(seed, level, size):
    original, change, where = (value.float() if value.is_floating_point() else value for value in drawn(seed, size))
    budget = Budget(where, linf=torch.full((3,), level / 255))
    x = (original.double() * 255).round()
    saved = (quantised(original + budget.project(original, change)).double() * 255).round()
    assert int((saved - x).abs().max()) <= level
    assert int(((saved - x) != 0).logical_and(~where).sum()) == 0
