"""What players do together: Harsanyi dividends, Shapley values, and a truth table's prime implicants.

A coalition is a whole number whose bit i says that player i takes part; a game is its values, f(T) for every coalition T in that
order. Holds the arithmetic only: what a player is, and how f comes from a model, is ``zeroline.paradigm.logical``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


def members(coalition: int) -> tuple[int, ...]:
    """The players of a coalition.

    >>> members(0b101)
    (0, 2)
    """
    return tuple(i for i in range(coalition.bit_length()) if coalition >> i & 1)


def dividends(values: Tensor) -> Tensor:
    """Harsanyi dividends d(S) = sum over T within S of (-1)^(|S| - |T|) f(T) (Harsanyi 1963), for every S; d of the empty one is f of it.

    ``values`` and the result are [..., coalitions]. They add up: f(T) = sum of d(S) over S within T. One subtraction per player and coalition (the
    Moebius transform).

    >>> dividends(torch.tensor([0.0, 1.0, 1.0, 1.0])).tolist()  # an OR of two: both alone are enough
    [0.0, 1.0, 1.0, -1.0]
    """
    found = values.clone(memory_format=torch.contiguous_format)
    for player in range((values.shape[-1] - 1).bit_length()):
        halves = found.view(*found.shape[:-1], -1, 2, 1 << player)  # [..., 1, :] with the player, [..., 0, :] without
        halves[..., 1, :] -= halves[..., 0, :]
    return found


def shapley(of: Tensor) -> Tensor:
    """Shapley values [..., players] from dividends [..., coalitions], each shared equally by its players (Shapley 1953).

    They add up to f(all) - f(none).
    """
    players = (of.shape[-1] - 1).bit_length()
    numbers = torch.arange(of.shape[-1])
    takes_part = ((numbers[:, None] >> torch.arange(players)) & 1).to(of)
    return of @ (takes_part / takes_part.sum(1, keepdim=True).clamp_min(1))


@dataclass(frozen=True)
class Implicant:
    """A condition on some players: those in ``present`` take part and those in ``absent`` do not; the others do not matter."""

    present: tuple[int, ...]
    absent: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """How many players it names."""
        return len(self.present) + len(self.absent)


def prime_implicants(truth: Tensor) -> tuple[Implicant, ...]:
    """The shortest conditions under which the table [coalitions] is true: AND within one, OR between them (Quine 1952, McCluskey 1956).

    An implicant holds on a set of coalitions that are all true; a prime one holds on no smaller number of players. All of them
    are given, the shortest first: of a table that is always true the one that names nobody, of one that never is none.

    >>> prime_implicants(torch.tensor([False, False, False, True]))
    (Implicant(present=(0, 1), absent=()),)
    """
    players = (len(truth) - 1).bit_length()
    level = {(number, 0) for number in truth.nonzero()[:, 0].tolist()}  # (players present, players that do not matter)
    found: list[tuple[int, int]] = []
    while level:
        merged, used = set(), set()
        for present, free in level:
            for bit in (1 << i for i in range(players) if not free >> i & 1):
                other = (present ^ bit, free)
                if other in level:
                    used.add((present, free))
                    merged.add((present & ~bit, free | bit))
        found += level - used
        level = merged
    named = [Implicant(members(present), members(((1 << players) - 1) & ~free & ~present)) for present, free in found]
    return tuple(sorted(named, key=lambda one: (one.size, one.absent, one.present)))


def pairs_and_singles(players: int) -> list[int]:
    """The coalitions of at most two players, the empty one first."""
    alone = [1 << i for i in range(players)]
    return [0, *alone, *(alone[i] | alone[j] for i in range(players) for j in range(i + 1, players))]


def low_order(values: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Dividends of one and two players from the values of those coalitions: f(i) - f(), f(ij) - f(i) - f(j) + f()."""
    none = values[0]
    found = {}
    for coalition in values:
        who = members(coalition)
        if len(who) == 1:
            found[coalition] = values[coalition] - none
        elif len(who) == 2:
            found[coalition] = values[coalition] - values[1 << who[0]] - values[1 << who[1]] + none
    return found


def orders(players: int, pairs: int, seed: int) -> list[list[int]]:
    """Random orders of the players and their reverses: ``2 * pairs`` of them. A player that comes early in one comes late in the other."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(players, generator=generator).tolist() for _ in range(pairs)]
    return [order for one in drawn for order in (one, one[::-1])]


def along(order: Sequence[int]) -> list[int]:
    """The coalitions met when players come in one after the other, from nobody to all.

    >>> along([2, 0, 1])
    [0, 4, 5, 7]
    """
    met = [0]
    for player in order:
        met.append(met[-1] | 1 << player)
    return met


def sampled_shapley(values: Mapping[int, Tensor], drawn: Sequence[Sequence[int]], confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Shapley values from random orders and their reverses (``orders``): (mean, half width of the interval), each [players, batch].

    A player's contribution in an order is f with it less f without it when it comes in (Castro, Gomez & Tejada 2009). The interval is normal, over
    pairs of an order and its reverse. The means add up to f(all) - f(none) exactly.
    """
    players = len(drawn[0])
    each = torch.stack([_contributions(values, order, players) for order in drawn])
    paired = each.view(-1, 2, *each.shape[1:]).mean(1)
    spread = paired.std(0) if len(paired) > 1 else torch.full_like(paired[0], torch.inf)
    return paired.mean(0), NormalDist().inv_cdf((1 + confidence) / 2) * spread / len(paired) ** 0.5


def _contributions(values: Mapping[int, Tensor], order: Sequence[int], players: int) -> Tensor:
    met = along(order)
    gained = {player: values[after] - values[before] for player, before, after in zip(order, met, met[1:])}
    return torch.stack([gained[player] for player in range(players)])
