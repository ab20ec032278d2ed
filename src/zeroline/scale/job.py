"""What a run asks of every example: model, method, target, baseline and options, and the hash that tells two such questions apart.

Holds ``Job``. A job travels to other processes, so it names things rather than holding them where it can; what it holds (a module, a target or a
baseline made in Python) travels with it. It loads nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.baseline import Baseline, Distribution
from zeroline.errors import NotFoundError, UsageError
from zeroline.methods import METHODS, ROUTES, check_options, options_of
from zeroline.model.identity import weights_hash
from zeroline.model.loading import Sourced
from zeroline.scale.columns import KEEPS, SCHEMA
from zeroline.spelling.sources import image_files
from zeroline.target import Target

PARADIGMS = ("logic", "ground", "mechanism")
LABEL = "label"  # the target that is each example's own label
BLACK = "black"
_DEEPEST = 8  # how far into a value its description goes
_NO_ROW = ("attention_transfer",)  # a curve over depth of a whole batch
RUNNABLE = tuple(sorted({*METHODS, *ROUTES, *PARADIGMS} - set(_NO_ROW)))
# options of the paradigms that a run passes on; players of `logic` are made for every example
_PARADIGM_OPTIONS = {
    "logic": ("players", "regions", "threshold", "max_evaluations", "seed"),
    "ground": ("rows", "columns", "correction", "calls", "coverage", "rule", "head_fusion"),
    "mechanism": ("calls", "heads", "correction", "max_evaluations"),
}
PLAYERS = ("words and regions", "words", "regions", "sources")
_BASELINES = {*METHODS, "logic", "mechanism"}  # methods with a --baseline


@dataclass(frozen=True, eq=False)
class Job:
    """One question, put to every example. ``model`` is a name (``zoo:digits-vit``), or a module or ``Sourced`` made in Python."""

    model: str | nn.Module | Sourced
    method: str = "integrated_gradients"
    target: str | Target = "top"
    site: str | None = None
    baseline: str | Baseline | Distribution | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    prefix: int | None = None
    keep: str = "values"
    device: str = "auto"
    dtype: str = "float32"
    preprocess: Callable[[Any], Any] | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.method not in RUNNABLE:
            why = f"{self.method} gives no record per example" if self.method in _NO_ROW else "see `zeroline methods`"
            raise NotFoundError.among("method", self.method, RUNNABLE, why)
        if self.method in PARADIGMS:
            for option in self.options:
                if option not in _PARADIGM_OPTIONS[self.method]:
                    raise NotFoundError.among(f"option of {self.method}", option, _PARADIGM_OPTIONS[self.method])
        else:
            check_options(self.method, self.options, but=("site", "baseline", "grid", "prefix", "progress"))
        if self.method not in METHODS and self.site is not None:
            raise UsageError(f"a site ({self.site!r}) means nothing to {self.method}; it belongs to {', '.join(METHODS)}")
        if self.baseline is not None and self.method not in _BASELINES:
            raise UsageError(f"a baseline means nothing to {self.method}; it belongs to {', '.join(sorted(_BASELINES))}")
        if self.method in PARADIGMS and isinstance(self.baseline, str) and self.baseline.partition("(")[0].strip() in ("mean_of", "distribution"):
            raise UsageError(
                f"the baseline {self.baseline!r} was asked; for {self.method} it is one that needs no folder, e.g. zeros, black, blur(8)"
            )
        for what, found in (("grid", self.grid), ("prefix", self.prefix)):
            if found is not None and (self.method in PARADIGMS or what not in options_of(self.method)):
                raise UsageError(f"a {what} means nothing to {self.method}")
        for what, asked, possible in (("keep", self.keep, KEEPS), ("dtype", self.dtype, ("float32", "float64", "bfloat16"))):
            if asked not in possible:
                raise NotFoundError.among(f"{what}=", asked, possible)
        if self.options.get("players", PLAYERS[0]) not in PLAYERS:
            raise NotFoundError.among("players", str(self.options["players"]), PLAYERS)

    @property
    def measured_from(self) -> str | Baseline | Distribution | None:
        """The baseline: black where none was given and the method has one."""
        usual = None if self.method not in _BASELINES else "zeros" if self.method in PARADIGMS else BLACK
        return usual if self.baseline is None else self.baseline

    def settings(self) -> dict[str, Any]:
        """Everything that values depend on beside the example and the weights, as JSON types."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "target": self.target if isinstance(self.target, str) else _described(self.target),
            "site": self.site,
            "baseline": _baseline(self.measured_from),
            "options": {name: _described(value) for name, value in sorted(self.options.items())},
            "grid": None if self.grid is None else list(self.grid),
            "prefix": self.prefix,
            "keep": self.keep,
            "dtype": self.dtype,
            **({"preprocess": _described(self.preprocess)} if self.preprocess is not None else {}),
        }


