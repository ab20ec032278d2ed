"""What a baseline stands for on a running model: the inputs x0, the features z0, and recipes followed.

Holds ``reference_inputs`` (x0), ``settled`` (recipes turned into inputs or features: the mean of a set, other words, a
neutral input) and ``settle``, the same for users of several sites, so that a recipe is followed once. Looking for a neutral
input is ``model.neutral``; what is done with x0 and z0 is ``model.ask``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.baseline import Baseline, BaselineLike, Distribution, MeanOf, Neutral, Replaced, as_baseline
from zeroline.errors import BaselineError, InputError
from zeroline.model import normalisation
from zeroline.model.inputs import Inputs
from zeroline.model.neutral import Bounds, Progress, descend
from zeroline.model.places import Place, embedding_of, resolve, run
from zeroline.model.state import untouched
from zeroline.site import SiteLike, as_site

Places = tuple[Place, ...]
Features = tuple[Tensor, ...]


def reference_inputs(model: nn.Module, inputs: Inputs, baseline: Baseline, places: Places = ()) -> Inputs:
    """x0: the complete inputs that an input baseline stands for. Other inputs of one sample serve a whole batch."""
    if baseline.inputs is not None:
        return _as_many(Inputs.of(model, baseline.inputs), inputs, baseline)
    names = input_names(model, inputs, baseline, places)
    norm = normalisation.of(model)
    return inputs.with_values({name: baseline(inputs.tensors[name], norm) for name in names})


def _as_many(other: Inputs, inputs: Inputs, baseline: Baseline) -> Inputs:
    """Another input with as many rows as x; an error where it does not have the shapes of x."""
    if other.batch == 1 and inputs.batch > 1:
        other = other.rows(torch.zeros(inputs.batch, dtype=torch.long))
    for name, tensor in inputs.tensors.items():
        found = other.tensors.get(name)
        if found is None or found.shape != tensor.shape:
            shape = "nothing" if found is None else str(tuple(found.shape))
            raise BaselineError(f"baseline {baseline.name!r} gives {shape} for input {name!r}; x has {tuple(tensor.shape)}")
    return other


def input_names(model: nn.Module, inputs: Inputs, baseline: Baseline, places: Places) -> list[str]:
    """The inputs that an input baseline fills: those that the site names, else the model's main one."""
    return [place.input for place in places if place.input] or [main_input(model, inputs, baseline)]


def main_input(model: nn.Module, inputs: Inputs, baseline: Baseline) -> str:
    """The floating-point input that an input baseline fills: the only one, or the model's main one."""
    name = getattr(model, "main_input_name", None)
    try:
        return inputs.only_floating(name if name in inputs.floating() else None)
    except InputError:
        if not inputs.floating():
            message = (
                "fills pixels or features, and the model's inputs are ids;"
                " use zl.baseline.of(other ids) or .mask_token(tokenizer), or zeros() at the embedding"
            )
            raise BaselineError(f"baseline {baseline.name!r} {message}") from None
        raise


def settle(model: nn.Module, inputs: Any, baseline: BaselineLike, site: SiteLike = None, progress: Progress | None = None) -> Baseline | Distribution:
    """A baseline whose recipe, if it is at the input, has been followed: for several questions about the same inputs.

    ``site`` tells which inputs are meant where a model has several; ``progress`` is called with (steps done, at most) of a search.
    """
    if isinstance(baseline, Distribution):
        return replace(baseline, draws=tuple(settle_one(model, inputs, draw, site, progress) for draw in baseline.draws))
    return settle_one(model, inputs, as_baseline(baseline), site, progress)


def settle_sites(model: nn.Module, inputs: Any, baseline: BaselineLike, sites: Sequence[SiteLike]) -> list[Baseline | Distribution]:
    """One baseline for each of several sites, its recipe followed once for all of them (the mean of a set: one pass over the set)."""
    if not isinstance(baseline, Baseline) or not isinstance(baseline.recipe, MeanOf) or baseline.at == "input":
        named = [site for site in sites if _names_an_input(site)]
        return [settle(model, inputs, baseline, named[0] if named else None)] * len(sites)
    with untouched(model):
        known = Inputs.of(model, inputs)
        places = [resolve(model, known, as_site(site)) for site in sites]
        unique = tuple(dict.fromkeys(place for own in places for place in own))
        means = dict(zip(unique, settled(model, known, baseline, unique).features))
        return [replace(baseline, recipe=None, features=tuple(means[place] for place in own)) for own in places]


