"""How many path points fit into one pass: measured, not guessed.

Holds the meter of what autograd keeps for the backward pass and the choice of a batch size from free memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

MOST_ROWS = {"cpu": 64, "cuda": 128}  # beyond this a pass gets longer in proportion, not faster
_AT_ONCE = {"cpu": 2**29}  # bytes of activations beyond which a CPU slows down: allocations are mapped anew every time
_SHARE = 0.25  # of the free memory; the rest is for temporaries and for others


class Meter:
    """Bytes that autograd saved during the block, each storage counted once; a model's own weights, which are there anyway, not at all."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self.bytes = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in weights}

    @contextmanager
    def running(self) -> Iterator[None]:
        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.bytes += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


def rows_that_fit(bytes_per_row: int, device: torch.device) -> int:
    """Rows per pass that keep saved activations within a quarter of the free memory (on a CPU half a GiB); at least 1."""
    most = MOST_ROWS.get(device.type, MOST_ROWS["cpu"])
    room = min(int(_free(device) * _SHARE), _AT_ONCE.get(device.type, 2**62))
    return max(1, min(most, room // max(1, bytes_per_row)))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 2**30
