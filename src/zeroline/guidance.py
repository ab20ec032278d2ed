"""A picture with a guest laid on it, explained before and after: external attention guidance.

Holds the ``Guidance`` record. Our reading of Cui, Fan & Chen 2026 ("guided attention"): a guest of another class turns a picture of one class
into one of two; asked for the host, for the guest and for the one against the other, attention shows details of the host that it
did not show before. Making it is ``zeroline.guided.guide``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.comparison import aligned
from zeroline.maths.evidence import inside
from zeroline.relevance import Relevance

FORMAT = 1
KIND = "guidance"
BEFORE, AFTER = "before", "after"
HEAD = ("target", "f before", "f after", "on the guest's place before", "after", "moved", "new detail on the host")


@dataclass(frozen=True, eq=False)
class Guidance:
    """Relevance of each target before and after, ``members["host"][BEFORE]`` and so on; the targets are ``host``, ``guest`` and ``contrast``.

    ``pictures`` are uint8 [3, height, width], before and after; ``where`` bool [height, width] is the guest's place as the model sees it.
    ``own`` is, before and after, the share of what each token holds that is still its own after each layer (attention transfer, raw attention).
    """

    members: Mapping[str, Mapping[str, Relevance]]
    pictures: Mapping[str, Tensor]
    where: Tensor
    probabilities: Mapping[str, Mapping[str, float]]
    own: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    def on_guest(self, target: str, when: str) -> float:
        """Share of the positive relevance that lies on the guest's place; NaN where nothing is positive."""
        return float(inside(self.members[target][when].grid(), self.where[None])[0])

    def moved(self, target: str) -> float:
        """How much of the relevance moved to the guest: the share on its place after, less that before."""
        return self.on_guest(target, AFTER) - self.on_guest(target, BEFORE)

    def detail(self, target: str) -> float:
        """What appeared on the host: relevance off the guest's place, brought to sum 1, where it is higher after than before (0..1)."""
        free = 1 - _cells(self.where, self.members[target][BEFORE].grid().shape[1:])
        before, after = (_share(self.members[target][when].grid()[0].double().cpu().clamp(min=0) * free) for when in (BEFORE, AFTER))
        return float((after - before).clamp(min=0).sum())

    def rows(self) -> list[tuple[str, ...]]:
        """The table below ``HEAD``."""
        found = []
        for target, each in self.members.items():
            values = [f"{float(each[when].output[0]):.4g}" for when in (BEFORE, AFTER)]
            shares = [self.on_guest(target, when) for when in (BEFORE, AFTER)]
            words = ["-" if share != share else f"{share:.0%}" for share in shares]
            change = self.moved(target)
            detail = self.detail(target)
            found.append(
                (
                    f"{target}: {each[BEFORE].target[0]}",
                    *values,
                    *words,
                    "-" if change != change else f"{change:+.0%}",
                    "-" if detail != detail else f"{detail:.0%}",
                )
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON types."""

        def known(value: float) -> float | None:
            return None if value != value else value

        return {
            "kind": KIND,
            "format": FORMAT,
            "settings": dict(self.settings),
            "probabilities": {name: dict(each) for name, each in self.probabilities.items()},
            "own": {when: curve.tolist() for when, curve in self.own.items()},
            "figures": {
                target: {
                    "on_guest_before": known(self.on_guest(target, BEFORE)),
                    "on_guest_after": known(self.on_guest(target, AFTER)),
                    "moved": known(self.moved(target)),
                    "detail": known(self.detail(target)),
                }
                for target in self.members
            },
            "members": {target: {when: one.to_dict() for when, one in each.items()} for target, each in self.members.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write pictures, relevance and record to one safetensors file (to a temporary name first, then renamed)."""
        tensors, kept = records.together({f"{target}/{when}": one for target, each in self.members.items() for when, one in each.items()})
        tensors |= {"where": self.where, **{f"picture/{when}": p for when, p in self.pictures.items()}}
        records.write(path, tensors, {**self.to_dict(), "members": kept})

    @classmethod
    def load(cls, path: str | Path) -> Guidance:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a guidance", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Guidance:
        """What ``save`` wrote, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)

        members: dict[str, dict[str, Relevance]] = {}
        for label, own, one in records.apart(tensors, record["members"]):
            target, when = label.split("/")
            members.setdefault(target, {})[when] = Relevance.unpacked(own, one, where)
        pictures = {name.removeprefix("picture/"): tensor for name, tensor in tensors.items() if name.startswith("picture/")}
        curves = {when: torch.tensor(curve, dtype=torch.float64) for when, curve in record["own"].items()}
        return cls(members, pictures, tensors["where"], record["probabilities"], curves, record["settings"])

    def __repr__(self) -> str:
        return f"Guidance by a guest of {self.settings.get('guest')}\n{aligned([HEAD, *self.rows()])}"


def _cells(where: Tensor, grid: Any) -> Tensor:
    """1 for the cells of a grid that hold a pixel of a place, else 0."""
    return torch.nn.functional.adaptive_max_pool2d(where[None, None].float(), tuple(grid))[0, 0].double()


def _share(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else torch.full_like(values, torch.nan)
