"""Saved records spoilt in every way that a file can be: cut, flipped, with other JSON, other tensors, other shapes, other kinds.

``spoilt(files)`` is a hypothesis strategy of (what was done in words, the bytes of a file, the kind that it was). Nothing here reads records with
zeroline: a file is taken apart and put together with json and safetensors alone.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

HUGE = (10**30, -(10**30), 2**63, 10**9, -1, 0, 1e308, -1e308, 1e-320, math.nan, math.inf, -math.inf, 0.5)
TEXTS = {
    "deep": "[" * 100_000, "deep and whole": "[" * 100_000 + "]" * 100_000, "deep objects": '{"kind":' * 50_000, "nothing": "", "half": "{", "null": "null",
    "a list": "[]", "beyond floats": "1e999", "an empty object": "{}", "a kind alone": '{"kind": "logic", "format": 1}',
}  # fmt: skip
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64, torch.uint8, torch.bool)
KINDS = (
    "attribution", "audit", "comparison", "corrections", "grounding", "guidance", "logic", "mechanism", "principles", "relevance", "rewriting",
    "robustness", "summary",
)  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.sampled_from(HUGE), st.floats(allow_nan=True), st.text(max_size=6),
    st.sampled_from(["", "nan", "</script><b>", "\x00", "\ud800", "x" * 300, *KINDS]),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["", "a", "model", "grid", "tokens", "0"]), inner, max_size=3),
    max_leaves=6,
)


def apart(content: bytes) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Texts and tensors of a safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]).get("__metadata__", {}), load(content)


def together(texts: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The file again."""
    return save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, dict(texts))


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """The ways to every node of a JSON value but the root."""
    found = []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += [(*at, key), *places(child, (*at, key))]
    return found


def at(value: Any, way: tuple) -> Any:
    for key in way:
        value = value[key]
    return value


def numbers(value: Any) -> list[tuple]:
    """The ways to the numbers."""
    return [way for way in places(value) if isinstance(at(value, way), (int, float)) and not isinstance(at(value, way), bool)]


def _cut(choose: Any, content: bytes) -> tuple[str, bytes]:
    size = choose(st.integers(0, len(content) - 1))
    return f"cut to {size} of {len(content)} bytes", content[:size]


def _flipped(choose: Any, content: bytes) -> tuple[str, bytes]:
    spoilt = bytearray(content)
    where = choose(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), min_size=1, max_size=4))
    for place, bits in where:
        spoilt[place] ^= bits
    return f"flipped {where}", bytes(spoilt)


def _junk(choose: Any, content: bytes) -> tuple[str, bytes]:
    added = choose(st.binary(min_size=1, max_size=40))
    return f"{added!r} behind it", content + added


def _headed(choose: Any, content: bytes) -> tuple[str, bytes]:
    size = choose(st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1, len(content), len(content) - 8]))
    return f"a header of {size} bytes", struct.pack("<Q", size) + content[8:]


def _told(choose: Any, content: bytes) -> tuple[str, bytes]:
    """Some nodes of one of the JSON texts are something else, gone, or called otherwise."""
    texts, tensors = apart(content)
    key = choose(st.sampled_from(sorted(texts)))
    record = json.loads(texts[key])
    done = []
    for _ in range(choose(st.integers(1, 2))):
        ways = places(record)
        if not ways:
            break
        top = choose(st.booleans())
        way = choose(st.sampled_from([w for w in ways if len(w) == 1] if top else ways))
        holder, last = at(record, way[:-1]), way[-1]
        how = choose(st.sampled_from(["replaced", "replaced", "removed", "renamed", "doubled"]))
        if how == "removed":
            del holder[last]
        elif how == "renamed" and isinstance(holder, dict):
            holder[choose(st.text(max_size=4))] = holder.pop(last)
        elif how == "doubled" and isinstance(holder, list):
            holder.append(holder[last])
        else:
            how, holder[last] = "replaced", choose(anything)
            how += f" by {holder[last]!r:.60}"
        done.append(f"{key} {way} {how}")
    return "; ".join(done), together({**texts, key: json.dumps(record)}, tensors)


def _figured(choose: Any, content: bytes) -> tuple[str, bytes]:
    """A number of the JSON is huge, negative, no number."""
    texts, tensors = apart(content)
    key = choose(st.sampled_from(sorted(texts)))
    record = json.loads(texts[key])
    ways = numbers(record)
    if not ways:
        return _told(choose, content)
    way = choose(st.sampled_from(ways))
    value = choose(st.sampled_from(HUGE))
    at(record, way[:-1])[way[-1]] = value
    return f"{key} {way} = {value}", together({**texts, key: json.dumps(record)}, tensors)


