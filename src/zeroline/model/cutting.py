"""Cutting attentions: the target when a call, or one head of it, gives what it gives under a baseline.

Holds ``Cutter``: ``f(do(o_i := o_i0))`` for the output o_i of any call, whole or by heads, many cuts as rows of one pass. What runs before the
call gives the same answer for every cut of it, so it is recorded once for all calls and replayed (``suffix``): a cut costs the rest of the
model. One row of every pass is left uncut; where it does not give the model's own answer the whole model runs instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.attribution import rounding
from zeroline.errors import NonFiniteError, SiteError
from zeroline.model.absent import under_baselines
from zeroline.model.capture import Operand, Replace, Seen, watched
from zeroline.model.identity import Memory
from zeroline.model.inputs import Inputs
from zeroline.model.maps import four, laid_out, name_of
from zeroline.model.memory import MOST_ROWS
from zeroline.model.places import Place
from zeroline.model.question import checked, double
from zeroline.model.suffix import Key, Prefix, Shapes, Unsound, batch_axes, shapes_of
from zeroline.target import Target

FULL, SUFFIX = "full", "suffix"
Facts = tuple[int | None, ...] | str  # the batch dimension of each tensor of an output, or why it has none
_axes: Memory[Mapping[Key, Facts]] = Memory()


class Drawn(SiteError, Unsound):
    """A call's rows are other ones in another pass."""


@contextmanager
def same_draws(devices: Sequence[int]) -> Iterator[None]:
    """A pass that draws what every other such pass draws (ViLT orders its patches at random in each); the random states are put back."""
    here, there = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]
    torch.default_generator.manual_seed(0)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(here)
        for device, state in zip(devices, there):
            torch.cuda.set_rng_state(state, device)


