"""Read a run once and say what is in it: distributions of errors, the examples to look at, mean maps per class, agreement with another run."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import torch
from torch import Tensor

from zeroline.errors import UsageError
from zeroline.scale.job import differences
from zeroline.scale.opened import Run, open_run
from zeroline.summary import Disagreement, Spread, Summary

SHOWN = 5  # examples that are named
CLASSES = 12  # mean maps at most: of the classes with the most examples
EDGES = tuple(10.0 ** (exponent / 4) for exponent in range(-20, 5))  # of |E| / |D|: 1e-5 to 10, four bins per decade
_FIGURES = {
    "|attribution error|": "error",
    "|error| / |difference|": "relative_error",
    "local error": "local_error",
    "map error": "map_error",
    "|difference|": "difference",
    "gradient evaluations": "evaluations",
    "seconds per example": "seconds",
    "evidence inside the object": "inside",
    "largest value inside": "pointing",
    "chance": "chance",
}
_SIZES = ("error", "difference", "relative_error")  # of these the absolute value
_AT_ONCE = 1024


def summarize(run: Run | str | Path, *, against: Run | str | Path | None = None) -> Summary:
    """What a run found, in one record; ``against`` another run over the same examples, what they disagree on.

    Figures of all examples are held at once, maps a thousand at a time. Raises UsageError where the run has no finished example.
    """
    run = run if isinstance(run, Run) else open_run(run)
    known = set(run.layout.schema().names)
    wanted = [name for name in ("id", "label", "target", "stopped", *_FIGURES.values()) if name in known]
    table = run.dataset.to_table(columns=wanted) if len(run) else None
    if table is None:
        raise UsageError(f"{str(run.folder)!r} has no finished example; {run.failures.num_rows} failed: see its failures")
    ids, labels = table["id"].to_pylist(), [label or "" for label in table["label"].to_pylist()]
    figures = {name: _numbers(table[column], column in _SIZES) for name, column in _FIGURES.items() if column in wanted}
    if "relative_error" not in wanted and {"error", "difference"} <= set(wanted):
        figures["|error| / |difference|"] = figures["|attribution error|"] / figures["|difference|"]
    relative = figures.get("|error| / |difference|")
    classes = labels if any(labels) else table["target"].to_pylist()
    chosen = dict(Counter(classes).most_common(CLASSES))
    return Summary(
        folder=str(run.folder),
        model=run.manifest.model,
        settings=run.manifest.settings,
        examples=len(ids),
        failed=run.failures.num_rows,
        reasons=_reasons(run),
        spreads={name: spread for name, values in figures.items() if (spread := Spread.of(values)) is not None},
        stopped=dict(Counter(one for one in table["stopped"].to_pylist() if one).most_common()) if "stopped" in wanted else {},
        slowest=_largest(ids, labels, figures["seconds per example"]),
        least_exact=() if relative is None else _largest(ids, labels, relative),
        histogram=None if relative is None or not bool(relative.isfinite().any()) else (EDGES, _binned(relative)),
        counts=chosen,
        maps=_mean_maps(run, dict(zip(ids, classes)), chosen),
        against=None if against is None else _disagreement(run, against if isinstance(against, Run) else open_run(against)),
    )


def _numbers(column: Any, size: bool) -> Tensor:
    found = torch.tensor([float("nan") if value is None else float(value) for value in column.to_pylist()], dtype=torch.float64)
    return found.abs() if size else found


def _largest(ids: list[str], labels: list[str], values: Tensor) -> tuple[tuple[str, str, float], ...]:
    known = values.nan_to_num(nan=-1.0)
    order = heapq.nlargest(SHOWN, range(len(ids)), key=lambda i: (float(known[i]), -i))
    return tuple((ids[i], labels[i], float(values[i])) for i in order if known[i] >= 0)


def _binned(values: Tensor) -> tuple[int, ...]:
    inside = values[values.isfinite()].clamp(EDGES[0], EDGES[-1] * (1 - 1e-12))
    return tuple(int(count) for count in torch.histogram(inside, torch.tensor(EDGES, dtype=torch.float64)).hist)


def _reasons(run: Run) -> dict[str, int]:
    return dict(Counter(f"{row['stage']}, {row['error']}" for row in run.failures.select(["stage", "error"]).to_pylist()).most_common(SHOWN))


def _maps(run: Run, ids: list[str] | None = None, numbers: list[int] | None = None) -> Iterator[tuple[list[str], Tensor]]:
    """Ids and maps [n, rows, columns], a thousand at a time; of some examples where ``numbers`` are given."""
    where = None
    if numbers is not None:
        field = pa.dataset.field("number")
        where = (field >= min(numbers)) & (field <= max(numbers))
    for batch in run.dataset.to_batches(columns=["id", "map"], filter=where, batch_size=_AT_ONCE):
        if batch.num_rows:
            yield batch["id"].to_pylist(), torch.from_numpy(batch["map"].to_numpy_ndarray().copy())


def _has_maps(run: Run) -> bool:
    layout = run.layout
    return layout.map is not None and layout.map.shape is not None


def _mean_maps(run: Run, classes: Mapping[str, str], chosen: Mapping[str, int]) -> dict[str, Tensor]:
    if not _has_maps(run):
        return {}
    sums: dict[str, Tensor] = {}
    for ids, maps in _maps(run):
        for id, map_ in zip(ids, maps.double()):
            if classes[id] in chosen:
                sums[classes[id]] = sums.get(classes[id], torch.zeros_like(map_)) + map_
    return {name: (sums[name] / count).float() for name, count in chosen.items()}


def _disagreement(here: Run, there: Run) -> Disagreement:
    columns = ["id", "number", "content_hash", "target", "output"]
    tables = [run.dataset.to_table(columns=columns).to_pylist() for run in (here, there)]
    mine, theirs = ({row["id"]: row for row in rows} for rows in tables)
    both = [id for id in mine if id in theirs]
    same = [id for id in both if mine[id]["content_hash"] == theirs[id]["content_hash"]]
    outputs = torch.tensor([mine[id]["output"] - theirs[id]["output"] for id in same], dtype=torch.float64).abs()
    spreads = {"|f(x) here - there|": Spread.of(outputs)}
    apart: list[tuple[str, float, float]] = []
    if _has_maps(here) and _has_maps(there) and here.layout.map.shape == there.layout.map.shape:  # type: ignore[union-attr]
        apart = list(_apart(here, there, set(same), {id: theirs[id]["number"] for id in same}))
        cosines, distances = (torch.tensor([one[i] for one in apart], dtype=torch.float64) for i in (1, 2))
        spreads |= {"cosine of the maps": Spread.of(cosines), "distance of the maps": Spread.of(distances)}
    settings = differences(here.manifest.settings, there.manifest.settings, ("here", "there"))
    if here.manifest.model_id != there.manifest.model_id:
        settings.append(f"model: {here.manifest.model_id} here, {there.manifest.model_id} there")
    return Disagreement(
        other=str(there.folder),
        common=len(same),
        only_here=len(mine) - len(both),
        only_there=len(theirs) - len(both),
        changed=len(both) - len(same),
        same_target=sum(mine[id]["target"] == theirs[id]["target"] for id in same),
        spreads={name: spread for name, spread in spreads.items() if spread is not None},
        apart=tuple(heapq.nsmallest(SHOWN, apart, key=lambda one: (one[1], one[0]))),
        settings=tuple(settings),
    )


def _apart(here: Run, there: Run, same: set[str], numbers: Mapping[str, int]) -> Iterator[tuple[str, float, float]]:
    """(id, cosine, |a - b|_1 / |a|_1) of the maps of each example; those of empty maps are left out."""
    for ids, maps in _maps(here):
        wanted = [id for id in ids if id in same]
        if not wanted:
            continue
        others: dict[str, Tensor] = {}
        for found, other in _maps(there, numbers=[numbers[id] for id in wanted]):
            others |= {id: map_ for id, map_ in zip(found, other) if id in same}
        for id, map_ in zip(ids, maps):
            if id not in others or id not in same:
                continue
            a, b = map_.double().flatten(), others[id].double().flatten()
            if float(a.norm()) > 0 and float(b.norm()) > 0:
                yield id, float(a @ b / (a.norm() * b.norm())), float((a - b).abs().sum() / a.abs().sum())
