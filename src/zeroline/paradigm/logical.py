"""What an answer needs: parts of the inputs as players, every coalition of them asked, and the logic that comes out.

``f(T)`` is the target with the players in T there and the others at their baselines. Harsanyi dividends ``d(S) = sum over T within S of
(-1)^(|S| - |T|) f(T)`` say what the players in S add together that no fewer of them add (Harsanyi 1963); over all S but the empty one they add up to
f(all) - f(none). Their signs alone mislead (an OR of three has a triple dividend of +1), so what is read is a truth table: where f(T)
is beyond a stated threshold, as its prime implicants. Logical interpretation: our reading of Cui, Fan & Chen 2026 (heterogenous attention),
whose formulas are not public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.baseline import BaselineLike
from zeroline.errors import InputError, NotFoundError, TargetError, UsageError
from zeroline.maths.coalitions import along, orders, pairs_and_singles, sampled_shapley
from zeroline.model import identity
from zeroline.model.absent import absent, as_by_input, filled, refuse_unknown, sources, under_baselines
from zeroline.model.ask import labels_of, refuse_random
from zeroline.model.inputs import Inputs
from zeroline.model.memory import MOST_ROWS
from zeroline.model.question import checked, double
from zeroline.model.state import untouched
from zeroline.model.targets import target_of
from zeroline.model.trace import trace
from zeroline.reasoning import Logic, Player
from zeroline.target import ClassTarget, Target, TargetLike, class_scores

EXACT = 10  # players of which all coalitions are asked
MOST = 62  # players at all: a coalition is a 64-bit number
ANSWER = "answer"
Progress = Callable[[int, int | None], None]


def logic(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    players: Sequence[Player] | None = None,
    baseline: BaselineLike | Mapping[str, BaselineLike] | None = None,
    threshold: float | str = 0.5,
    instead: Any | None = None,
    max_evaluations: int = 4096,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Logic:
    """What the target needs of its players: dividends of every coalition, and a reading in words.

    Args:
        model, inputs: as in ``zl.trace``; batch first.
        target: class, ``zl.top()``, callable, ...; its class is fixed on x, with every player there.
        players: ``zl.Player`` records that do not overlap, two or more; None: the sources that the model's attention starts from. Up to 10: all
            coalitions. More: all of one and two players exactly, and Shapley values from random orders with their reverses.
        baseline: what stands for a player that names none: one for all or a dict by input; default zeros for numbers, and for ids the token that
            the configuration calls mask, else pad (markers that it names stay). What belongs to no player stays as it is.
        threshold: when f(T) counts as true: a share of the way from f(none) to f(all) (0.5: half-way), or ``"answer"``: while the class
            that the target reads stays the model's first.
        instead: other inputs of the same shapes (another question): the same players and the same target are asked there too.
        max_evaluations: coalitions per sample at most, for each of ``inputs`` and ``instead``.
        batch_size: rows per forward pass; default 64, on a GPU 128, halved while memory does not suffice.
        seed: of the random orders.
        progress: called with (coalitions done, coalitions in all).

    Returns:
        A ``Logic``: ``dividends`` (players -> [batch]) in units of the target; ``difference`` = f(all) - f(none); ``error`` = their sum
        less the difference: rounding up to ten players, beyond that what groups of three and more hold; ``reading`` in words.

    Raises:
        UsageError: fewer than two players, more than 62, more coalitions than ``max_evaluations``, players that overlap or are named twice.
        InputError: a player's place that fits its input in no way, or holds nothing; ``instead`` of other shapes.
        BaselineError: no baseline is known for ids, or one does not fit; NotFoundError: an input that does not exist.
        NonFiniteError: NaN or infinity in the target. As ``zl.trace`` where no players are given.
    """
    _check_threshold(threshold)
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise UsageError(f"batch_size={batch_size!r} was given; it is a number of rows, 1 or more")
    with untouched(model):
        wanted = Inputs.of(model, inputs)
        if not wanted.batch:
            raise InputError("the inputs hold no sample")
        refuse_unknown(baseline, wanted)
        if not wanted.repeatable:
            raise InputError("coalitions are rows of a batch, and an argument hides a batch inside an object (a cache); give tensors")
        known = _known_players(model, wanted, players)
        with torch.no_grad():
            output = wanted.call(model)
        everyone = torch.arange(wanted.batch)
        asked = target_of(model, wanted, target).resolve(output, labels_of(model))
        if threshold == ANSWER and not isinstance(asked, ClassTarget):
            raise TargetError("threshold='answer' asks whether a class stays the model's first; this target reads no class: give a share, 0.5")
        value = double(checked(asked.read(output, everyone), everyone, None)).detach()
        if any(module.training for module in model.modules()):
            refuse_random(model, wanted, asked, value)
        options = {"baseline": baseline, "threshold": threshold, "max_evaluations": max_evaluations, "batch_size": batch_size, "seed": seed}
        both = [wanted] if instead is None else [wanted, _like(model, wanted, Inputs.of(model, instead))]
        done: list[int] = []

        def report(count: int, total: int) -> None:
            if progress is not None:
                progress(sum(done) + count, total * len(both))

        records = []
        for one in both:
            game = Game(model, one, asked, known, baseline, threshold, batch_size or MOST_ROWS.get(value.device.type, MOST_ROWS["cpu"]))
            records.append(game.played(max_evaluations, seed, report))
            done.append(records[-1].evaluations)
    kept = {name: _plain(given) for name, given in options.items() if name != "baseline"}
    versions, name = identity.versions(), f"{identity.model_class(model)}@{identity.weights_hash(model)()}"
    found, *other = [replace(record, settings=kept, versions=versions, model=name) for record in records]
    return replace(found, output=value.cpu(), instead=other[0] if other else None)


class Game:
    """One game: what stands where, and f for coalitions of its players."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        target: Target,
        players: Sequence[Player],
        baseline: BaselineLike | Mapping[str, BaselineLike] | None,
        threshold: float | str,
        rows: int,
    ) -> None:
        self.model, self.inputs, self.target, self.players, self.threshold, self.rows = model, inputs, target, players, threshold, rows
        self.parts = [_part(model, inputs, player, baseline) for player in players]
        _refuse_overlaps(players, self.parts)
        self.blank = {part.input: inputs.tensors[part.input] for part in self.parts}  # every player absent; places do not overlap
        for part in self.parts:
            self.blank[part.input] = torch.where(part.where, part.values, self.blank[part.input])
        self.values: dict[int, Tensor] = {}
        self.first: dict[int, Tensor] = {}  # is the target's class the model's first? bool [batch]
        self.passes = 0

    def played(self, most: int, seed: int, report: Callable[[int, int], None]) -> Logic:
        """All coalitions, or those that are affordable of many players."""
        k = len(self.players)
        drawn = []
        if k <= EXACT:
            asked = list(range(1 << k))
            _refuse_more_than(most, len(asked), f"all coalitions of {k} players are 2^{k} = {len(asked)}")
        else:
            asked = list(dict.fromkeys([*pairs_and_singles(k), (1 << k) - 1]))
            more = 2 * (k - 3)  # of an order and its reverse: the first two and the last are asked already
            least = len(asked) + more
            _refuse_more_than(most, least, f"{k} players alone and in pairs, and one random order with its reverse, are {least} coalitions")
            drawn = orders(k, (most - len(asked)) // more, seed)
            asked = list(dict.fromkeys([*asked, *(c for order in drawn for c in along(order))]))
        self.ask(asked, report)
        estimate = half = None
        if drawn:
            mean, width = sampled_shapley(self.values, drawn)
            estimate, half = mean.T.contiguous(), width.T.contiguous()
        values = torch.stack([self.values[c] for c in asked], 1)
        return Logic(
            players=tuple(player.name for player in self.players),
            baselines=tuple(part.baseline for part in self.parts),
            coalitions=torch.tensor(asked),
            values=values,
            holds=self._holds(asked, values),
            threshold=self._words(),
            target=self.target.describe(self.inputs.batch),
            output=self.values[(1 << k) - 1],
            evaluations=len(asked),
            forward_passes=self.passes,
            estimate=estimate,
            half_width=half,
            orders=len(drawn),
            labels=_labels(self.target, self.inputs.batch),
        )

    @torch.no_grad()
    def ask(self, coalitions: Sequence[int], report: Callable[[int, int], None]) -> None:
        """f for coalitions, many rows per pass: every sample with each of them."""
        batch = self.inputs.batch
        todo = [(coalition, sample) for coalition in coalitions for sample in range(batch)]
        found: list[Tensor] = []
        first: list[Tensor] = []
        start = 0
        while start < len(todo):
            rows = todo[start : start + self.rows]
            try:
                values, firsts = self._pass(rows)
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
                self.rows = max(1, self.rows // 2)
                continue
            found.append(values)
            first.append(firsts)
            start += len(rows)
            report(start // batch, len(coalitions))
        for i, (values, firsts) in enumerate(zip(torch.cat(found).view(-1, batch), torch.cat(first).view(-1, batch))):
            self.values[coalitions[i]], self.first[coalitions[i]] = values, firsts

    def _pass(self, rows: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        coalitions, samples = (torch.tensor(column) for column in zip(*rows))
        given = self.inputs.rows(samples)
        away: dict[str, Tensor] = {}
        for player, part in enumerate(self.parts):
            place = part.where if len(part.where) == 1 else part.where[samples.to(part.where.device)]
            gone = ((coalitions >> player & 1) == 0).view(-1, *[1] * (place.ndim - 1)).to(place.device) & place
            away[part.input] = away[part.input] | gone if part.input in away else gone
        changed = {name: torch.where(gone, self.blank[name][samples.to(gone.device)], given.tensors[name]) for name, gone in away.items()}
        with under_baselines():
            output = given.with_values(changed).call(self.model)
        self.passes += 1
        values = double(checked(self.target.read(output, samples), samples, None)).cpu()
        if self.threshold != ANSWER:
            return values, torch.zeros(len(rows), dtype=torch.bool)
        assert isinstance(self.target, ClassTarget)
        assert self.target.indices is not None
        scores = class_scores(output)
        return values, (scores.argmax(-1) == self.target.indices.to(scores.device)[0][samples.to(scores.device)]).cpu()

    def _holds(self, coalitions: Sequence[int], values: Tensor) -> Tensor:
        if self.threshold == ANSWER:
            return torch.stack([self.first[c] for c in coalitions], 1)
        none, everyone = self.values[0], self.values[(1 << len(self.players)) - 1]
        way = (everyone - none)[:, None]
        return (values - none[:, None]) * way.sign() >= float(self.threshold) * way.abs()

    def _words(self) -> str:
        if self.threshold == ANSWER:
            return "the model's first answer stays"
        return f"f(T) is at least {100 * float(self.threshold):g}% of the way from f(none) to f(all)"


@dataclass(frozen=True, eq=False)
class _Part:
    """A player on its input: where it is (to be broadcast over it), what stands there when it is absent, and the name of that."""

    input: str
    where: Tensor
    values: Tensor
    baseline: str


def _part(model: nn.Module, inputs: Inputs, player: Player, given: BaselineLike | Mapping[str, BaselineLike] | None) -> _Part:
    given_input = inputs.tensors[player.input]
    if not given_input.ndim or given_input.shape[0] != inputs.batch:
        raise InputError(f"input {player.input!r} is {tuple(given_input.shape)}: it has no row per sample ({inputs.batch}) and cannot play")
    baseline = player.baseline if player.baseline is not None else as_by_input(given, player.input)
    values, name = absent(model, inputs, player.input, baseline)
    where = filled(player.where, values, player.name).to(values.device)
    if not bool(where.reshape(len(where), -1).any(1).all()):
        raise InputError(f"player {player.name!r} holds nothing of {player.input!r}: its place is empty" + (" in a sample" if len(where) > 1 else ""))
    return _Part(player.input, where, values, name)


def _refuse_overlaps(players: Sequence[Player], parts: Sequence[_Part]) -> None:
    for j, (other, beside) in enumerate(zip(players, parts)):
        for player, part in zip(players[:j], parts[:j]):
            both = int((part.where & beside.where).reshape(-1, part.where[0].numel()).any(0).sum()) if part.input == beside.input else 0
            if both:
                raise UsageError(f"players {player.name!r} and {other.name!r} overlap at {both} positions of {part.input!r}; give places apart")


def _known_players(model: nn.Module, inputs: Inputs, players: Sequence[Player] | None) -> list[Player]:
    if players is None:
        names = sources(model, trace(model, inputs), inputs)
        if len(names) < 2:
            found = ", ".join(names) or "none"
            raise UsageError(f"the model has one source ({found}), and logic needs two players; give players=[zl.Player(name, input, where), ...]")
        return [Player(name, name) for name in names]
    given = list(players)
    for player in given:
        if not isinstance(player, Player):
            raise UsageError(f"players are zl.Player(name, input, where) records, not {type(player).__name__}")
        if player.input not in inputs.tensors:
            raise NotFoundError.among("input", player.input, inputs.tensors)
    twice = sorted({player.name for player in given if sum(other.name == player.name for other in given) > 1})
    if twice:
        raise UsageError(f"two players are called {twice[0]!r}; names tell them apart")
    if not 2 <= len(given) <= MOST:
        more = f"all coalitions of up to {EXACT}, and estimates of up to {MOST}"
        raise UsageError(f"{len(given)} players were given; logic takes two or more ({more})")
    return given


@torch.no_grad()
def _like(model: nn.Module, inputs: Inputs, other: Inputs) -> Inputs:
    """Other inputs of the same shapes, which the model reads."""
    for name, tensor in inputs.tensors.items():
        there = other.tensors.get(name)
        if there is None or there.shape != tensor.shape:
            found = "nothing" if there is None else str(tuple(there.shape))
            raise InputError(f"instead= gives {found} for {name!r}; the inputs have {tuple(tensor.shape)}: a minimal pair has the same shapes")
    try:
        other.call(model)
    except (RuntimeError, ValueError, LookupError) as problem:
        raise InputError(f"the model does not read instead=: {(str(problem).splitlines() or [type(problem).__name__])[0]}") from problem
    return other


def _check_threshold(threshold: float | str) -> None:
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if threshold != ANSWER and not (number and 0 < float(threshold) <= 1):
        raise UsageError(f"threshold={threshold!r} was given; it is a share above 0 and at most 1, or 'answer'")


def _refuse_more_than(most: int, needed: int, words: str) -> None:
    if needed > most:
        raise UsageError(f"{words}; max_evaluations is {most}: give fewer players, or max_evaluations={needed} or more")


def _labels(target: Target, samples: int) -> tuple[str, ...]:
    """The class's name, where the target reads one."""
    if not isinstance(target, ClassTarget) or len(target.classes) != 1:
        return ()
    return target.names[0][:samples]


def _plain(given: Any) -> Any:
    return given if isinstance(given, (int, float, str, type(None))) else str(given)