def _text(choose: Any, content: bytes) -> tuple[str, bytes]:
    """A text is another text: no JSON, very deep, of another type, of another kind or version."""
    texts, tensors = apart(content)
    key = choose(st.sampled_from(sorted(texts)))
    whole = json.loads(texts[key])
    other = choose(
        st.one_of(
            st.sampled_from(sorted(TEXTS)).map(TEXTS.get),
            anything.map(json.dumps),
            st.sampled_from(KINDS).map(lambda kind: json.dumps({**whole, "kind": kind})),
            st.sampled_from(KINDS).map(lambda kind: json.dumps({**whole, "kind": kind, "format": 2 if kind in ("attribution", "relevance") else 1})),
            scalars.map(lambda form: json.dumps({**whole, "format": form})),
        )
    )
    return f"{key} is {other[:60]!r}", together({**texts, key: other}, tensors)


def _tensors(choose: Any, content: bytes) -> tuple[str, bytes]:
    """One or two tensors are gone, called otherwise, of another shape, type, or content."""
    texts, tensors = apart(content)
    done = []
    for _ in range(choose(st.integers(1, 2))):
        if not tensors:
            break
        name = choose(st.sampled_from(sorted(tensors)))
        tensor = tensors[name]
        how = choose(st.sampled_from(["gone", "renamed", "shape", "shape", "type", "values", "values", "swapped"]))
        if how == "gone":
            del tensors[name]
        elif how == "renamed":
            tensors[choose(st.sampled_from(["x", "seen/x", f"{name}x", "0/output", "seen/pictures/image", "seen/places/left"]))] = tensors.pop(name)
        elif how == "shape":
            shape = choose(st.lists(st.integers(0, 5), max_size=4))
            count = math.prod(shape)
            tensors[name] = (
                tensor.flatten().repeat(count // max(tensor.numel(), 1) + 1)[:count].reshape(shape) if tensor.numel() else torch.zeros(shape)
            )
            how = f"{tuple(tensor.shape)} -> {tuple(shape)}"
        elif how == "type":
            kind = choose(st.sampled_from(TYPES))
            tensors[name], how = tensor.to(kind), f"as {kind}"
        elif how == "swapped":
            other = choose(st.sampled_from(sorted(tensors)))
            tensors[name], tensors[other], how = tensors[other], tensors[name], f"swapped with {other}"
        else:
            value = choose(st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0, 1e-310, 2.0**70]))
            spoilt = tensor.clone().flatten()
            if spoilt.is_floating_point():
                whole = spoilt.double()
                whole[: len(whole) if choose(st.booleans()) else 1] = value
                spoilt = whole.to(tensor.dtype)
            elif spoilt.numel():
                spoilt[0] = choose(st.sampled_from([-1, 2**62, 9] if spoilt.dtype == torch.int64 else [0, 1]))
            tensors[name], how = spoilt.reshape(tensor.shape), f"holds {value}"
        done.append(f"{name}: {how}")
    return "; ".join(done), together(texts, tensors)


WAYS = {"cut": _cut, "flipped": _flipped, "junk": _junk, "headed": _headed, "told": _told, "figured": _figured, "text": _text, "tensors": _tensors}


def spoilt(files: Mapping[str, bytes], ways: tuple[str, ...] = tuple(WAYS)) -> st.SearchStrategy[tuple[str, bytes, str]]:
    """(what was done, the bytes of the file, the name of the record that it was)."""
    return _spoilt(_Files(files), ways)


class _Files(dict):
    """Named in a failure by their names alone."""

    def __repr__(self) -> str:
        return "files"


@st.composite
def _spoilt(draw: Any, files: Mapping[str, bytes], ways: tuple[str, ...]) -> tuple[str, bytes, str]:
    name = draw(st.sampled_from(sorted(files)))
    way = draw(st.sampled_from(ways))
    words, content = WAYS[way](draw, files[name])
    return f"{name}: {words}", content, name


def saved(folder: Path) -> dict[str, bytes]:
    """One file of every kind, tiny."""
    from report.page_records import every, save

    found = {}
    for name, (record, around) in every().items():
        found[name] = save(record, around, folder, name.replace(" ", "-")).read_bytes()
    return found
