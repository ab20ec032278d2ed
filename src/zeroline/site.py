"""Where the features are: a site names a tensor of the forward pass.

Holds the record and its spelling, ``Site.parse`` and ``str(site)`` being inverse. Finding the tensor in a
running model is ``zeroline.model.places``.

=====================  =============================================================
spelling               meaning
=====================  =============================================================
``input``              the model's only floating-point input
``input:NAME``         that input (a keyword argument, or a parameter of ``forward``)
``embedding:NAME``     output of the ``nn.Embedding`` that looks up the id input NAME
``encoder.layer.3``    output of that module; ``*`` and ``?`` as in file names
``encoder.gru[0]``     element 0 (or ``[hidden]``) of a tuple (or dict) output
``encoder.shared#1``   the module's second call in one forward pass
``attention:NAME#1``   attention map of the module's second attention in one pass
``A + B``              joint site: both on one path
``all:layers.*``       joint site of every module that matches
=====================  =============================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from zeroline.errors import SiteError

_MODULE = re.compile(r"(?P<name>[^\[\]#\s]+)(?:\[(?P<output>\w+)\])?(?:#(?P<call>\d+))?")


@dataclass(frozen=True)
class Site:
    """One tensor of the forward pass, or several on one path (``joint`` is then not empty).

    ``call`` counts the calls of a module within one forward pass from 0; ``output`` addresses a tensor
    in a tuple (by index) or a dict (by key).
    """

    kind: Literal["input", "embedding", "module", "attention", "joint", "all"]
    name: str | None = None
    output: int | str | None = None
    call: int = 0
    module: nn.Module | None = None
    joint: tuple[Site, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read the spelling of the table above.

        >>> Site.parse("encoder.gru[0]#1")
        Site(kind='module', name='encoder.gru', output=0, call=1, module=None, joint=())
        >>> str(Site.parse("embedding:input_ids + input:pixels"))
        'embedding:input_ids + input:pixels'
        """
        parts = [part.strip() for part in text.split("+")]
        if len(parts) > 1:
            return cls("joint", joint=tuple(cls.parse(part) for part in parts))
        head, _, name = parts[0].partition(":")
        if head == "input":
            return cls("input", name or None)
        if head == "embedding":
            return cls("embedding", name or None)
        if head == "all" and name:
            return cls("all", name)
        if head == "attention":
            path, _, call = name.partition("#")
            return cls("attention", path, call=int(call) if call.isdigit() else 0)
        match = _MODULE.fullmatch(parts[0])
        if match is None:
            raise SiteError(f"cannot read the site {text!r}; write a module as NAME, NAME[OUTPUT] or NAME#CALL, or input:NAME")
        output = match["output"]
        key = int(output) if output is not None and output.isdigit() else output
        return cls("module", match["name"], key, int(match["call"] or 0))

    def __str__(self) -> str:
        if self.kind == "joint":
            return " + ".join(str(part) for part in self.joint)
        if self.kind == "attention":
            return f"attention:{self.name or ''}{f'#{self.call}' if self.call else ''}"
        if self.kind != "module":
            return f"{self.kind}:{self.name}" if self.name else self.kind
        name = self.name if self.name is not None else type(self.module).__name__
        output = "" if self.output is None else f"[{self.output}]"
        return f"{name}{output}{f'#{self.call}' if self.call else ''}"


def input(name: str | None = None) -> Site:
    """A floating-point input of the model; without a name, the only one."""
    return Site("input", name)


def embedding(name: str | None = None) -> Site:
    """The embedding of an integer (id) input: ``[batch, tokens, width]``."""
    return Site("embedding", name)


def module(where: str | nn.Module, *, output: int | str | None = None, call: int = 0) -> Site:
    """The output of a module, by dotted name (with ``*`` and ``?``) or by object."""
    if isinstance(where, nn.Module):
        return Site("module", None, output, call, where)
    return Site("module", where, output, call)


def attention(path: str, *, call: int = 0) -> Site:
    """The map of an attention, [batch, heads, queries, keys]: by the module that computes it, as ``zl.trace`` lists them."""
    return Site("attention", path, call=call)


def all_of(pattern: str) -> Site:
    """Every module whose dotted name matches (``*`` and ``?`` within a component), on one path."""
    return Site("all", pattern)


def joint(*sites: Site | str | nn.Module) -> Site:
    """Several sites whose features move together from their baselines along one path."""
    return Site("joint", joint=tuple(as_site(site) for site in sites))


SiteLike = Site | str | nn.Module | None


def as_site(site: SiteLike) -> Site:
    """The site that a user's argument means: None is the input."""
    if site is None:
        return Site("input")
    if isinstance(site, Site):
        return site
    if isinstance(site, str):
        return Site.parse(site)
    if isinstance(site, nn.Module):
        return module(site)
    raise SiteError(f"a site is a name, a module, a zl.site record or None, not {type(site).__name__}")