def _names_an_input(site: SiteLike) -> bool:
    known = as_site(site)
    return (known.kind == "input" and known.name is not None) or any(_names_an_input(part) for part in known.joint)


def settle_one(model: nn.Module, inputs: Any, baseline: Baseline, site: SiteLike = None, progress: Progress | None = None) -> Baseline:
    """As ``settle``, for a single baseline."""
    if baseline.recipe is None or baseline.at == "site":
        return baseline
    with untouched(model):
        known = Inputs.of(model, inputs)
        return settled(model, known, baseline, resolve(model, known, as_site(site)) if _names_an_input(site) else (), progress)


def settled(model: nn.Module, inputs: Inputs, baseline: Baseline, places: Places, progress: Progress | None = None) -> Baseline:
    """The baseline with its recipe followed: ``inputs`` (x0) or ``features`` (z0 at ``places``) known. Runs the model."""
    if baseline.recipe is None:
        return baseline
    if isinstance(baseline.recipe, Neutral):
        return replace(_neutral(model, inputs, baseline, places, progress), recipe=None)
    follow = _mean if isinstance(baseline.recipe, MeanOf) else _other_words
    return replace(follow(model, inputs, baseline, places), recipe=None)


def _other_words(model: nn.Module, inputs: Inputs, baseline: Baseline, places: Places) -> Baseline:
    recipe = baseline.recipe
    assert isinstance(recipe, Replaced)
    name = _word_input(model, inputs, baseline)
    return replace(baseline, inputs=inputs.with_values({name: other_words(model, inputs, name, recipe)}))


def other_words(model: nn.Module, inputs: Inputs, name: str, recipe: Replaced) -> Tensor:
    """The ids of an input with the recipe's token in the place of every word that it does not keep; an error where the model knows no such token."""
    ids = inputs.tensors[name]
    module, _ = embedding_of(model, inputs, name)
    embedding = model.get_submodule(module)
    assert isinstance(embedding, nn.Embedding)
    entries = embedding.num_embeddings
    if not 0 <= recipe.token < entries:
        raise BaselineError(f"token {recipe.token} asked for every word; the embedding {module!r} has {entries} entries: 0 to {entries - 1}")
    keep = torch.isin(ids, torch.tensor(recipe.keep, dtype=ids.dtype, device=ids.device))
    return torch.where(keep, ids, torch.full_like(ids, recipe.token))


def _word_input(model: nn.Module, inputs: Inputs, baseline: Baseline) -> str:
    """The input of token ids: the model's main one, or the only integers that are no mask and no positions."""
    ids = inputs.ids()
    if getattr(model, "main_input_name", None) in ids:
        return str(model.main_input_name)
    words = [name for name, t in ids.items() if t.ndim == 2 and t.numel() and "mask" not in name and "type" not in name and "position" not in name]
    if len(words) == 1:
        return words[0]
    raise BaselineError(f"baseline {baseline.name!r} replaces token ids, and {len(words)} inputs could hold them ({', '.join(words) or 'none'})")


def _mean(model: nn.Module, inputs: Inputs, baseline: Baseline, places: Places) -> Baseline:
    recipe = baseline.recipe
    assert isinstance(recipe, MeanOf)
    if baseline.at == "input":
        places = tuple(Place(input=name) for name in input_names(model, inputs, baseline, places))
    totals: list[Tensor] = []
    count = 0
    for member in recipe.members:
        given = Inputs.of(model, member)
        found = _features(model, given, places, baseline)
        count += given.batch
        for i, (place, z) in enumerate(zip(places, found)):
            total = z.to(torch.float64 if z.device.type != "mps" else z.dtype).sum(0, keepdim=True)
            if len(totals) <= i:
                totals.append(total)
            elif totals[i].shape != total.shape:
                shapes = f"{tuple(totals[i].shape[1:])} and {tuple(total.shape[1:])}"
                raise BaselineError(f"the inputs of mean_of give features of different shapes at {str(place)!r}: {shapes}; a mean needs one shape")
            else:
                totals[i] = totals[i] + total
    means = tuple(total / count for total in totals)
    if baseline.at == "site":
        return replace(baseline, features=means)
    values = {str(place.input): like_those_of_x(baseline, mean, inputs.tensors[str(place.input)]) for place, mean in zip(places, means)}
    return replace(baseline, inputs=inputs.with_values(values))