def settings_hash(settings: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of the settings as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def differences(kept: Mapping[str, Any], asked: Mapping[str, Any], called: tuple[str, str] = ("there", "asked")) -> list[str]:
    """What differs between two settings, in words."""
    names = dict.fromkeys((*kept, *asked))
    return [f"{name}: {kept.get(name)!r} {called[0]}, {asked.get(name)!r} {called[1]}" for name in names if kept.get(name) != asked.get(name)]


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """``tolerance=0.05`` as {"tolerance": 0.05}: Python literals, else text.

    >>> read_options(["tolerance=0.05", "path=gausslegendre", "rectify=False"])
    {'tolerance': 0.05, 'path': 'gausslegendre', 'rectify': False}
    """
    found: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier() or not text.strip():
            raise UsageError(f"cannot read --option {one!r}; write NAME=VALUE, e.g. tolerance=0.05")
        if name in found:
            raise UsageError(f"--option {name} was given twice")
        try:
            found[name] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            found[name] = text.strip()
    return found


def _baseline(baseline: str | Baseline | Distribution | None) -> Any:
    """A baseline by what it is, not only by what it is called: files of a folder, features and inputs by their contents."""
    if isinstance(baseline, str):
        head, _, rest = baseline.strip().partition("(")
        folder = rest.strip().removesuffix(")").partition(",")[0].strip()
        if head not in ("mean_of", "distribution") or folder == "noise":
            return baseline.strip()
        digest = hashlib.sha256()
        for file in image_files(Path(folder)):
            digest.update(file.read_bytes())
        return f"{baseline.strip()} of files {digest.hexdigest()[:16]}"
    return _described(baseline)


def _described(thing: Any, depth: int = 0) -> Any:
    """JSON types of a value made in Python, the same in every process: tensors by their numbers, functions by name, code and what they hold."""

    def inner(value: Any) -> Any:
        return _described(value, depth + 1)

    if thing is None or isinstance(thing, (str, bool, int, float)):
        return thing
    if isinstance(thing, Tensor):
        exact = thing.detach().cpu().to(torch.float64 if thing.is_floating_point() else torch.int64)
        return f"{thing.dtype} {tuple(thing.shape)} {_digest(exact.numpy().tobytes())}"
    if isinstance(thing, Mapping):
        return {str(name): inner(value) for name, value in thing.items()}
    if isinstance(thing, (set, frozenset)):
        return sorted((inner(one) for one in thing), key=repr)
    if isinstance(thing, (list, tuple)):
        return [inner(one) for one in thing]
    if isinstance(thing, nn.Module):
        return f"{type(thing).__qualname__} {weights_hash(thing)()}"
    name = f"{getattr(thing, '__module__', type(thing).__module__)}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
    if depth > _DEEPEST or isinstance(thing, type):
        return name
    if isinstance(thing, partial):
        return {"partial": inner(thing.func), "args": inner(thing.args), "keywords": inner(thing.keywords)}
    if isinstance(thing, FunctionType):
        held = [inner(cell.cell_contents) for cell in thing.__closure__ or ()]
        # the code of the project's own functions goes by its version, which is not part of the question
        code = "" if thing.__module__.startswith("zeroline.") else _digest(thing.__code__.co_code + repr(thing.__code__.co_names).encode())
        return {"function": name, "code": code, "holds": held, "defaults": inner(thing.__defaults__ or ())}
    own = getattr(thing, "__dict__", None)
    return {"": name, **{key: inner(value) for key, value in own.items() if not key.startswith("_")}} if own else name


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]
