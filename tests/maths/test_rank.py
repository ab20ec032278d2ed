"""Spearman's rho against SciPy's, ties and constants included."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zeroline.maths.rank import ranks, spearman

numbers = st.lists(st.integers(-4, 4), min_size=2, max_size=9)  # few values: many ties
floats = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def scipys(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants
        return float(stats.spearmanr(a, b).statistic)


def same(found, truth):
    return (math.isnan(found) and math.isnan(truth)) or found == pytest.approx(truth, abs=1e-12)


@given(numbers, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_rho_is_scipys_with_ties(a, random):
    b = [random.randint(-3, 3) for _ in a]
    assert same(float(spearman(torch.tensor(a), torch.tensor(b))), scipys(a, b))


@given(st.lists(st.tuples(floats, floats), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_rho_is_scipys_for_floats(pairs):
    a, b = zip(*pairs)
    assert same(float(spearman(torch.tensor(a), torch.tensor(b))), scipys(a, b))


@given(numbers)
@settings(max_examples=60, deadline=None)
def test_ranks_are_scipys(values):
    assert ranks(torch.tensor(values)).tolist() == stats.rankdata(values).tolist()
    assert ranks(torch.tensor(values)).dtype == torch.float64


def test_rho_does_not_change_when_a_side_is_stretched_and_turns_round_with_it():
    a, b = torch.randn(2, 20).double()
    rho = float(spearman(a, b))
    assert float(spearman(a.exp(), b**3)) == pytest.approx(rho, abs=1e-12)
    assert float(spearman(-a, b)) == pytest.approx(-rho, abs=1e-12)
    assert float(spearman(b, a)) == pytest.approx(rho, abs=1e-12)
    assert float(spearman(a, a)) == pytest.approx(1, abs=1e-12)
    assert -1 <= rho <= 1


def test_a_constant_has_no_rank_correlation():
    a = torch.randn(5)
    assert math.isnan(float(spearman(a, torch.full((5,), 0.1))))
    assert math.isnan(float(spearman(torch.zeros(5), a)))
    assert math.isnan(float(spearman(torch.ones(1), torch.ones(1))))


def test_nan_has_no_rank_correlation():
    a = torch.tensor([1.0, float("nan"), 3.0, 2.0])
    assert math.isnan(scipys(a.tolist(), [1, 2, 3, 4]))
    assert math.isnan(float(spearman(a, torch.arange(4.0))))


def test_rho_goes_along_the_last_dimension():
    a, b = torch.randn(2, 3, 7).double(), torch.randn(2, 3, 7).double()
    found = spearman(a, b)
    assert found.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert float(found[i, j]) == pytest.approx(scipys(a[i, j].numpy(), b[i, j].numpy()), abs=1e-12)
    turned = torch.randn(7, 4).double().T
    assert torch.allclose(spearman(turned, turned), torch.ones(4).double())


def test_the_order_of_the_pairs_does_not_matter():
    a, b, order = torch.randint(5, (30,)), torch.randint(5, (30,)), torch.randperm(30)
    assert float(spearman(a[order], b[order])) == pytest.approx(float(spearman(a, b)), abs=1e-12)
