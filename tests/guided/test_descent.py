"""The descent is the one of its equations, step by step in float64, and what it keeps and asks for is what it saw."""

import itertools
import math

import numpy as np
import pytest
import torch

from zeroline.guided import descent
from zeroline.guided.classifier import margin as margin_of
from zeroline.maths.budgets import Budget, quantised

HEIGHT, WIDTH = 5, 7
STEPS = 9


def toy(seed=0, rows=1):
    """8-bit pictures (float64), and the numbers of a smooth margin: sum_j b_j tanh(a_j . q + c_j) + e."""
    draw = np.random.default_rng(seed)
    original = draw.integers(30, 226, (rows, 3, HEIGHT, WIDTH)) / 255
    return original, draw.normal(size=(6, 3 * HEIGHT * WIDTH)), draw.normal(size=6), draw.normal(size=6)


class Margin:
    """The toy's margin in torch; remembers what it was asked."""

    def __init__(self, a, b, c):
        self.a, self.b, self.c = (torch.from_numpy(v) for v in (a, b, c))
        self.seen, self.gradients = [], 0

    def value(self, pixels):
        return torch.tanh(pixels.flatten(1) @ self.a.T + self.c) @ self.b

    def __call__(self, pixels, rows):
        self.seen.append((pixels.detach().clone(), rows.clone()))
        self.gradients += int(pixels.requires_grad)
        return self.value(pixels)


def never(pixels, rows):
    return torch.zeros(len(rows), dtype=torch.bool)


def budgets():
    everywhere = torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    place = torch.zeros_like(everywhere)
    place[..., 1:4, 2:6] = True

    def alike(a, b):
        return 1 - (a - b).flatten(1).square().mean(1).sqrt()

    return {
        "linf": Budget(everywhere, linf=torch.tensor([6 / 255], dtype=torch.float64)),
        "linf in a place": Budget(place, linf=torch.tensor([20 / 255], dtype=torch.float64)),
        "l2": Budget(everywhere, l2=torch.tensor([0.3], dtype=torch.float64)),
        "l2 and linf in a place": Budget(place, torch.tensor([20 / 255], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)),
        "ssim": Budget(everywhere, ssim=torch.tensor([0.98], dtype=torch.float64), similarity=alike),
        "ssim in a place": Budget(place, ssim=torch.tensor([0.97], dtype=torch.float64), similarity=alike),
        "place": Budget(place),
    }


def steps_of_the_docstring(original, budget, a, b, c, steps=STEPS):
    """The pictures q_0 .. q_steps of one row, written from the module's equations in numpy."""
    x, inside = original[0], np.broadcast_to(budget.where[0].numpy(), original[0].shape)
    linf, l2, ssim = (None if v is None else float(v[0]) for v in (budget.linf, budget.l2, budget.ssim))
    by_length = l2 is not None or ssim is not None
    reach = l2 or (math.sqrt(3 * budget.where[0].sum()) * 2 / 255 if ssim else None) or linf or 32 / 255

    def eight_bit(pixels):
        return np.clip(np.rint(pixels * 255), 0, 255) / 255

    def fine(d):
        off = eight_bit(x + d) - x
        return (l2 is None or np.sqrt((off**2).sum()) <= l2) and (ssim is None or 1 - np.sqrt((off**2).mean()) >= ssim)

    def within(d):
        d = np.where(inside, d, 0)
        d = d if linf is None else np.clip(d, -linf, linf)
        d = np.clip(x + d, 0, 1) - x
        low, high = 0.0, 1.0
        if fine(d):
            return d
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (middle, high) if fine(d * middle) else (low, middle)
        return d * low

    d, g, pictures = np.zeros_like(x), np.zeros_like(x), []
    for k in range(steps + 1):
        q = eight_bit(x + d)
        pictures.append(q)
        slope = ((b * (1 - np.tanh(a @ q.ravel() + c) ** 2)) @ a).reshape(x.shape)
        slope = np.where(inside, slope, 0)  # pixels that may not change have no part in anything
        g = 0.75 * g + slope / np.abs(slope).sum()
        size = reach * (0.1 + 0.4 * (1 + math.cos(math.pi * k / steps)) / 2)
        d = within(d + size * (g / np.sqrt((g**2).sum()) if by_length else np.sign(g)))
    return pictures


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", budgets())
def test_every_picture_is_that_of_the_equations(name, seed):
    original, *numbers = toy(seed)
    margin, budget = Margin(*numbers), budgets()[name]
    found = descent.descend(torch.from_numpy(original), budget, margin, never, steps=STEPS)
    truth = steps_of_the_docstring(original, budget, *numbers)
    assert len(margin.seen) == STEPS + 1
    for (seen, _), expected in zip(margin.seen, truth):
        assert np.array_equal((seen[0].numpy() * 255).round(), (expected * 255).round())
    assert margin.gradients == STEPS
    assert found.evaluations.tolist() == [STEPS]