class Cutter:
    """Cuts of the calls of one model on one batch. ``calls`` are those of a followed pass; ``value`` is f(x) [batch]."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        target: Target,
        calls: Sequence[Seen],
        value: Tensor,
        *,
        replay: bool = True,
        shared: frozenset[int] = frozenset(),
    ) -> None:
        self.model, self.inputs, self.target, self.calls, self.value, self.shared = model, inputs, target, calls, value, shared
        self.numbers = {(seen.path, seen.index): number for number, seen in enumerate(calls)}
        self.devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
        self.passes = 0
        self.own: dict[int, Tensor] = {}
        self.execution: dict[int, str] = {}
        self.prefixes: dict[int, Prefix] = {}
        if replay and inputs.repeatable:
            self._record()

    @torch.no_grad()
    def outputs_under(self, inputs: Inputs) -> tuple[dict[int, Tensor], Tensor]:
        """What every call gives on other inputs, as [groups, heads, queries, width], and f there [batch]."""
        found: dict[int, Tensor] = {}
        with under_baselines(), same_draws(self.devices), watched(self.model, inputs, graph=False, replace_output=self._kept(found)) as recording:
            output = recording.output
        self.passes += 1
        for number, one in found.items():
            if not bool(one.isfinite().all()):
                where = name_of(self.calls[number])
                raise NonFiniteError(
                    f"under the baseline {where} gives NaN or infinity: its softmax is left without keys (a mask that hides all of them);"
                    " give a baseline that leaves some, or call the model with another mask"
                )
        return found, self._read(output, torch.arange(inputs.batch))

    @torch.no_grad()
    def cut(self, number: int, cut: Tensor, heads: Sequence[int | None]) -> Tensor:
        """f [batch, cuts] with a call's output replaced by ``cut`` [groups, heads, queries, width]: whole (None), or in one head."""
        if number in self.shared:
            return torch.stack([self._for_all(number, cut, head) for head in heads], 1)
        batch = self.inputs.batch
        rows = [(sample, head) for head in heads for sample in range(batch)]
        room = MOST_ROWS.get(self.value.device.type, MOST_ROWS["cpu"]) - 1
        try:
            found = [self._pass(number, cut, rows[start : start + room]) for start in range(0, len(rows), room)]
        except Drawn:  # it draws for each row: rows as in the pass under the baselines draw alike
            found = [self._pass(number, cut, rows[start : start + batch]) for start in range(0, len(rows), batch)]
        return torch.cat(found).view(len(heads), batch).T

    def _pass(self, number: int, cut: Tensor, rows: Sequence[tuple[int, int | None]]) -> Tensor:
        """The rows, and the first sample once more, uncut."""
        samples = torch.tensor([*(sample for sample, _ in rows), 0])
        heads = [head for _, head in rows]
        prefix = self.prefixes.get(number)
        truth = self.value[:1].cpu()
        try:
            values = self._run(number, cut, samples, heads, prefix)
            off = (values[-1:] - truth).abs()
            if prefix is not None and bool((off > 1e-4 * truth.abs() + rounding(torch.finfo(cut.dtype).eps, values[-1:], truth)).any()):
                raise Unsound("replaying the modules before the call gives another output")
        except (Unsound, RuntimeError, ValueError, LookupError, TypeError) as reason:
            if isinstance(reason, Unsound) and prefix is None:
                kind = Drawn if isinstance(reason, Drawn) else SiteError
                raise kind(f"with a cut made, {reason}: the model runs another way") from None
            if prefix is None or isinstance(reason, torch.OutOfMemoryError):
                raise
            self.prefixes.pop(number)
            self.execution[number] = f"{FULL}: {str(reason).splitlines()[0]}"
            return self._pass(number, cut, rows)
        self.execution.setdefault(number, FULL if prefix is None else SUFFIX)
        return values[:-1]

    def _for_all(self, number: int, cut: Tensor, head: int | None) -> Tensor:
        """f [batch] with the output of a call that all samples share replaced: in a pass of its own."""

        def change(seen: Seen, output: Tensor) -> Tensor:
            if self.numbers.get((seen.path, seen.index)) != number:
                return output
            known = replace(seen, output=self._as_known(number, replace(seen.output, tensor=output)))
            given = four(known.output, self.inputs.batch).clone()
            which = slice(None) if head is None else slice(head, head + 1)
            given[:, which] = cut[:, which].to(given)
            return laid_out(known, given)

        with same_draws(self.devices), watched(self.model, self.inputs, graph=False, replace_output=change) as recording:
            output = recording.output
        self.passes += 1
        self.execution[number] = f"{FULL}: all samples share it"
        return self._read(output, torch.arange(self.inputs.batch))

    def _run(self, number: int, cut: Tensor, samples: Tensor, heads: Sequence[int | None], prefix: Prefix | None) -> Tensor:
        if prefix is None and not self.own:
            with same_draws(self.devices), watched(self.model, self.inputs, graph=False, replace_output=self._kept(self.own)):
                self.passes += 1
        inputs = self.inputs.rows(samples)
        per_sample = len(cut) // self.inputs.batch
        reached = False

        def change(seen: Seen, output: Tensor) -> Tensor:
            if self.numbers.get((seen.path, seen.index)) != number:
                return output
            nonlocal reached
            reached = True
            if prefix is not None:
                prefix.reached()
            known = replace(seen, output=self._as_known(number, replace(seen.output, tensor=output)))
            given = four(known.output, len(samples)).clone()
            if prefix is None:
                self._same_rows(number, given, samples[: len(heads)])
            for row, head in enumerate(heads):
                own = slice(row * per_sample, (row + 1) * per_sample)
                sample = int(samples[row])
                there = slice(sample * per_sample, (sample + 1) * per_sample)
                which = slice(None) if head is None else slice(head, head + 1)
                given[own, which] = cut[there, which].to(given)
            return laid_out(known, given)

        with (
            same_draws(self.devices),
            prefix.replayed(samples) if prefix is not None else nullcontext(),
            watched(self.model, inputs, graph=False, replace_output=change, last=(self.calls[number].path, self.calls[number].index)) as recording,
        ):
            output = recording.output
        self.passes += 1
        if not reached:
            raise Unsound(f"{name_of(self.calls[number])} is not reached")
        return self._read(output, samples)

    def _read(self, output: Any, samples: Tensor) -> Tensor:
        """f [rows]; row r of the output belongs to ``samples[r]``."""
        return double(checked(self.target.read(output, samples), samples, None)).cpu()

    def _same_rows(self, number: int, given: Tensor, samples: Tensor) -> None:
        """Drawn where a call gives other rows for a sample than in a pass of the batch by itself: then o0's rows are not these."""
        known = self.own[number]
        per_sample = len(known) // self.inputs.batch
        mine = known.view(self.inputs.batch, per_sample, *known.shape[1:])[samples].flatten(0, 1)
        if float((given[: len(mine)] - mine).abs().max()) > 1e-2 * float(mine.abs().max()):
            raise Drawn(f"{name_of(self.calls[number])} gives other rows in every pass")

    def _kept(self, found: dict[int, Tensor]) -> Replace:
        """A watch's callback that keeps what every call gives, as [groups, heads, queries, width]."""

        def keep(seen: Seen, output: Tensor) -> Tensor:
            number = self.numbers.get((seen.path, seen.index))
            if number is not None:
                found[number] = four(self._as_known(number, seen.output), self.inputs.batch).clone()
            return output

        return keep

    def _as_known(self, number: int, operand: Operand) -> Operand:
        """An output in the axes that the graph decided on."""
        known = self.calls[number].output
        return replace(operand, order=known.order, heads=known.heads)

    @torch.no_grad()
    def _record(self) -> None:
        """One pass at x: what the modules before each call give."""
        prefixes = [Prefix(self.model, (Place(module=seen.path, call=seen.index, attention=True),)) for seen in self.calls]
        everything = Prefix(self.model, ())
        everything.modules = list({name: module for prefix in prefixes for name, module in prefix.modules}.items())
        finished: list[int] = []  # modules that have given their outputs when a call comes

        def note(_: Seen, output: Tensor) -> Tensor:
            finished.append(len(everything.outputs))
            return output

        try:
            with same_draws(self.devices), everything.recorded(), watched(self.model, self.inputs, graph=False, replace_output=note, paths=False):
                pass
        except Unsound as reason:
            self.execution = dict.fromkeys(range(len(self.calls)), f"{FULL}: {reason}")
            return
        self.passes += 1
        axes = self._axes_of(everything)
        order = list(everything.outputs)
        for number, prefix in enumerate(prefixes):
            inside = f"{self.calls[number].path}."  # runs: it is by the way from scores to weights to values that an attention is seen
            names = {name for name, _ in prefix.modules if not name.startswith(inside)}
            prefix.outputs = {key: everything.outputs[key] for key in order[: finished[number]] if key[0] in names}
            found = {key: axes[key] for key in prefix.outputs}
            mixing = [words for words in found.values() if isinstance(words, str)]
            if mixing:
                self.execution[number] = f"{FULL}: {mixing[0]}"
                continue
            prefix.axes = {key: one for key, one in found.items() if not isinstance(one, str)}
            self.prefixes[number] = prefix

    def _axes_of(self, everything: Prefix) -> Mapping[Key, Facts]:
        """Per module output which dimension of its tensors is the batch, or why none is: a pass with a row more, once per model and shapes."""
        tensors = self.inputs.tensors
        plain = tuple((name, repr(value)) for name, value in self.inputs.named.items() if name not in tensors)
        batch = self.inputs.batch
        key = (tuple((n, tuple(t.shape[1:]), t.dtype, not t.ndim or t.shape[0] == batch) for n, t in tensors.items()), plain)
        known = _axes.get(self.model, key)
        if known is not None and everything.outputs.keys() <= known.keys():
            return known
        shapes: Shapes = {}
        everyone = torch.arange(batch)
        with everything.measured(shapes, everything.modules):
            self.inputs.rows(torch.cat([everyone, everyone[:1]])).call(self.model)
        self.passes += 1
        facts: dict[Key, Facts] = {}
        for one, output in everything.outputs.items():
            try:
                facts[one] = batch_axes(one[0], shapes_of(output), shapes.get(one, ()), batch, batch + 1)
            except Unsound as reason:
                facts[one] = str(reason)
        _axes.put(self.model, key, facts)
        return facts
