"""Rules against numpy's and against the polynomials they are exact for; defects against their definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zeroline.errors import NotFoundError, UsageError
from zeroline.maths.quadrature import RULES, coarse_weights, defects, rule, trapezoid_weights


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_gauss_legendre_is_numpys(steps):
    nodes, weights = rule("gausslegendre", steps)
    x, w = np.polynomial.legendre.leggauss(steps)
    assert np.allclose(nodes, (x + 1) / 2, atol=1e-13)
    assert np.allclose(weights, w / 2, atol=1e-13)


@pytest.mark.parametrize(("name", "degree"), [("gausslegendre", 9), ("midpoint", 1), ("trapezoid", 1), ("riemann", 0)])
def test_rules_are_exact_up_to_their_degree_and_not_beyond(name, degree):
    nodes, weights = rule(name, 5)
    for power in range(degree + 1):
        assert float((weights * nodes**power).sum()) == pytest.approx(1 / (power + 1), abs=1e-12)
    beyond = float((weights * nodes ** (degree + 1)).sum())
    assert abs(beyond - 1 / (degree + 2)) > 1e-8


@pytest.mark.parametrize("name", sorted(RULES))
def test_weights_add_up_to_one(name):
    assert float(rule(name, 13)[1].sum()) == pytest.approx(1, abs=1e-12)


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=20, unique=True))
def test_trapezoid_weights_are_numpys_trapezoid(inner):
    nodes = torch.tensor([0.0, *sorted(inner), 1.0], dtype=torch.float64)
    values = torch.sin(5 * nodes)
    assert float((trapezoid_weights(nodes) * values).sum()) == pytest.approx(float(np.trapezoid(values, nodes)), abs=1e-12)
    coarse = coarse_weights(nodes)
    kept = sorted({*range(0, len(nodes), 2), len(nodes) - 1})
    assert float((coarse * values).sum()) == pytest.approx(float(np.trapezoid(values[kept], nodes[kept])), abs=1e-12)


def test_defects_add_up_to_minus_the_error_of_the_trapezoid_rule():
    nodes = torch.tensor([0.0, 0.3, 0.35, 1.0], dtype=torch.float64)
    values, slopes = nodes.exp(), nodes.exp()
    error = float((trapezoid_weights(nodes) * slopes).sum() - (values[-1] - values[0]))
    r = defects(nodes, values, slopes)
    assert float(r.sum()) == pytest.approx(-error, abs=1e-14)
    by_hand = [values[k + 1] - values[k] - (nodes[k + 1] - nodes[k]) * (slopes[k] + slopes[k + 1]) / 2 for k in range(3)]
    assert torch.allclose(r, torch.stack(by_hand))


def test_bad_rules_are_one_clear_error():
    with pytest.raises(NotFoundError, match="nearest: trapezoid"):
        rule("trapezoidal", 5)
    with pytest.raises(UsageError, match="1 or more; found 0"):
        rule("midpoint", 0)
    with pytest.raises(UsageError, match="2 or more; found 1"):
        rule("trapezoid", 1)