def test_the_momentum_remembers_and_the_steps_grow_smaller():
    """On a linear margin each step has the gradient's direction and the stated length, until the budget ends it."""
    slope = np.random.default_rng(0).choice([-1.0, 1.0], (1, 3, HEIGHT, WIDTH))
    seen = []

    def margin(pixels, rows):
        seen.append(pixels.detach().clone())
        return (pixels * torch.from_numpy(slope)).sum((1, 2, 3)) * (1 if len(seen) <= 3 else -1e-9)  # the fourth gradient is tiny and the other way

    original = torch.full((1, 3, HEIGHT, WIDTH), 128 / 255, dtype=torch.float64)
    budget = Budget(torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.bool), linf=torch.tensor([100 / 255], dtype=torch.float64))
    descent.descend(original, budget, margin, never, steps=8)
    moved = [((b - a) * 255 * torch.from_numpy(slope)).round().unique() for a, b in itertools.pairwise(seen)]
    assert all(len(one) == 1 for one in moved)
    moved = [float(one) for one in moved]
    sizes = [100 * (0.1 + 0.4 * (1 + math.cos(math.pi * k / 8)) / 2) for k in range(8)]
    assert moved[0] == round(sizes[0]) == 50
    assert moved[0] + moved[1] == pytest.approx(sizes[0] + sizes[1], abs=1)
    assert moved[2] == pytest.approx(100 - sizes[0] - sizes[1], abs=1)  # the edge of the budget
    # in gradients of one length: 1, 1.75, 2.31, then 0.73 (forwards still), -0.45 (back)
    assert moved[3] == 0
    assert [-one for one in moved[4:]] == pytest.approx(sizes[4:], abs=1.01)


