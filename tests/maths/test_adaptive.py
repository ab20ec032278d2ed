"""The refinement rule: it stops when it should, says why, and looks where the defect is."""

import math

import torch

from zeroline.maths.adaptive import Path, Tolerance


def refine(f, slope, tolerance, difference=None):
    path = Path(tolerance, f(1.0) - f(0.0) if difference is None else difference)
    while path.stopped() is None:
        wanted = path.wanted()
        if not wanted:
            break
        for t in wanted:
            path.add(t, f(t), slope(t))
    return path


def step(t):  # a jump at 0.7, 1e-3 wide
    return 1 / (1 + math.exp(-(t - 0.7) / 1e-3)) if abs(t - 0.7) < 0.5 else float(t > 0.7)


def step_slope(t):
    s = step(t)
    return s * (1 - s) / 1e-3


FINE = Tolerance(0.01, 0.1, 512, 1e-12)


def test_a_straight_line_needs_no_refinement():
    path = refine(lambda t: 3 * t, lambda t: 3.0, FINE)
    assert len(path.nodes) == 5
    assert path.stopped() == "tolerance"


def test_a_jump_is_refined_where_it_is():
    path = refine(step, step_slope, FINE)
    assert path.stopped() == "tolerance"
    assert abs(path.error()) <= 0.01
    assert float(path.defects().abs().sum()) <= 0.1
    near = sum(abs(t - 0.7) < 0.05 for t in path.nodes)
    assert near > len(path.nodes) / 2
    assert len(path.nodes) < 60  # equal segments would need about a thousand


def test_both_tolerances_must_hold():
    """Defects of opposite sign cancel in E; the local error keeps the path going."""
    f, slope = (lambda t: t + math.sin(2 * math.pi * t)), (lambda t: 1 + 2 * math.pi * math.cos(2 * math.pi * t))
    loose = refine(f, slope, Tolerance(0.01, 1e9, 512, 1e-12))
    strict = refine(f, slope, Tolerance(0.01, 0.1, 512, 1e-12))
    assert len(loose.nodes) == 5
    assert abs(loose.error()) < 1e-9
    assert len(strict.nodes) > 5
    assert float(strict.defects().abs().sum()) <= 0.1


def test_the_budget_ends_a_path_and_is_kept():
    path = refine(step, step_slope, Tolerance(1e-9, 1e-9, 40, 1e-12))
    assert path.stopped() == "max_evaluations"
    assert len(path.nodes) <= 40


def test_rounding_ends_a_path():
    """f known to two digits only: below that a defect is noise, and more nodes would add noise."""
    path = refine(lambda t: round(math.exp(t), 2), math.exp, Tolerance(1e-6, 1e-6, 512, 4e-3))
    assert path.stopped() == "rounding floor"
    assert len(path.nodes) < 40


def test_without_a_difference_the_range_of_f_is_the_scale():
    path = refine(lambda t: math.sin(math.pi * t), lambda t: math.pi * math.cos(math.pi * t), FINE, difference=0.0)
    assert path.stopped() == "tolerance"
    assert path.scale == max(path.values) - min(path.values)


def test_small_budgets_still_have_both_ends():
    path = Path(Tolerance(0.1, 0.1, 3, 1e-12), 1.0)
    assert path.wanted() == [0.0, 1.0]


def test_nodes_stay_sorted():
    path = refine(step, step_slope, FINE)
    assert torch.tensor(path.nodes).diff().gt(0).all()
