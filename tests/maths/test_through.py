"""Relevance by the last token passed, against every path of a random graph walked by itself."""

import random
from dataclasses import dataclass, field

import pytest
import torch

from zeroline.maths.propagation import reverse, through


@dataclass
class Link:
    ids: torch.Tensor
    rows: torch.Tensor
    weight: torch.Tensor | None = None


@dataclass
class State:
    size: int
    from_calls: dict = field(default_factory=dict)
    own: dict = field(default_factory=dict)


@dataclass
class Net:
    """A random graph: value states, Abar of every call, the sizes of the calls' outputs, who passes where."""

    values: list
    maps: list
    rows: list
    streams: dict
    passing: list
    start: dict


def some_link(draw, size, other, weighted):
    """Between none and all pairs of rows; a row may come from several, and several from one."""
    pairs = [(i, j) for i in range(size) for j in range(other) if draw.random() < 0.45]
    ids, rows = (torch.tensor([pair[k] for pair in pairs], dtype=torch.int64) for k in (0, 1))
    weight = torch.tensor([draw.choice([0.25, 0.5, 1.0]) for _ in pairs], dtype=torch.float64) if weighted else None
    return Link(ids, rows, weight)


def net(seed, calls=4, tokens=3):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    rows = [draw.randint(2, 4) for _ in range(calls)]
    streams = {"columns": 3, "beside": 2}
    values, maps, passing = [], [], []
    for call in range(calls):
        state = State(draw.randint(2, 4))
        for earlier in range(call):
            if draw.random() < 0.7:
                state.from_calls[earlier] = some_link(draw, state.size, rows[earlier], draw.random() < 0.5)
        for name, size in streams.items():
            if draw.random() < 0.7:
                state.own[name] = some_link(draw, state.size, size, draw.random() < 0.5)
        values.append(state)
        maps.append(torch.randn(rows[call], state.size, dtype=torch.float64))
        passing.append(torch.tensor([draw.choice([-1, *range(tokens)]) for _ in range(rows[call])]))
    start = {calls - 1: torch.randn(rows[-1], dtype=torch.float64), draw.randrange(calls - 1): torch.randn(rows[0], dtype=torch.float64)}
    start = {call: torch.randn(rows[call], dtype=torch.float64) for call in start}
    return Net(values, maps, rows, streams, passing, start)


def every_path(graph, columns="columns"):
    """{(call, token, column): relevance}, path by path: (-1, 0, column) for those that passed no token."""
    found = {}

    def weight_of(link, n):
        return 1.0 if link.weight is None else float(link.weight[n])

    def walk(call, row, size, at, token):
        if int(graph.passing[call][row]) >= 0:
            at, token = call, int(graph.passing[call][row])
        state = graph.values[call]
        for key in range(state.size):
            moved = size * float(graph.maps[call][row, key])
            if columns in state.own:
                link = state.own[columns]
                for n in range(len(link.ids)):
                    if int(link.ids[n]) == key:
                        where = (at, token, int(link.rows[n]))
                        found[where] = found.get(where, 0.0) + moved * weight_of(link, n)
            for feeding, link in state.from_calls.items():
                for n in range(len(link.ids)):
                    if int(link.ids[n]) == key:
                        walk(feeding, int(link.rows[n]), moved * weight_of(link, n), at, token)

    for call, r in graph.start.items():
        for row in range(len(r)):
            walk(call, row, float(r[row]), -1, 0)
    return found


def of(graph, **other):
    asked = {"columns": "columns", "passing": graph.passing, "start": graph.start, **other}
    size = graph.streams[asked["columns"]]
    return through(graph.values, graph.rows, size, asked["columns"], asked["passing"], dict(asked["start"]), lambda call, r: r @ graph.maps[call])