def like_those_of_x(baseline: Baseline, mean: Tensor, z: Tensor) -> Tensor:
    """The mean features of a set for every sample of x; an error where they have another shape than those of x."""
    if mean.shape[1:] != z.shape[1:]:
        raise BaselineError(f"baseline {baseline.name!r} has shape {tuple(mean.shape[1:])} per sample; the features of x have {tuple(z.shape[1:])}")
    return baseline.checked(mean, z)


def _features(model: nn.Module, given: Inputs, places: Places, baseline: Baseline) -> Features:
    """The features of other inputs at places; no forward pass where all of them are inputs."""
    if all(place.input for place in places):
        missing = [str(place.input) for place in places if place.input not in given.tensors]
        if missing:
            raise BaselineError(f"an input of baseline {baseline.name!r} has no {missing[0]!r}; it has {', '.join(given.tensors)}")
        return tuple(given.tensors[str(place.input)] for place in places)
    return features_at(model, given, places)


@torch.no_grad()
def features_at(model: nn.Module, inputs: Inputs, places: Places) -> Features:
    """The features at places in one plain pass."""
    seen: dict[int, Tensor] = {}

    def keep(i: int, tensor: Tensor) -> Tensor:
        seen[i] = tensor.detach().clone()
        return tensor

    run(model, inputs, places, keep)
    return tuple(seen[i] for i in range(len(places)))


def _neutral(model: nn.Module, inputs: Inputs, baseline: Baseline, places: Places, progress: Progress | None) -> Baseline:
    recipe = baseline.recipe
    assert isinstance(recipe, Neutral)
    if baseline.at == "input":
        places = tuple(Place(input=name) for name in input_names(model, inputs, baseline, places))
        begin = settled(model, inputs, recipe.start, places)
        start = _first_values(model, inputs, begin, places)
        found, kl = descend(model, inputs, places, start, [_bounds(model, z, recipe) for z in start], recipe, progress)
        return replace(baseline, inputs=inputs.with_values({str(place.input): z for place, z in zip(places, found)}), kl=kl)
    begin = settled(model, inputs, recipe.start, places)
    z = features_at(model, inputs, places)
    if begin.at == "input":
        start = features_at(model, reference_inputs(model, inputs, begin, places), places)
    else:
        start = tuple(begin.checked(f, like) for f, like in zip(begin.features, z)) if begin.features else tuple(begin(f) for f in z)
    found, kl = descend(model, inputs, places, start, None, recipe, progress)
    return replace(baseline, features=found, kl=kl)


def _first_values(model: nn.Module, inputs: Inputs, begin: Baseline, places: Places) -> Features:
    """The inputs at which the search begins."""
    likes = [inputs.tensors[str(place.input)] for place in places]
    if begin.inputs is not None:
        other = _as_many(Inputs.of(model, begin.inputs), inputs, begin).tensors
        return tuple(begin.checked(other[str(place.input)], like) for place, like in zip(places, likes))
    if begin.features:
        return tuple(begin.checked(z0, like) for z0, like in zip(begin.features, likes))
    norm = normalisation.of(model)
    return tuple(begin(like, norm) for like in likes)


def _bounds(model: nn.Module, like: Tensor, recipe: Neutral) -> Bounds:
    """The range of the input: of pixels in [0, 1] as the model sees them, or as given."""
    if recipe.low is not None and recipe.high is not None:
        return torch.full_like(like, recipe.low), torch.full_like(like, recipe.high)
    known = normalisation.of(model)
    if known is None:
        raise BaselineError("neutral() keeps pixels within [0, 1] and the model does not say its normalisation; give neutral(..., low=..., high=...)")
    return known.of(0.0, like), known.of(1.0, like)
