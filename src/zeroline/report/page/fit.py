"""Values that fit into a page: maps summed over cells, the strongest rows and panels, each loss said in words.

Sums, never samples: what is shown of a map still adds up to all of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zeroline.report.page.parts import Panel, Values, Viewer

MOST = 300_000  # numbers in a viewer: 1.6 MB of the page
SIDE = 256  # cells of a map along a side


def fitted(viewer: Viewer, most: int = MOST) -> Viewer:
    """The viewer with at most ``most`` numbers, and a note for each thing that was done to it."""
    notes: list[str] = []
    panels = tuple(_coarser(panel, SIDE) for panel in viewer.panels) if not viewer.words else viewer.panels
    if any(a.shape != b.shape for a, b in zip(panels, viewer.panels)):
        notes.append(f"maps of more than {SIDE} positions along a side are shown as sums over square cells")
    viewer = replace(viewer, panels=panels)
    if viewer.choices and _numbers(viewer) > most:
        viewer, note = _fewer_choices(viewer, most)
        notes += note
    if len(viewer.panels) > 1 and _numbers(viewer) > most:
        viewer, note = _fewer_panels(viewer, most)
        notes += note
    if not viewer.words and _numbers(viewer) > most:
        side = max(8, int((most / (len(viewer.panels) * max(len(viewer.choices), 1))) ** 0.5))
        viewer = replace(viewer, panels=tuple(_coarser(panel, side) for panel in viewer.panels))
        notes.append(f"maps are shown as sums over square cells, at most {side} along a side")
    return replace(viewer, notes=(*viewer.notes, *notes))


def _numbers(viewer: Viewer) -> int:
    return sum(panel.values.size for panel in viewer.panels)


def _coarser(panel: Panel, side: int) -> Panel:
    """Sums over square cells so that at most ``side`` remain along each side."""
    rows, columns = panel.shape
    step = -(-max(rows, columns) // side)
    if step == 1:
        return panel
    maps = np.pad(panel.values.reshape(-1, rows, columns), [(0, 0), (0, -rows % step), (0, -columns % step)])
    height, width = maps.shape[1] // step, maps.shape[2] // step
    summed: Values = maps.reshape(-1, height, step, width, step).sum((2, 4), dtype=np.float64).astype(np.float32)
    summed = summed.reshape(len(summed), -1)
    return replace(panel, shape=(height, width), values=summed, limits=limits(summed))


def _fewer_choices(viewer: Viewer, most: int) -> tuple[Viewer, list[str]]:
    """The first choice, which is all rows together, and the rows with the largest sizes in the first panel, in their order."""
    each = _numbers(viewer) // len(viewer.choices)
    count = max(1, most // max(each, 1) - 1)
    if count >= len(viewer.choices) - 1:
        return viewer, []
    size = np.abs(viewer.panels[0].values[1:].astype(np.float64)).sum(1)
    kept = np.sort(np.concatenate([[0], 1 + np.argsort(-size, kind="stable")[:count]]))
    panels = tuple(replace(p, values=p.values[kept], limits=tuple(p.limits[i] for i in kept)) for p in viewer.panels)
    note = f"{count:,} of {len(viewer.choices) - 1:,} {viewer.choice}s are here, those with the most"
    return replace(viewer, panels=panels, choices=tuple(viewer.choices[i] for i in kept)), [note]


def _fewer_panels(viewer: Viewer, most: int) -> tuple[Viewer, list[str]]:
    """The first panel and the strongest of the others, in their order."""
    sizes = [float(np.abs(panel.values.astype(np.float64)).sum()) for panel in viewer.panels]
    order = sorted(range(1, len(sizes)), key=lambda i: -sizes[i])
    kept, used = [0], viewer.panels[0].values.size
    for i in order:
        if used + viewer.panels[i].values.size <= most:
            kept.append(i)
            used += viewer.panels[i].values.size
    note = f"{len(kept)} of {len(sizes)} {viewer.slider}s are here, the first and the strongest"
    return replace(viewer, panels=tuple(viewer.panels[i] for i in sorted(kept))), [note]


def limits(values: Values) -> tuple[float, ...]:
    """The end of the colour scale of each row: the 99.5th percentile of the sizes, the largest where that is 0, 1 for an empty map."""
    size = np.abs(values)
    ends = np.quantile(size, 0.995, axis=1) if values.size else np.zeros(len(values))
    return tuple(float(end) or float(most) or 1.0 for end, most in zip(ends, size.max(1, initial=0)))