@pytest.mark.parametrize("seed", range(25))
def test_every_path_is_booked_for_the_last_token_that_it_passed_and_where_it_left_it(seed):
    graph = net(seed)
    truth = every_path(graph)
    found = of(graph)
    assert -1 in found
    assert found[-1].shape == (1, 3)
    assert {call for call, _, _ in truth} <= set(found)
    for call, block in found.items():
        assert block.dtype == torch.float64
        for token in range(len(block)):
            for column in range(3):
                assert float(block[token, column]) == pytest.approx(truth.pop((call, token, column), 0.0), rel=1e-10, abs=1e-12)
    assert not truth


@pytest.mark.parametrize("seed", range(25))
def test_all_blocks_together_are_the_reverse_sweep(seed):
    graph = net(seed)
    swept = reverse(graph.values, graph.rows, graph.streams, dict(graph.start), {}, lambda call, r: r @ graph.maps[call])
    for name in graph.streams:
        total = torch.stack([block.sum(0) for block in of(graph, columns=name).values()]).sum(0)
        assert torch.allclose(total, swept[name], rtol=1e-10, atol=1e-12)


def test_graphs_of_the_table_are_no_trivial_ones():
    """Of 25 graphs most have paths past every token, and paths that pass two calls before they end."""
    paths = [every_path(net(seed)) for seed in range(25)]
    assert sum(any(call == -1 for call, _, _ in one) for one in paths) >= 15
    assert sum(len({call for call, _, _ in one}) >= 3 for one in paths) >= 15


@pytest.mark.parametrize("seed", range(5))
def test_where_no_row_is_a_token_everything_is_direct(seed):
    graph = net(seed)
    swept = reverse(graph.values, graph.rows, graph.streams, dict(graph.start), {}, lambda call, r: r @ graph.maps[call])
    found = of(graph, passing=[torch.full_like(one, -1) for one in graph.passing])
    assert list(found) == [-1]
    assert torch.allclose(found[-1][0], swept["columns"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_where_every_row_is_a_token_nothing_is_direct(seed):
    graph = net(seed)
    found = of(graph, passing=[torch.zeros_like(one) for one in graph.passing])
    assert not bool(found[-1].any())


def test_a_call_that_no_relevance_reaches_is_not_multiplied():
    graph = net(3)
    asked = []

    def step(call, r):
        asked.append(call)
        return r @ graph.maps[call]

    start = {0: torch.ones(graph.rows[0], dtype=torch.float64)}
    through(graph.values, graph.rows, 3, "columns", graph.passing, start, step)
    assert set(asked) == {0}
    asked.clear()
    found = through(graph.values, graph.rows, 3, "columns", graph.passing, {3: torch.zeros(graph.rows[3], dtype=torch.float64)}, step)
    assert asked == []
    assert list(found) == [-1]


def test_each_call_is_multiplied_once_for_each_place_that_it_carries():
    """Many paths, few products: along a chain of n calls, each with a token, call i carries its own block and those of the calls after it."""
    calls = 12
    eye = torch.arange(2)
    values = [State(2, {c - 1: Link(eye, eye)} if c else {}, {"columns": Link(eye, eye)}) for c in range(calls)]
    asked = []

    def step(call, r):
        asked.append(call)
        return r @ torch.full((2, 2), 0.5, dtype=torch.float64)

    passing = [torch.tensor([0, -1]) for _ in range(calls)]
    found = through(values, [2] * calls, 2, "columns", passing, {calls - 1: torch.ones(2, dtype=torch.float64)}, step)
    assert max(asked.count(call) for call in range(calls)) <= calls + 1
    assert len(asked) <= calls * (calls + 3) / 2
    assert float(sum(block.sum() for block in found.values())) == pytest.approx(2.0 * calls)


def test_the_start_is_left_as_it_was():
    graph = net(1)
    before = {call: r.clone() for call, r in graph.start.items()}
    through(graph.values, graph.rows, 3, "columns", graph.passing, graph.start, lambda call, r: r @ graph.maps[call])
    assert graph.start.keys() == before.keys()
    assert all(torch.equal(graph.start[call], r) for call, r in before.items())