def test_a_row_leaves_at_the_first_picture_that_the_judge_accepts():
    original, *numbers = toy(1)
    margin = Margin(*numbers)
    truth = steps_of_the_docstring(original, budgets()["linf"], *numbers)
    worth = [float(margin.value(torch.from_numpy(q)[None])[0]) for q in truth]
    lead = sorted(worth)[len(worth) // 2]
    first = next(k for k, value in enumerate(worth) if value > lead)
    found = descent.descend(
        torch.from_numpy(original), budgets()["linf"], margin, lambda p, r: torch.ones(len(r), dtype=torch.bool), steps=STEPS, lead=lead
    )
    assert found.success.tolist() == [True]
    assert np.allclose(found.pixels[0].numpy(), truth[first])
    assert found.judged.tolist() == [1]
    assert found.evaluations.tolist() == [min(first + 1, STEPS)]
    assert len(margin.seen) == first + 1


def test_a_picture_that_does_it_already_costs_one_look():
    original, *numbers = toy(2)
    margin = Margin(*numbers)
    found = descent.descend(
        torch.from_numpy(original), budgets()["l2"], margin, lambda p, r: torch.ones(len(r), dtype=torch.bool), steps=STEPS, lead=-1e6
    )
    assert torch.equal(found.pixels, torch.from_numpy(original))
    assert found.evaluations.tolist() == [1]


def test_without_success_the_largest_margin_seen_is_kept():
    for seed in range(4):
        original, *numbers = toy(seed, rows=3)
        margin = Margin(*numbers)
        budget = Budget(torch.ones(3, 1, HEIGHT, WIDTH, dtype=torch.bool), linf=torch.tensor([3.0, 9.0, 40.0], dtype=torch.float64) / 255)
        found = descent.descend(torch.from_numpy(original), budget, margin, never, steps=STEPS, lead=1e6, restarts=2)
        assert not found.success.any()
        assert found.judged.tolist() == [0, 0, 0]
        assert found.evaluations.tolist() == [2 * STEPS] * 3
        for row in range(3):
            seen = torch.cat([pixels[rows == row] for pixels, rows in margin.seen])
            assert len(seen) == 2 * (STEPS + 1)
            assert float(margin.value(found.pixels[row : row + 1])) == pytest.approx(float(margin.value(seen).max()), abs=1e-12)


def test_the_judge_is_asked_of_leads_only_and_after_a_refusal_of_greater_ones_only():
    draw = np.random.default_rng(0)
    original = torch.zeros(4, 3, 2, 2, dtype=torch.float64)
    search, asked, expected = descent.Search(original, 0.3), [], []
    needed, largest = np.full(4, 0.3), np.full(4, -np.inf)
    for look in range(30):
        rows = np.sort(draw.choice(4, draw.integers(1, 5), replace=False))
        margins = draw.normal(size=len(rows))
        pixels = torch.full((len(rows), 3, 2, 2), look / 100, dtype=torch.float64)

        def refuse(shown, index, look=look):
            asked.extend((look, row) for row in index.tolist())
            return torch.zeros(len(index), dtype=torch.bool)

        search.see(torch.from_numpy(rows), pixels, torch.from_numpy(margins), refuse)
        expected += [(look, row) for row, value in zip(rows.tolist(), margins) if value > needed[row]]
        for row, value in zip(rows, margins):
            needed[row] = max(needed[row], value)
            if value > largest[row]:
                largest[row] = value
                original[row] = look / 100
        assert torch.equal(search.pixels, original)  # of the largest margin so far
    assert asked == expected
    assert 8 < len(expected) < 40
    assert search.judged.tolist() == [sum(row == r for _, r in expected) for row in range(4)]
    assert not search.success.any()


def mixed(rows=5):
    """Rows with budgets of their own, of which some succeed early, some late, some never."""
    original, *numbers = toy(7, rows=rows)
    margin = Margin(*numbers)
    most = torch.tensor([1.0, 2.0, 4.0, 9.0, 30.0], dtype=torch.float64)[:rows] / 255
    where = torch.from_numpy(np.random.default_rng(0).random((rows, 1, HEIGHT, WIDTH)) < 0.8)
    return torch.from_numpy(original), Budget(where, linf=most), margin


@pytest.mark.parametrize("restarts", [1, 3])
def test_rows_of_a_batch_are_what_they_are_alone(restarts):
    original, budget, margin = mixed()
    worth = margin.value(original)
    needed = worth + torch.tensor([5.0, 0.1, 0.4, 0.8, 1.2])

    def judging(rows_of):
        def judge(pixels, rows):
            return margin.value(pixels) > needed[rows_of[rows]]

        return judge

    lead = float(worth.min()) + 0.01
    together = descent.descend(original, budget, margin, judging(torch.arange(5)), steps=STEPS, lead=lead, restarts=restarts, seed=3)
    assert 0 < int(together.success.sum()) < 5
    assert len(set(together.evaluations.tolist())) > 1
    for order in ([4, 2, 0, 3, 1], [1], [3, 3]):
        index = torch.tensor(order)
        found = descent.descend(original[index], budget.rows(index), margin, judging(index), steps=STEPS, lead=lead, restarts=restarts, seed=3)
        assert torch.equal(found.pixels, together.pixels[index])
        for name in ("success", "evaluations", "judged"):
            assert torch.equal(getattr(found, name), getattr(together, name)[index])


@pytest.mark.parametrize("name", budgets())
def test_nothing_that_is_asked_leaves_the_budget(name):
    original, *numbers = toy(4)
    budget, margin = budgets()[name], Margin(*numbers)
    descent.descend(
        torch.from_numpy(original), budget, margin, never, steps=6, restarts=3, seed=1, start=torch.full((1, 3, HEIGHT, WIDTH), 0.5).double()
    )
    assert len(margin.seen) == 21
    for pixels, _ in margin.seen:
        assert torch.equal(pixels, quantised(pixels))
        off = (pixels - torch.from_numpy(original))[0]
        assert not off[:, ~budget.where[0, 0]].any()
        assert budget.linf is None or float(off.abs().max()) <= float(budget.linf) + 1e-12
        assert budget.l2 is None or float(off.norm()) <= float(budget.l2) + 1e-12
        assert budget.ssim is None or float(budget.similarity(off[None], torch.zeros_like(off)[None])) >= float(budget.ssim) - 1e-12


def first_pictures(seed, restarts=3, start=None, name="linf"):
    original, *numbers = toy(5)
    margin = Margin(*numbers)
    descent.descend(torch.from_numpy(original), budgets()[name], margin, never, steps=STEPS, restarts=restarts, seed=seed, start=start)
    return [margin.seen[k * (STEPS + 1)][0] for k in range(restarts)], torch.from_numpy(original)


@pytest.mark.parametrize("name", ["linf", "l2", "place"])
def test_restarts_begin_somewhere_else_from_their_seed(name):
    once, original = first_pictures(0, name=name)
    again, _ = first_pictures(0, name=name)
    other, _ = first_pictures(8, name=name)
    assert torch.equal(once[0], original)
    assert torch.equal(other[0], original)
    assert all(torch.equal(a, b) for a, b in zip(once, again))
    begun = [*once[1:], *other[1:], original]
    assert all(not torch.equal(a, b) for i, a in enumerate(begun) for b in begun[:i])


def test_a_random_beginning_is_even_within_l_infinity():
    original = torch.full((1, 3, 60, 60), 128 / 255, dtype=torch.float64)
    seen = []

    def margin(pixels, rows):
        seen.append(pixels.detach().clone())
        return pixels.sum((1, 2, 3)) * 0 + pixels.sum((1, 2, 3))

    budget = Budget(torch.ones(1, 1, 60, 60, dtype=torch.bool), linf=torch.tensor([10 / 255], dtype=torch.float64))
    descent.descend(original, budget, margin, never, steps=1, restarts=2)
    off = ((seen[2] - original) * 255).round().flatten()
    counts = torch.bincount((off + 10).long(), minlength=21).double() / len(off)
    assert off.abs().max() == 10
    assert counts[1:-1].numpy() == pytest.approx(np.full(19, 0.05), abs=0.012)  # the outermost levels are half as wide
    assert counts[[0, -1]].numpy() == pytest.approx(np.full(2, 0.025), abs=0.012)


def test_a_random_beginning_under_l2_is_as_long_as_the_budget():
    begun, original = first_pictures(0, name="l2")
    for one in begun[1:]:
        assert 0.25 < float((one - original).norm()) <= 0.3


def test_a_given_beginning_is_that_of_the_first_attempt_brought_within_the_budget():
    start = torch.full((1, 3, HEIGHT, WIDTH), 0.9, dtype=torch.float64)
    begun, original = first_pictures(0, start=start)
    plain, _ = first_pictures(0)
    assert torch.allclose(begun[0], quantised(original + 6 / 255))
    assert torch.equal(begun[1], plain[1])


def test_where_the_gradient_is_zero_nothing_moves():
    original, *_ = toy(6)

    def margin(pixels, rows):
        return (pixels * 0).sum((1, 2, 3))

    for name in ("linf", "l2"):
        found = descent.descend(torch.from_numpy(original), budgets()[name], margin, never, steps=3)
        assert torch.equal(found.pixels, torch.from_numpy(original))


def test_the_margin_is_the_lead_over_the_best_other_class():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(50, 7))
    to, own = draw.integers(-1, 7, 50), draw.integers(0, 7, 50)
    found = margin_of(*(torch.from_numpy(v) for v in (scores, to, own)))
    for row in range(50):
        rest = [c for c in range(7) if c != (to[row] if to[row] >= 0 else own[row])]
        best = scores[row, rest].max()
        truth = scores[row, to[row]] - best if to[row] >= 0 else best - scores[row, own[row]]
        assert float(found[row]) == pytest.approx(truth)
        says = int(scores[row].argmax())
        assert (float(found[row]) > 0) == (says == to[row] if to[row] >= 0 else says != own[row])
