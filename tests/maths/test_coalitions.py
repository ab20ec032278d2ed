"""Dividends, Shapley values, prime implicants and random orders against their definitions, written out in loops."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeroline.maths.coalitions import (
    Implicant,
    along,
    dividends,
    low_order,
    members,
    orders,
    pairs_and_singles,
    prime_implicants,
    sampled_shapley,
    shapley,
)

SHAPES = [(1, ()), (1, (2,)), (2, ()), (3, (3,)), (4, (2, 3)), (5, (2,)), (6, (1,))]


def number(players):
    """The coalition of these players, counted from their names."""
    return sum(2**i for i in players)


def within(players):
    """All subsets of a tuple of players, itself and the empty one too."""
    return [part for size in range(len(players) + 1) for part in itertools.combinations(players, size)]


def slow_dividends(values, k):
    """d(S) = sum over T within S of (-1)^(|S| - |T|) f(T), for one game given as a list."""
    found = [0.0] * 2**k
    for s in within(range(k)):
        found[number(s)] = math.fsum((-1) ** (len(s) - len(t)) * values[number(t)] for t in within(s))
    return found


def slow_shapley(values, k, sequences=None):
    """The mean of what each player adds when it comes in, over all orders (or over those given)."""
    sequences = list(itertools.permutations(range(k))) if sequences is None else sequences
    gained = [[] for _ in range(k)]
    for order in sequences:
        for place, player in enumerate(order):
            before = number(order[:place])
            gained[player].append(values[before + 2**player] - values[before])
    return [math.fsum(each) / len(sequences) for each in gained]


def conditions(k):
    """Every conjunction of literals: of each player present, absent or not named."""
    for literals in itertools.product((None, True, False), repeat=k):
        yield {i: literal for i, literal in enumerate(literals) if literal is not None}


def met(condition, coalition):
    return all(bool(coalition & 2**i) == literal for i, literal in condition.items())


def implies(condition, table, k):
    return all(table[coalition] for coalition in range(2**k) if met(condition, coalition))


def slow_primes(table, k):
    """A condition that implies the table, and does no longer when any one literal is dropped."""
    found = set()
    for condition in conditions(k):
        shorter = [{i: literal for i, literal in condition.items() if i != dropped} for dropped in condition]
        if implies(condition, table, k) and not any(implies(each, table, k) for each in shorter):
            found.add((tuple(i for i in condition if condition[i]), tuple(i for i in condition if not condition[i])))
    return found


def primes(table):
    return {(one.present, one.absent) for one in prime_implicants(torch.tensor(table))}


def game(k, batch=()):
    return torch.randn(*batch, 2**k, dtype=torch.float64)


def flat(values, k):
    return values.reshape(-1, 2**k).tolist()


def as_values(values):
    """A [batch, coalitions] game as the mapping that sampled values are read from."""
    return {coalition: values[:, coalition] for coalition in range(values.shape[1])}


def test_members_are_the_bits_that_are_set():
    for coalition in (*range(70), 2**61 + 2**3, 2**62 - 1):
        assert members(coalition) == tuple(i for i, bit in enumerate(reversed(f"{coalition:b}")) if bit == "1")


@pytest.mark.parametrize(("k", "batch"), SHAPES)
def test_dividends_are_the_inclusion_exclusion_sum(k, batch):
    values = game(k, batch)
    found = dividends(values)
    assert found.shape == values.shape
    for one, own in zip(flat(found, k), flat(values, k)):
        assert one == pytest.approx(slow_dividends(own, k), abs=1e-12)


@pytest.mark.parametrize(("k", "batch"), SHAPES)
def test_dividends_add_up_to_every_value(k, batch):
    values = game(k, batch)
    found = dividends(values)
    for t in within(range(k)):
        inside = sum(found[..., number(s)] for s in within(t))
        assert torch.allclose(inside, values[..., number(t)], atol=1e-12, rtol=0)
    assert torch.equal(found[..., 0], values[..., 0])
    assert torch.allclose(found[..., 1:].sum(-1), values[..., -1] - values[..., 0], atol=1e-12, rtol=0)


def test_a_game_that_only_one_group_can_win_has_one_dividend():
    for group in range(16):
        values = torch.tensor([float(coalition & group == group) for coalition in range(16)])
        assert dividends(values).tolist() == [float(coalition == group) for coalition in range(16)]


def test_an_or_of_three_has_a_triple_dividend_of_plus_one():
    assert dividends(torch.tensor([0.0] + [1.0] * 7)).tolist() == [0, 1, 1, -1, 1, -1, -1, 1]


def test_dividends_of_a_sum_are_sums_and_of_a_multiple_multiples():
    a, b = game(4, (2,)), game(4, (2,))
    assert torch.allclose(dividends(2.5 * a - b), 2.5 * dividends(a) - dividends(b), atol=1e-12, rtol=0)


def test_the_values_are_not_written_to_and_may_lie_in_memory_as_they_like():
    values = game(3, (4,)).T.contiguous().T
    before = values.clone()
    found = dividends(values)
    assert torch.equal(values, before)
    assert torch.equal(found, dividends(before.contiguous()))
    once = torch.zeros(1, 1, dtype=torch.float64).expand(2, 8)
    assert not dividends(once).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    values = game(3).to(dtype)
    assert dividends(values).dtype == dtype
    assert shapley(dividends(values)).dtype == dtype


@pytest.mark.parametrize(("k", "batch"), SHAPES)
def test_shapley_values_are_the_mean_over_all_orders(k, batch):
    values = game(k, batch)
    found = shapley(dividends(values))
    assert found.shape == (*batch, k)
    for one, own in zip(found.reshape(-1, k).tolist(), flat(values, k)):
        assert one == pytest.approx(slow_shapley(own, k), abs=1e-12)
    assert torch.allclose(found.sum(-1), values[..., -1] - values[..., 0], atol=1e-12, rtol=0)


def test_a_player_that_changes_nothing_has_no_dividends_and_no_shapley_value():
    values = torch.randn(4, dtype=torch.float64)
    with_a_dummy = torch.stack([values[[0, 1, 0, 1]], values[[2, 3, 2, 3]]]).flatten()  # of players 0, 1, 2 the second is idle
    found = dividends(with_a_dummy)
    assert found[[2, 3, 6, 7]].tolist() == [0, 0, 0, 0]
    assert float(shapley(found)[1]) == 0


def test_nobody_plays():
    nobody = torch.tensor([[3.0], [4.0]])
    assert torch.equal(dividends(nobody), nobody)
    assert shapley(dividends(nobody)).shape == (2, 0)
    assert prime_implicants(torch.tensor([True])) == (Implicant((), ()),)
    assert prime_implicants(torch.tensor([False])) == ()


TABLES = {  # of two players: (none, 0, 1, both) -> (present, absent)
    "and": ((0, 0, 0, 1), [((0, 1), ())]),
    "or": ((0, 1, 1, 1), [((0,), ()), ((1,), ())]),
    "not 0": ((1, 0, 1, 0), [((), (0,))]),
    "1": ((0, 0, 1, 1), [((1,), ())]),
    "0 and not 1": ((0, 1, 0, 0), [((0,), (1,))]),
    "xor": ((0, 1, 1, 0), [((1,), (0,)), ((0,), (1,))]),
    "same": ((1, 0, 0, 1), [((0, 1), ()), ((), (0, 1))]),
    "nand": ((1, 1, 1, 0), [((), (0,)), ((), (1,))]),
    "nor": ((1, 0, 0, 0), [((), (0, 1))]),
    "implies": ((1, 0, 1, 1), [((1,), ()), ((), (0,))]),
    "always": ((1, 1, 1, 1), [((), ())]),
    "never": ((0, 0, 0, 0), []),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_two_have_the_implicants_that_one_writes_down(name):
    table, expected = TABLES[name]
    assert prime_implicants(torch.tensor(table, dtype=torch.bool)) == tuple(Implicant(*one) for one in expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_prime_implicants_of_every_table_are_those_found_by_trying(k):
    for bits in range(2**2**k):
        table = [bool(bits & 2**coalition) for coalition in range(2**k)]
        assert primes(table) == slow_primes(table, k), table


@given(st.integers(2, 5).flatmap(lambda k: st.lists(st.booleans(), min_size=2**k, max_size=2**k)))
@settings(max_examples=60, deadline=None)
def test_prime_implicants_of_any_table_are_those_found_by_trying(table):
    k = (len(table) - 1).bit_length()
    found = prime_implicants(torch.tensor(table))
    assert {(one.present, one.absent) for one in found} == slow_primes(table, k)
    assert len(found) == len(set(found))
    for coalition, true in enumerate(table):
        assert true == any(set(one.present) <= set(members(coalition)) and not set(one.absent) & set(members(coalition)) for one in found)


@given(st.lists(st.booleans(), min_size=16, max_size=16))
@settings(max_examples=40, deadline=None)
def test_the_shortest_implicant_comes_first_and_the_order_is_always_the_same(table):
    found = prime_implicants(torch.tensor(table))
    assert [one.size for one in found] == sorted(len(one.present) + len(one.absent) for one in found)
    keys = [(one.size, one.absent, one.present) for one in found]
    assert keys == sorted(keys)


def test_a_majority_of_ten_has_an_implicant_for_every_five():
    table = torch.tensor([coalition.bit_count() >= 5 for coalition in range(2**10)])
    found = prime_implicants(table)
    assert [one.present for one in found] == list(itertools.combinations(range(10), 5))
    assert not any(one.absent for one in found)


@pytest.mark.parametrize("k", [2, 3, 5, 11])
def test_singles_and_pairs_are_all_there_once_and_nobody_comes_first(k):
    found = pairs_and_singles(k)
    assert found[0] == 0
    assert len(found) == len(set(found)) == 1 + k + k * (k - 1) // 2
    assert set(found) == {number(s) for s in within(range(k)) if len(s) <= 2}


@pytest.mark.parametrize("k", [2, 3, 5])
def test_low_dividends_are_those_of_the_whole_game(k):
    values = game(k, (3,))
    whole = dividends(values)
    found = low_order(as_values(values))
    assert set(found) == set(pairs_and_singles(k)) - {0}
    for coalition, one in found.items():
        assert torch.allclose(one, whole[:, coalition], atol=1e-12, rtol=0)
    few = low_order({coalition: values[:, coalition] for coalition in pairs_and_singles(k)})
    assert all(torch.equal(few[coalition], one) for coalition, one in found.items())


def test_orders_come_with_their_reverses():
    found = orders(7, 5, seed=3)
    assert len(found) == 10
    assert all(sorted(order) == list(range(7)) for order in found)
    assert all(back == list(reversed(order)) for order, back in zip(found[::2], found[1::2]))
    assert orders(4, 0, seed=3) == []


def test_orders_repeat_with_their_seed_and_leave_chance_alone():
    before = torch.random.get_rng_state()
    assert orders(9, 4, seed=5) == orders(9, 4, seed=5)
    assert orders(9, 4, seed=5) != orders(9, 4, seed=6)
    assert orders(9, 6, seed=5)[:8] == orders(9, 4, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_order_is_as_likely():
    found = [tuple(order) for order in orders(3, 1500, seed=0)]
    for order in itertools.permutations(range(3)):
        assert found.count(order) / 3000 == pytest.approx(1 / 6, abs=0.03)


def test_coalitions_along_an_order_grow_by_one_player():
    for order in itertools.permutations(range(4)):
        assert along(order) == [number(order[:size]) for size in range(5)]


@pytest.mark.parametrize(("k", "pairs"), [(2, 1), (3, 2), (5, 4), (6, 9)])
def test_sampled_shapley_values_are_the_mean_over_the_orders_given(k, pairs):
    values = game(k, (3,))
    drawn = orders(k, pairs, seed=1)
    mean, half = sampled_shapley(as_values(values), drawn)
    assert mean.shape == half.shape == (k, 3)
    for sample in range(3):
        assert mean[:, sample].tolist() == pytest.approx(slow_shapley(values[sample].tolist(), k, drawn), abs=1e-12)
    assert torch.allclose(mean.sum(0), values[:, -1] - values[:, 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_is_normal_over_pairs_of_an_order_and_its_reverse(confidence):
    values = game(4, (2,))
    drawn = orders(4, 6, seed=2)
    _, half = sampled_shapley(as_values(values), drawn, confidence)
    z = {0.95: 1.959963984540054, 0.5: 0.6744897501960817}[confidence]
    for sample in range(2):
        own = values[sample].tolist()
        of_pairs = [slow_shapley(own, 4, pair) for pair in zip(drawn[::2], drawn[1::2])]
        for player in range(4):
            spread = statistics.stdev(one[player] for one in of_pairs)
            assert float(half[player, sample]) == pytest.approx(z * spread / 6**0.5, abs=1e-12)


def test_the_interval_is_of_95_percent_unless_another_is_asked():
    values, drawn = as_values(game(4, (2,))), orders(4, 6, seed=2)
    assert torch.equal(sampled_shapley(values, drawn)[1], sampled_shapley(values, drawn, 0.95)[1])


def test_all_orders_together_give_the_exact_shapley_values():
    values = game(4, (2,))
    drawn = [list(order) for one in itertools.permutations(range(4)) if one[0] < one[-1] for order in (one, one[::-1])]
    mean, _ = sampled_shapley(as_values(values), drawn)
    exact = torch.tensor([slow_shapley(own, 4) for own in flat(values, 4)], dtype=torch.float64)
    assert torch.allclose(mean.T, exact, atol=1e-12, rtol=0)


def test_one_pair_of_orders_is_exact_where_no_three_add_anything_together():
    """d({i, j}) goes to j in the order and to i in its reverse: half to each."""
    of = torch.zeros(2, 2**5, dtype=torch.float64)
    low = pairs_and_singles(5)
    of[:, low] = torch.randn(2, len(low), dtype=torch.float64)
    values = torch.stack([sum(of[:, number(s)] for s in within(members(coalition))) for coalition in range(2**5)], 1)
    mean, half = sampled_shapley(as_values(values), orders(5, 3, seed=7))
    assert torch.allclose(mean.T, shapley(of), atol=1e-12, rtol=0)
    assert float(half.max()) < 1e-12


def test_one_pair_of_orders_bounds_nothing():
    _, half = sampled_shapley(as_values(game(4, (2,))), orders(4, 1, seed=0))
    assert bool(half.isinf().all())


def test_only_the_coalitions_on_the_way_are_read():
    values = game(5, (2,))
    drawn = orders(5, 2, seed=4)
    needed = {coalition for order in drawn for coalition in along(order)}
    few = {coalition: values[:, coalition] for coalition in needed}
    assert torch.equal(sampled_shapley(few, drawn)[0], sampled_shapley(as_values(values), drawn)[0])


def test_the_interval_holds_the_exact_value_about_as_often_as_it_says():
    values = game(6, (1,))
    exact = shapley(dividends(values))[0]
    held = []
    for seed in range(150):
        mean, half = sampled_shapley(as_values(values), orders(6, 40, seed))
        held += ((mean[:, 0] - exact).abs() <= half[:, 0]).tolist()
    assert 0.92 < statistics.mean(held) < 0.98
