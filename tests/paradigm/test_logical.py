"""Logic of models: f of every coalition is that of the model asked alone, known rules are read, and nothing of the model is changed."""

import itertools
import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import zeroline as zl
from attention_models import FAMILIES, HandWritten
from paradigm.logic_toys import CHANNELS, HEIGHT, MASK, REGIONS, WIDTH, WORDS, Facts, Several, numbered, several, slow_game, tokenizer
from zeroline.errors import (
    BaselineError,
    InputError,
    ModelStateError,
    NonFiniteError,
    NotFoundError,
    TargetError,
    TraceError,
    UsageError,
)
from zeroline.maths.coalitions import Implicant, orders
from zeroline.model.absent import filled, under_baselines, usual
from zeroline.model.inputs import Inputs

ONES = {2: torch.ones(1, 2), 3: torch.ones(1, 3), 4: torch.ones(1, 4)}
ZEROS = zl.baseline.zeros()


def ask(rule, count=3, batch=1, **asked):
    """The logic of a rule of ``count`` facts, all of them true."""
    given = {"target": 0, "players": numbered(count), **asked}
    return zl.logic(Facts(rule).eval(), torch.ones(batch, count, dtype=torch.float64), **given)


# Known logic


RULES = {  # rule of facts, the dividends that are not zero, the reading, who is independent
    "and": (lambda a, b, c: a * b, {"ab": 1}, "0 needs a AND b", "c"),
    "or": (lambda a, b, c: a + b - a * b, {"a": 1, "b": 1, "ab": -1}, "0 needs a OR b", "c"),
    "and not": (lambda a, b, c: a * (2 - b), {"a": 2, "ab": -1}, "0 needs a", "bc"),
    "one": (lambda a, b, c: 3 * b, {"b": 3}, "0 needs b", "ac"),
    "additive": (lambda a, b, c: a + b + c, {"a": 1, "b": 1, "c": 1}, "0 needs (a AND b) OR (a AND c) OR (b AND c)", ""),
    "or of three": (
        lambda a, b, c: 1 - (1 - a) * (1 - b) * (1 - c),
        {"a": 1, "b": 1, "c": 1, "ab": -1, "ac": -1, "bc": -1, "abc": 1},
        "0 needs a OR b OR c",
        "",
    ),
    "and of three": (lambda a, b, c: a * b * c, {"abc": 1}, "0 needs a AND b AND c", ""),
    "falling": (lambda a, b, c: 2 - 3 * a * b, {"ab": -3}, "0 needs a AND b", "c"),
    "a or (b and c)": (lambda a, b, c: a + b * c - a * b * c, {"a": 1, "bc": 1, "abc": -1}, "0 needs a OR (b AND c)", ""),
    "odd": (
        lambda a, b, c: (a + b + c) % 2,
        {"a": 1, "b": 1, "c": 1, "ab": -2, "ac": -2, "bc": -2, "abc": 4},
        "0 needs (a AND b AND c) OR (c AND NOT a AND NOT b) OR (b AND NOT a AND NOT c) OR (a AND NOT b AND NOT c)",
        "",
    ),
    "same": (lambda a, b, c: c * (1 - a - b + 2 * a * b), {"c": 1, "ac": -1, "bc": -1, "abc": 2}, "0 needs c AND ((a AND b) OR (NOT a AND NOT b))", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_known_rule_is_found(name):
    rule, expected, reading, out = RULES[name]
    found = ask(rule)
    for players, value in found.dividends.items():
        assert float(value[0]) == pytest.approx(expected.get("".join(players), 0), abs=1e-12)
    assert found.reading == (reading,)
    assert found.independent() == tuple(out)
    assert found.exact
    assert float(found.error[0]) == pytest.approx(0, abs=1e-12)
    assert float(found.total[0]) == pytest.approx(float(rule(*torch.ones(3, 1))[0] - rule(*torch.zeros(3, 1))[0]), abs=1e-12)


def test_a_negated_literal_is_read_where_a_player_stands_in_the_way():
    model = Facts(lambda a, b, c: a * (1 - b)).eval()
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    given = [
        zl.Player("a", "x", torch.tensor([True, False, False])),
        zl.Player("no b", "x", torch.tensor([False, True, False]), zl.baseline.constant(1)),
    ]
    found = zl.logic(model, x, target=0, players=given)
    assert found.reading == ("0 needs a AND no b",)
    given[1] = zl.Player("b", "x", torch.tensor([False, True, False]), ZEROS)
    answer = zl.logic(model, torch.ones(1, 3).double(), target=0, players=given, threshold="answer")
    assert answer.implicants() == (Implicant((0,), (1,)),)
    assert answer.reading == ("0 needs a AND NOT b",)


def test_players_that_cancel_have_no_reading():
    found = ask(lambda a, b, c: a - b)
    assert found.implicants() is None
    assert found.reading == ("no reading of 0: f(all) - f(none) = 0 is small beside what some coalitions change: the players cancel",)
    assert found.independent() == ()
    assert float(found.dividends["a",][0]) == 1
    assert float(found.dividends["b",][0]) == -1


@pytest.mark.parametrize(("left", "read"), [(0.05, False), (0.09, False), (0.12, True), (-0.05, False), (-0.12, True)])
def test_players_cancel_below_a_tenth_of_the_largest_change(left, read):
    found = ask(lambda a, b: a - (1 - left) * b, 2)
    assert (found.implicants() is not None) == read
    assert ("cancel" not in found.reading[0]) == read


def test_an_answer_that_stays_first_is_read_although_the_players_cancel():
    found = ask(lambda a, b: 1 + a - b, 2, threshold="answer")
    assert found.reading == ("0 needs a OR NOT b",)


def test_an_answer_that_always_stays_needs_nobody():
    found = ask(lambda a, b, c: 1 + a, threshold="answer")
    assert found.reading == ("0 needs none of the players: it holds without them",)
    assert found.implicants() == (Implicant(()),)
    assert found.independent() == ("a", "b", "c")


def test_an_answer_that_never_is_first_is_said_to_hold_nowhere():
    found = ask(lambda a, b, c: 0.1 * a * b * c, threshold="answer")
    assert found.implicants() == ()
    assert found.reading != ("0 needs ",)


def test_a_constant_model_is_not_said_to_have_players_that_cancel():
    found = ask(lambda a, b, c: 0 * a + 2)
    assert not any(bool(d.any()) for d in found.dividends.values())
    assert "cancel" not in found.reading[0]


# f of every coalition, against the model asked alone


def at(*chosen):
    """The positions of one axis that are chosen."""
    return lambda position: position[1] in chosen


def everything(position):
    return True


def words(*chosen):
    return torch.isin(torch.arange(WORDS), torch.tensor(chosen))


def block(rows, columns):
    """A place in the picture: bool [height, width]."""
    place = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for row, column in itertools.product(rows, columns):
        place[row, column] = True
    return place


MASKED = zl.baseline.token(2, keep=[4])


def masked(ids):
    return torch.tensor([[4 if i == 4 else 2 for i in row] for row in ids.tolist()])


def test_values_of_words_regions_and_a_part_of_a_picture_are_those_of_the_model_asked_alone():
    model, x = Several(), several()
    x["ids"][0, 1] = 4
    given = [
        zl.Player("first words", "ids", words(0, 1), MASKED),
        zl.Player("last word", "ids", words(4), MASKED),
        zl.Player("corner", "image", block([0, 2], [3]), zl.baseline.constant(0.5)),
        zl.Player("boxes", "boxes", torch.tensor([True, False, True])),
    ]
    absences = [
        ("ids", at(0, 1), masked(x["ids"])),
        ("ids", at(4), masked(x["ids"])),
        ("image", lambda p: p[2] in (0, 2) and p[3] == 3, torch.full_like(x["image"], 0.5)),
        ("boxes", at(0, 2), torch.zeros_like(x["boxes"])),
    ]
    found = zl.logic(model, x, target=1, players=given)
    slow = slow_game(model, x, absences, lambda scores, sample: float(scores[1]))
    assert found.values.dtype == torch.float64
    assert found.coalitions.tolist() == list(range(16))
    assert torch.allclose(found.values, torch.tensor(slow, dtype=torch.float64), atol=1e-12, rtol=0)
    assert len({round(value, 9) for value in slow[0]}) == 16  # no two coalitions are the same to the model
    assert found.players == ("first words", "last word", "corner", "boxes")
    assert found.baselines == ("token 2 for every word", "token 2 for every word", "constant(0.5)", "zeros")
    with torch.no_grad():
        assert torch.allclose(found.output, model(**x)[:, 1], atol=1e-12, rtol=0)
    assert torch.allclose(found.value, found.output, atol=1e-12, rtol=0)
    assert torch.allclose(found.difference, found.output - torch.tensor([game[0] for game in slow], dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(found.error.abs().max()) < 1e-12


def test_places_may_differ_from_sample_to_sample_and_be_of_a_whole_sample():
    model, x = Several(), several()
    tokens = torch.tensor([[True, True, False, False, False], [False, False, True, False, True]])
    pixels = torch.stack([block([0], range(WIDTH)), block([1, 2], [1])])
    some = torch.rand(2, REGIONS, 2) < 0.5
    some[:, 0, 0] = True
    channel = torch.zeros_like(x["image"][0], dtype=torch.bool)
    channel[1, 2, 3] = True
    given = [
        zl.Player("words", "ids", tokens, MASKED),
        zl.Player("pixels", "image", pixels),
        zl.Player("numbers", "boxes", some),
        zl.Player("one channel", "image", channel, zl.baseline.constant(-2)),
    ]
    absences = [
        ("ids", lambda p: bool(tokens[p]), masked(x["ids"])),
        ("image", lambda p: bool(pixels[p[0], p[2], p[3]]), torch.zeros_like(x["image"])),
        ("boxes", lambda p: bool(some[p]), torch.zeros_like(x["boxes"])),
        ("image", lambda p: p[1:] == (1, 2, 3), torch.full_like(x["image"], -2)),
    ]
    found = zl.logic(model, x, target=0, players=given)
    slow = slow_game(model, x, absences, lambda scores, sample: float(scores[0]))
    assert torch.allclose(found.values, torch.tensor(slow, dtype=torch.float64), atol=1e-12, rtol=0)


def test_what_belongs_to_no_player_stays_as_it_is():
    found = ask(lambda a, b, c, d: a + b + 10 * c + 100 * d, 4, players=numbered(4)[:2])
    assert found.values.tolist() == [[110, 111, 111, 112]]


SLOW_ALL = [("ids", everything), ("image", everything), ("boxes", everything)]
ALL = [zl.Player("question", "ids"), zl.Player("picture", "image"), zl.Player("regions", "boxes")]


def stands(x, other=None, **given):
    """What stands in each input when its player is absent."""
    return {"ids": masked(x["ids"]), "image": torch.zeros_like(x["image"]), "boxes": torch.zeros_like(x["boxes"]), **given}


def told(x, name):
    """Baselines in every form that is taken: (arguments of zl.logic, what stands there, the names)."""
    other = several(seed=9)
    one = {key: tensor[:1] for key, tensor in other.items()}
    flat = torch.randn(CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)
    draw = torch.Generator().manual_seed(7)
    noise = torch.rand(REGIONS, 2, generator=draw).double().expand(2, -1, -1)
    mask = zl.baseline.mask_token(tokenizer())
    as_mask = torch.where(x["ids"] == 11, 11, 11)
    return {
        "one for all, of another input": ({"baseline": zl.baseline.of(other)}, dict(other), "features of another input"),
        "another input of one sample": ({"baseline": zl.baseline.of(one, name="a grey one")}, {k: t.expand_as(x[k]) for k, t in one.items()}, "a grey one"),
        "by input": (
            {"baseline": {"ids": MASKED, "image": zl.baseline.constant(3)}},
            stands(x, image=torch.full_like(x["image"], 3)),
            ("token 2 for every word", "constant(3)", "zeros"),
        ),
        "mask token": ({"baseline": {"ids": mask}}, stands(x, ids=as_mask), ("[MASK] for every word", "zeros", "zeros")),
        "a tensor": ({"baseline": {"ids": MASKED, "image": flat}}, stands(x, image=flat.expand_as(x["image"])), ("token 2 for every word", "given tensor", "zeros")),
        "noise": (
            {"baseline": {"ids": MASKED, "boxes": zl.baseline.noise(7)}},
            stands(x, boxes=noise),
            ("token 2 for every word", "zeros", "noise(seed=7, 0 to 1)"),
        ),
        "mean of a set": (
            {"baseline": {"ids": MASKED, "boxes": zl.baseline.mean_of([several(seed=1), several(seed=2)])}},
            stands(x, boxes=torch.cat([several(seed=1)["boxes"], several(seed=2)["boxes"]]).mean(0).expand(2, -1, -1)),
            ("token 2 for every word", "zeros", "mean of a set"),
        ),
        "mean of each channel": (
            {"baseline": {"ids": MASKED, "image": zl.baseline.mean()}},
            stands(x, image=x["image"].mean((2, 3), keepdim=True).expand_as(x["image"])),
            ("token 2 for every word", "mean", "zeros"),
        ),
    }[name]  # fmt: skip


FORMS = [
    "one for all, of another input",
    "another input of one sample",
    "by input",
    "mask token",
    "a tensor",
    "noise",
    "mean of a set",
    "mean of each channel",
]


@pytest.mark.parametrize("name", FORMS)
def test_a_baseline_in_any_form_stands_where_its_player_is_absent(name):
    model, x = Several(), several()
    options, there, names = told(x, name)
    found = zl.logic(model, x, target=2, players=ALL, **options)
    slow = slow_game(model, x, [(input, own, there[input]) for input, own in SLOW_ALL], lambda scores, sample: float(scores[2]))
    assert torch.allclose(found.values, torch.tensor(slow, dtype=torch.float64), atol=1e-12, rtol=0)
    assert found.baselines == ((names,) * 3 if isinstance(names, str) else names)


def test_the_baseline_of_a_player_goes_before_that_of_all():
    options = {"baseline": zl.baseline.constant(5), "players": [*numbered(3)[:2], zl.Player("c", "x", torch.arange(3) == 2, ZEROS)]}
    found = ask(lambda a, b, c: a + 10 * b + 100 * c, **options)
    assert found.baselines == ("constant(5)", "constant(5)", "zeros")
    assert found.values.tolist() == [[55, 51, 15, 11, 155, 151, 115, 111]]


def test_a_neutral_baseline_is_found_and_stands_there():
    model = nn.Linear(4, 3).eval()
    given = [zl.Player("left", "input", torch.arange(4) < 2), zl.Player("right", "input", torch.arange(4) >= 2)]
    neutral = zl.baseline.neutral(ZEROS, low=-9, high=9, kl=1e-4)
    found = zl.logic(model, torch.randn(1, 4), target=zl.target.probability(0), players=given, baseline=neutral)
    assert float(found.baseline_value[0]) == pytest.approx(1 / 3, abs=0.02)


def test_another_input_of_another_dtype_is_one_clear_error():
    model = nn.Linear(3, 2).eval()
    given = [zl.Player("a", "input", torch.arange(3) == 0), zl.Player("b", "input", torch.arange(3) == 1)]
    with pytest.raises(BaselineError):
        zl.logic(model, torch.ones(1, 3), target=0, players=given, baseline=zl.baseline.of(torch.zeros(1, 3).double()))


# What stands for words without saying


CONFIGS = [  # configuration, the token, what is kept, the name
    ({"mask_token_id": 11, "pad_token_id": 2, "bos_token_id": 0}, 11, (0, 2), "mask token 11 for every word"),
    ({"pad_token_id": 2, "eos_token_id": 1, "unk_token_id": 5}, 2, (1, 2), "pad token 2 for every word"),
    ({"mask_token_id": None, "pad_token_id": 2}, 2, (2,), "pad token 2 for every token, markers too"),
    ({"pad_token_id": 0, "image_token_index": 7}, 0, (0, 7), "pad token 0 for every word"),
    ({"text_config": SimpleNamespace(pad_token_id=3, sep_token_id=4)}, 3, (3, 4), "pad token 3 for every word"),
    ({"decoder": SimpleNamespace(mask_token_id=6, pad_token_id=5), "text_config": None}, 6, (5,), "mask token 6 for every token, markers too"),
    ({"encoder": SimpleNamespace(pad_token_id=1), "cls_token_id": 8}, 1, (1, 8), "pad token 1 for every word"),
    (
        {"mask_token_id": 9, "pad_token_id": 2, "unk_token_id": 5, "sep_token_id": True, "tokens": 6},
        9,
        (2,),
        "mask token 9 for every token, markers too",
    ),
]


@pytest.mark.parametrize(("config", "token", "kept", "name"), CONFIGS)
def test_the_token_that_the_configuration_names_stands_for_words_and_markers_stay(config, token, kept, name):
    model, x = Several(**config), several()
    x["ids"] = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    found = zl.logic(model, x, target=0, players=ALL[:2])
    there = torch.tensor([[id if id in kept else token for id in row] for row in x["ids"].tolist()])
    absences = [("ids", everything, there), ("image", everything, torch.zeros_like(x["image"]))]
    slow = slow_game(model, x, absences, lambda scores, sample: float(scores[0]))
    assert torch.allclose(found.values, torch.tensor(slow, dtype=torch.float64), atol=1e-12, rtol=0)
    assert found.baselines == (name, "zeros")


def test_a_configuration_that_names_only_a_mask_token_is_enough():
    model = Several(mask_token_id=2, cls_token_id=3)
    assert zl.logic(model, several(), target=0, players=ALL).baselines[0] == "mask token 2 for every word"


def test_markers_that_are_several_stay_too():
    model = Several(pad_token_id=2, eos_token_id=[1, 4])
    assert usual(model, Inputs.of(model, several()), "ids").recipe.keep == (1, 2, 4)


def test_a_configuration_that_is_a_dict_is_no_crash():
    model = Several()
    model.config = {"layers": 2}
    with pytest.raises(BaselineError, match="names no mask or pad token"):
        zl.logic(model, several(), target=0, players=ALL)


@pytest.mark.parametrize("config", [{}, {"bos_token_id": 0}, {"mask_token_id": None, "pad_token_id": None}, {"pad_token_id": True}])
def test_ids_without_a_known_token_need_a_baseline(config):
    model = Several(**config)
    with pytest.raises(BaselineError, match=r"input 'ids' holds ids, .* names no mask or pad token .*; give one, e\.g\. zl\.baseline\.mask_token"):
        zl.logic(model, several(), target=0, players=ALL)
    del model.config
    with pytest.raises(BaselineError, match="names no mask or pad token"):
        zl.logic(model, several(), target=0, players=ALL)


# Batches, dtypes, modes


def test_a_batch_of_two_is_two_batches_of_one():
    model, x = Several(**MASK), several()
    place = torch.tensor([[True, False, False, False, True], [False, True, False, True, True]])
    both = zl.logic(model, x, target=zl.top(), players=[zl.Player("words", "ids", place), *ALL[1:]], instead=several(seed=4))
    for i in range(2):
        own = {name: tensor[i : i + 1] for name, tensor in x.items()}
        other = {name: tensor[i : i + 1] for name, tensor in several(seed=4).items()}
        alone = zl.logic(model, own, target=zl.top(), players=[zl.Player("words", "ids", place[i]), *ALL[1:]], instead=other)
        for a, b in ((both.sample(i), alone), (both.sample(i).instead, alone.instead)):
            assert torch.allclose(a.values, b.values, atol=1e-12, rtol=0)
            assert torch.equal(a.holds, b.holds)
            assert a.reading == b.reading
            assert a.target == b.target


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_values_of_a_coarser_model_are_doubles_and_add_up(dtype, near):
    model, x = Several(**MASK), several()
    exact = zl.logic(model, x, target=0, players=ALL)
    coarse = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in x.items()}
    model.to(dtype)
    found = zl.logic(model, coarse, target=0, players=ALL)
    assert found.values.dtype == torch.float64
    assert torch.allclose(found.values, exact.values, atol=near, rtol=near)
    assert float(found.error.abs().max()) < 1e-12
    with torch.no_grad():
        assert torch.equal(found.output, model(**coarse)[:, 0].double())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_whatever_the_callers_mode(mode):
    model = Several(**MASK)
    exact = zl.logic(model, several(), target=zl.top(), players=ALL)
    with mode():
        x = several()
        place = torch.ones(WORDS, dtype=torch.bool)
        found = zl.logic(
            model,
            x,
            target=zl.top(),
            players=[zl.Player("question", "ids", place), *ALL[1:]],
            baseline={"image": torch.zeros(CHANNELS, HEIGHT, WIDTH)},
        )
    assert torch.equal(found.values, exact.values)
    assert not found.values.requires_grad


def test_inputs_by_position_and_by_name_are_the_same_and_other_arguments_go_along():
    model, x = Several(**MASK), several()
    named = zl.logic(model, x, target=0, players=ALL)
    assert torch.equal(zl.logic(model, tuple(x.values()), target=0, players=ALL).values, named.values)

    class Scaled(nn.Module):
        def forward(self, x, scale=1.0, positions=None):
            return scale * x * positions

    given = {"x": torch.ones(2, 2), "scale": 3.0, "positions": torch.tensor([[1.0, 2.0]])}
    found = zl.logic(Scaled().eval(), given, target=zl.target.output(lambda o: o.sum(1), "sum"), players=numbered(2))
    assert found.values.tolist() == [[0, 3, 6, 9]] * 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_no_graph_is_kept_of_the_coalitions(mode):
    class Watched(Facts):
        def forward(self, x):
            grads.append(torch.is_grad_enabled())
            return super().forward(x)

    grads = []
    with mode():
        zl.logic(Watched(lambda a, b: a * b).eval(), ONES[2], target=0, players=numbered(2), batch_size=2)
    assert grads == [False] * 3


def condition(model):
    """All of a model that could have been touched."""
    modules = list(model.modules())
    hooks = [len(h) for m in modules for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)]
    flags = [m.training for m in modules] + [p.requires_grad for p in model.parameters()] + [p.grad is None for p in model.parameters()]
    return hooks, flags, [sorted(vars(m)) for m in modules], torch.random.get_rng_state().tolist(), torch.is_grad_enabled()


def test_nothing_is_changed_afterwards():
    model, x = Several(**MASK), several()
    model.head.weight.requires_grad_(False)
    model.words.training = True
    kept, weights, given = condition(model), {n: t.clone() for n, t in model.state_dict().items()}, {n: t.clone() for n, t in x.items()}
    place = words(0, 1)
    zl.logic(model, x, target=zl.top(), players=[zl.Player("question", "ids", place), *ALL[1:]], baseline={"boxes": zl.baseline.noise(1)})
    assert condition(model) == kept
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, given[n]) for n, t in x.items())
    assert torch.equal(place, words(0, 1))


def test_nothing_is_changed_after_an_exception_either():
    class Fragile(Several):
        def forward(self, ids, image, boxes):
            if bool((image == 0).all((1, 2, 3)).any()):
                raise ValueError("an empty picture\nand more")
            return super().forward(ids, image, boxes)

    model = Fragile(**MASK)
    kept = condition(model)
    with pytest.raises(
        BaselineError, match=r"does not run with sources at their baselines: an empty picture; give baselines that it reads"
    ) as caught:
        zl.logic(model, several(), target=0, players=ALL)
    assert isinstance(caught.value.__cause__, ValueError)
    assert condition(model) == kept


@pytest.mark.parametrize("problem", [RuntimeError("bad"), ValueError("bad"), IndexError("bad"), KeyError("bad"), TypeError("bad"), ValueError()])
def test_what_a_model_raises_at_baselines_is_one_clear_error(problem):
    with pytest.raises(BaselineError, match="'?(bad|ValueError)'?; give baselines"), under_baselines():
        raise problem


def test_lack_of_memory_and_other_errors_stay_what_they_are():
    for problem in (torch.OutOfMemoryError("full"), ZeroDivisionError("none"), NotFoundError("none")):
        with pytest.raises(type(problem)) as caught, under_baselines():
            raise problem
        assert caught.value is problem


# The target and the threshold


def test_the_class_is_fixed_on_x_for_each_sample():
    model, x = Several(**MASK), several(6, seed=1)
    with torch.no_grad():
        classes = model(**x).argmax(1).tolist()
    assert len(set(classes)) > 1
    found = zl.logic(model, x, target=zl.top(), players=ALL)
    there = {"ids": torch.full_like(x["ids"], 2), "image": torch.zeros_like(x["image"]), "boxes": torch.zeros_like(x["boxes"])}
    slow = slow_game(model, x, [(input, own, there[input]) for input, own in SLOW_ALL], lambda scores, sample: float(scores[classes[sample]]))
    assert torch.allclose(found.values, torch.tensor(slow, dtype=torch.float64), atol=1e-12, rtol=0)
    assert found.target == tuple(f"logit of {c}" for c in classes)
    assert found.labels == tuple(map(str, classes))


TARGETS = {
    "probability": (zl.target.probability(1), lambda scores: float(scores.softmax(0)[1]), ("1", "1"), "probability of 1"),
    "contrast": (zl.contrast(2, 0), lambda scores: float(scores[2] - scores[0]), (), "logit of 2 - 0"),
    "a class for each": ([0, 2], None, ("0", "2"), "logit of 0"),
    "callable": (zl.target.output(lambda scores: scores.prod(1), "product"), lambda scores: float(scores.prod()), (), "product"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_any_target_of_one_number_is_read(name):
    target, read, labels, words_ = TARGETS[name]
    model, x = Several(**MASK), several()
    found = zl.logic(model, x, target=target, players=ALL)
    there = {"ids": torch.full_like(x["ids"], 2), "image": torch.zeros_like(x["image"]), "boxes": torch.zeros_like(x["boxes"])}
    absences = [(input, own, there[input]) for input, own in SLOW_ALL]
    slow = slow_game(model, x, absences, lambda scores, sample: read(scores) if read else float(scores[[0, 2][sample]]))
    assert torch.allclose(found.values, torch.tensor(slow, dtype=torch.float64), atol=1e-12, rtol=0)
    assert found.labels == labels
    assert found.target[0] == words_


def test_the_reading_names_the_class_as_the_model_does():
    model = Facts(lambda a, b, c: a * b).eval()
    model.config = SimpleNamespace(id2label={0: "blue", 1: "no answer"})
    found = zl.logic(model, ONES[3], target="Blue", players=numbered(3))
    assert found.reading == ("blue needs a AND b",)
    contrast = zl.logic(model, ONES[3], target=zl.contrast("blue", 1), players=numbered(3))
    assert contrast.reading == ("logit of blue - no answer needs a AND b",)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.75, 1, 1.0])
def test_what_holds_lies_a_share_of_the_way_from_none_to_all(share):
    model, x = Several(**MASK), several(4, seed=2)
    found = zl.logic(model, x, target=zl.contrast(0, 1), players=ALL, threshold=share)
    for values, holds in zip(found.values.tolist(), found.holds.tolist()):
        none, everyone = values[0], values[-1]
        assert holds == [(value - none) / (everyone - none) >= share - 1e-12 for value in values]
        assert (holds[0], holds[-1]) == (False, True)
    assert found.threshold == f"f(T) is at least {share:.0%} of the way from f(none) to f(all)"
    assert found.settings["threshold"] == share


def test_exactly_half_way_holds():
    found = ask(lambda a, b: a + b, 2)
    assert found.holds.tolist() == [[False, True, True, True]]
    assert ask(lambda a, b: -a - b, 2).holds.tolist() == [[False, True, True, True]]
    assert ask(lambda a, b: a + b, 2, threshold=0.51).holds.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("target", [zl.top(), 1, zl.contrast(2, 0), zl.target.probability([0, 1, 2, 0])])
def test_an_answer_holds_while_the_class_stays_first(target):
    model, x = Several(**MASK), several(4, seed=2)
    with torch.no_grad():
        top = model(**x).argmax(1).tolist()
    classes = {1: [1] * 4}.get(target) if isinstance(target, int) else top if target.classes == ("top",) else None
    classes = classes or ([2] * 4 if len(target.classes) == 2 else [0, 1, 2, 0])
    found = zl.logic(model, x, target=target, players=ALL, threshold="answer")
    there = {"ids": torch.full_like(x["ids"], 2), "image": torch.zeros_like(x["image"]), "boxes": torch.zeros_like(x["boxes"])}
    absences = [(input, own, there[input]) for input, own in SLOW_ALL]
    slow = slow_game(model, x, absences, lambda scores, sample: max(range(3), key=scores.tolist().__getitem__) == classes[sample])
    assert found.holds.tolist() == slow
    assert 4 < int(found.holds.sum()) < 28
    assert found.threshold == "the model's first answer stays"
    share = zl.logic(model, x, target=target, players=ALL)
    assert torch.equal(found.values, share.values)


def test_the_rule_says_the_share_that_was_asked():
    assert "0.4%" in ask(lambda a, b: a + b, 2, threshold=0.004).threshold


# Other inputs instead


def test_a_minimal_pair_is_asked_about_the_class_of_x():
    model, x, other = Several(**MASK), several(seed=1), several(seed=8)
    with torch.no_grad():
        here, there = model(**x).argmax(1), model(**other).argmax(1)
    assert here.tolist() != there.tolist()
    found = zl.logic(model, x, target=zl.top(), players=ALL, instead=other, threshold=0.4)
    assert torch.equal(found.values, zl.logic(model, x, target=here, players=ALL).values)
    alone = zl.logic(model, other, target=here, players=ALL, threshold=0.4)
    assert torch.equal(found.instead.values, alone.values)
    assert torch.equal(found.instead.holds, alone.holds)
    assert torch.allclose(found.instead.output, alone.output, atol=1e-12, rtol=0)
    assert found.instead.target == found.target
    assert found.instead.instead is None
    for players, a, b in found.changes(1):
        assert (a, b) == (float(found.dividends[players][1]), float(alone.dividends[players][1]))
    assert dict(found.instead.settings) == dict(found.settings)


def test_a_word_that_is_changed_moves_the_dividends_that_it_is_in():
    def rule(a, b, c):
        return a * b + c

    model = Facts(rule).eval()
    found = zl.logic(model, torch.tensor([[1.0, 1.0, 1.0]]), target=0, players=numbered(3), instead=torch.tensor([[1.0, 3.0, 1.0]]))
    moved = [(players, a, b) for players, a, b in found.changes() if a != b]
    assert moved == [(("a", "b"), 1.0, 3.0)]
    assert found.changes()[0] == moved[0]
    assert len(found.changes()) == 7


def test_the_answer_of_other_inputs_is_that_of_x():
    model = Facts(lambda a, b: a * b).eval()
    found = zl.logic(model, torch.ones(1, 2), target=zl.top(), players=numbered(2), instead=torch.tensor([[1.0, 0.2]]), threshold="answer")
    assert found.holds.tolist() == [[False, False, False, True]]
    assert found.instead.holds.tolist() == [[False, False, False, False]]


def test_each_of_two_inputs_may_have_as_many_evaluations():
    model = Facts(lambda a, b: a * b).eval()
    found = zl.logic(model, torch.ones(1, 2), target=0, players=numbered(2), instead=torch.zeros(1, 2), max_evaluations=4)
    assert (found.evaluations, found.instead.evaluations) == (4, 4)


# How much is asked


@pytest.mark.parametrize(("batch", "size", "passes"), [(1, None, 16), (2, None, 32), (3, 100, 31), (1, 1024, 1), (1, 1000, 2)])
def test_ten_players_are_a_thousand_and_twenty_four_coalitions_in_few_passes(batch, size, passes):
    model = Facts(lambda *facts: sum(facts)).eval()
    found = zl.logic(model, torch.ones(batch, 10).double(), target=0, players=numbered(10), batch_size=size)
    assert found.evaluations == 1024
    assert found.forward_passes == passes
    assert model.asked[0] == batch  # f(x) itself
    assert sum(model.asked[1:]) == 1024 * batch
    assert len(model.asked) == passes + 1
    assert max(model.asked) <= max(size or 64, batch)
    assert found.values.tolist() == [[coalition.bit_count() for coalition in range(1024)]] * batch


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_the_number_of_rows_in_a_pass_changes_nothing(size):
    model, x = Several(**MASK), several(3)
    place = torch.rand(3, WORDS) < 0.5
    place[:, 0] = True
    given = [zl.Player("words", "ids", place), *ALL[1:]]
    exact = zl.logic(model, x, target=zl.top(), players=given, threshold="answer")
    found = zl.logic(model, x, target=zl.top(), players=given, threshold="answer", batch_size=size)
    assert torch.allclose(found.values, exact.values, atol=1e-12, rtol=0)
    assert torch.equal(found.holds, exact.holds)
    assert found.forward_passes == math.ceil(24 / size)


def test_progress_counts_coalitions():
    seen = []
    ask(lambda a, b, c: a, batch=2, batch_size=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 8), (3, 8), (4, 8), (6, 8), (7, 8), (8, 8)]


def test_progress_goes_on_with_the_other_inputs():
    seen = []
    ask(lambda a, b, c: a, batch_size=4, instead=torch.zeros(1, 3).double(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 16), (8, 16), (12, 16), (16, 16)]


class Small(Facts):
    """Runs out of memory above ``room`` rows."""

    room = 5

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().forward(x)


@pytest.mark.parametrize(("room", "rows"), [(1, 1), (2, 2), (5, 4), (15, 8)])
def test_rows_are_halved_while_memory_does_not_suffice(room, rows):
    model = Small(lambda a, b, c, d: a * b + c).eval()
    model.room = room
    found = zl.logic(model, ONES[4], target=0, players=numbered(4), batch_size=32)
    assert found.values.tolist() == [[a * b + c for _, c, b, a in itertools.product((0, 1), repeat=4)]]
    assert model.asked == [1, *[rows] * (16 // rows)]
    assert found.forward_passes == 16 // rows


def test_no_memory_for_one_row_is_said():
    class Full(Small):
        def forward(self, x):
            if bool((x.sum(1) < 2).any()):  # x itself still goes through
                raise torch.OutOfMemoryError("no room")
            return Facts.forward(self, x)

    with pytest.raises(torch.OutOfMemoryError):
        zl.logic(Full(lambda a, b: a * b).eval(), ONES[2], target=0, players=numbered(2))


# More than ten players


def triples(*facts):
    """Singles, pairs and triples with known dividends."""
    total = sum((i + 1) * fact for i, fact in enumerate(facts))
    return total + 5 * facts[0] * facts[1] - 7 * facts[2] * facts[3] * facts[4] + 2 * facts[5] * facts[6] * facts[7]


def many(k=12, rule=triples, batch=1, **asked):
    model = Facts(rule).eval()
    given = {"target": 0, "players": numbered(k), "max_evaluations": 600, **asked}
    return model, zl.logic(model, torch.ones(batch, k, dtype=torch.float64), **given)


def exact_shapley(k):
    found = [i + 1.0 for i in range(k)]
    for share, who in ((5 / 2, (0, 1)), (-7 / 3, (2, 3, 4)), (2 / 3, (5, 6, 7))):
        for i in who:
            found[i] += share
    return found


@pytest.mark.parametrize("k", [11, 14])
def test_singles_and_pairs_of_many_players_are_exact(k):
    _, found = many(k, batch=2)
    letters = [player.name for player in numbered(k)]
    assert set(found.dividends) == {*itertools.combinations(letters, 1), *itertools.combinations(letters, 2)}
    for players, value in found.dividends.items():
        expected = {("a", "b"): 5.0}.get(players, letters.index(players[0]) + 1.0 if len(players) == 1 else 0.0)
        assert value.tolist() == pytest.approx([expected] * 2, abs=1e-9)
    assert not found.exact
    assert found.implicants() is None
    assert found.independent() == ()
    assert found.error.tolist() == pytest.approx([5.0] * 2, abs=1e-9)  # 7 - 2: larger groups, with the sign turned
    assert found.difference.tolist() == pytest.approx([k * (k + 1) / 2 + 5 - 7 + 2] * 2, abs=1e-9)


def test_estimates_of_many_players_are_labelled_and_their_intervals_hold_the_exact_value():
    _, found = many(12)
    exact = exact_shapley(12)
    assert found.shapley is found.estimate
    assert found.estimate.shape == found.half_width.shape == (1, 12)
    for value, half, truth in zip(found.estimate[0].tolist(), found.half_width[0].tolist(), exact):
        assert abs(value - truth) <= 2 * half + 1e-9  # about four standard errors
    assert float(found.estimate.sum()) == pytest.approx(float(found.difference[0]), abs=1e-9)
    assert float(found.half_width[0, 2]) > 0.05
    assert found.half_width[0, 8:].abs().max() < 1e-9  # in no triple
    best = sorted(zip(found.estimate[0].tolist(), "abcdefghijkl"), key=lambda pair: -abs(pair[0]))[:3]
    words_ = ", ".join(f"{name} ({value:+.3g})" for value, name in best)
    assert found.reading == (f"no logical reading of 12 players (2 to 10 have one); the largest Shapley estimates are of {words_}",)
    assert f"(estimate from {found.orders} orders, 95 %)" in repr(found)
    assert f"{found.evaluations} of 2^12 coalitions, singles and pairs exact" in repr(found)


def test_estimates_are_the_mean_over_orders_and_their_reverses_from_the_seed():
    _, found = many(11, seed=4)
    value = dict(zip(found.coalitions.tolist(), found.values[0].tolist()))
    sums = [0.0] * 11
    drawn = orders(11, found.orders // 2, 4)
    for order in drawn:
        for place, player in enumerate(order):
            before = sum(2**i for i in order[:place])
            sums[player] += value[before + 2**player] - value[before]
    assert found.estimate[0].tolist() == pytest.approx([one / found.orders for one in sums], abs=1e-9)
    assert torch.equal(many(11, seed=4)[1].estimate, found.estimate)
    assert not torch.equal(many(11, seed=5)[1].estimate, found.estimate)
    assert found.settings["seed"] == 4


@pytest.mark.parametrize(("k", "most"), [(11, 88), (11, 107), (11, 108), (12, 600), (15, 1000), (20, 4096)])
def test_no_more_is_evaluated_than_allowed_and_no_coalition_twice(k, most):
    model, found = many(k, batch=2, max_evaluations=most)
    rows = sum(model.asked) - 2  # without f(x) itself
    assert rows == 2 * found.evaluations
    assert found.evaluations == len(found.coalitions) == len(set(found.coalitions.tolist()))
    assert found.evaluations <= most
    assert found.orders % 2 == 0
    assert found.orders >= 2
    low = 1 + k + k * (k - 1) // 2 + 1
    assert found.orders >= 2 * ((most - low) // (2 * (k - 1)))  # as many as can be paid for though no coalition is met twice
    for coalition, value in zip(found.coalitions.tolist(), found.values.T):
        facts = [float(coalition // 2**i % 2) for i in range(k)]
        assert value.tolist() == pytest.approx([triples(*facts)] * 2, abs=1e-9)


def needed(k):
    """The number of coalitions that a refusal names."""
    with pytest.raises(UsageError, match="alone and in pairs, and one random order with its reverse, are") as caught:
        many(k, max_evaluations=3 * k)
    named, again = re.search(r"are (\d+) coalitions; max_evaluations is \d+: .* max_evaluations=(\d+) or more", str(caught.value)).groups()
    assert named == again
    return int(named)


@pytest.mark.parametrize("k", [11, 16])
def test_too_few_evaluations_for_many_players_are_refused_and_enough_are_named(k):
    enough = needed(k)
    assert many(k, max_evaluations=enough)[1].orders == 2
    with pytest.raises(UsageError, match=f"{k} players alone and in pairs, .*; max_evaluations is {enough - 1}: give fewer players"):
        many(k, max_evaluations=enough - 1)


def test_as_many_coalitions_as_are_said_to_be_needed_are_asked():
    enough = needed(11)
    assert many(11, max_evaluations=enough)[1].evaluations == enough


def test_shapley_values_are_exact_where_all_coalitions_are_known():
    _, found = many(11, max_evaluations=40000)
    assert found.exact
    assert found.shapley[0].tolist() == pytest.approx(exact_shapley(11), abs=1e-6)


def test_ten_players_are_exact_and_eleven_are_not():
    assert many(10, max_evaluations=1024)[1].exact
    assert many(10, max_evaluations=1024)[1].estimate is None
    assert not many(11, max_evaluations=1024)[1].exact


def test_sixty_two_players_can_be_asked():
    rule = lambda *facts: sum(facts) + facts[0] * facts[61]  # noqa: E731
    _, found = many(62, rule, max_evaluations=2300)
    assert float(found.dividends["a", "p61"][0]) == 1
    assert float(found.value[0]) == 63
    assert found.estimate[0].tolist() == pytest.approx([1.5, *[1.0] * 60, 1.5], abs=1e-9)


# Without players; models of transformers


def test_without_players_the_sources_of_the_attention_play():
    model = HandWritten().eval()
    x = {"words": torch.randn(2, 5, 32), "regions": torch.randn(2, 6, 32)}
    found = zl.logic(model, x, target=1)
    assert found.players == ("words", "regions")
    absences = [("words", everything, torch.zeros(2, 5, 32)), ("regions", everything, torch.zeros(2, 6, 32))]
    slow = slow_game(model, x, absences, lambda scores, sample: float(scores[1]))
    assert torch.allclose(found.values, torch.tensor(slow).double(), atol=1e-5, rtol=0)


def test_sources_come_in_the_order_of_forward():
    x = {"regions": torch.randn(2, 6, 32), "words": torch.randn(2, 5, 32)}
    assert zl.logic(HandWritten().eval(), x, target=1).players == ("words", "regions")


def test_a_model_of_one_source_needs_players():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with pytest.raises(UsageError, match=r"one source \(src\), and logic needs two players; give players="):
        zl.logic(model, torch.randn(1, 4, 8), target=zl.target.output(lambda o: o.sum((1, 2)), "sum"))


def test_learned_tokens_are_no_source_although_an_input_has_their_name():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.regions = nn.Parameter(torch.randn(1, 4, 8))

        def forward(self, words, regions):
            there = self.regions.expand(len(words), -1, -1)
            mixed = nn.functional.scaled_dot_product_attention(words[:, None], there[:, None], there[:, None])[:, 0]
            return mixed.mean(1) + regions.mean(1)

    x = {"words": torch.randn(2, 5, 8), "regions": torch.randn(2, 3, 8)}
    with pytest.raises(UsageError, match=r"one source \(words\)"):
        zl.logic(Learned().eval(), x, target=0)


def test_a_model_without_attention_needs_players():
    with pytest.raises(TraceError, match="no attention"):
        zl.logic(nn.Linear(3, 2).eval(), torch.ones(1, 3), target=0)


@pytest.fixture(scope="module")
def lxmert():
    family = next(one for one in FAMILIES if one.name == "LXMERT")
    torch.manual_seed(0)
    model, inputs = family.build("sdpa")
    return model.eval(), inputs


def asked_alone(model, inputs, changes):
    with torch.no_grad():
        return [float(model(**{**{n: t[s : s + 1] for n, t in inputs.items()}, **changes(s)}).question_answering_score[0, 3]) for s in range(2)]


def test_sources_of_lxmert_play(lxmert):
    model, x = lxmert
    found = zl.logic(model, x, target=3, baseline={"input_ids": zl.baseline.token(7)})
    assert found.players == ("input_ids", "visual_feats")
    assert found.baselines == ("token 7 for every word", "zeros")
    sevens, empty = torch.full((1, 7), 7), torch.zeros(1, 6, 12)
    slow = [
        asked_alone(model, x, lambda s: {"input_ids": sevens, "visual_feats": empty}),
        asked_alone(model, x, lambda s: {"visual_feats": empty}),
        asked_alone(model, x, lambda s: {"input_ids": sevens}),
        asked_alone(model, x, lambda s: {}),
    ]
    assert torch.allclose(found.values, torch.tensor(slow).double().T, atol=1e-5, rtol=0)
    assert float(found.error.abs().max()) < 1e-12
    assert found.model.startswith("transformers.models.lxmert.modeling_lxmert.LxmertForQuestionAnswering@")


def test_words_and_regions_of_lxmert_play_and_it_is_as_it_was(lxmert):
    model, x = lxmert
    regions = torch.zeros(2, 6, dtype=torch.bool)
    regions[0, 1] = regions[1, 4:] = True
    given = [
        zl.Player("word 2", "input_ids", torch.arange(7) == 2, zl.baseline.token(7)),
        zl.Player("regions", "visual_feats", regions),
    ]
    kept = condition(model)
    found = zl.logic(model, x, target=3, players=given)
    assert condition(model) == kept

    def changed(coalition):
        def of(s):
            ids, feats = x["input_ids"][s : s + 1].clone(), x["visual_feats"][s : s + 1].clone()
            if not coalition & 1:
                ids[0, 2] = 7
            if not coalition & 2:
                feats[0, [1] if s == 0 else [4, 5]] = 0
            return {"input_ids": ids, "visual_feats": feats}

        return of

    slow = [asked_alone(model, x, changed(coalition)) for coalition in range(4)]
    assert torch.allclose(found.values, torch.tensor(slow).double().T, atol=1e-5, rtol=0)


def test_lxmert_names_no_mask_token(lxmert):
    model, x = lxmert
    with pytest.raises(BaselineError, match="input 'input_ids' holds ids, and the model's configuration names no mask or pad token"):
        zl.logic(model, x, target=3)


def test_the_record_says_how_it_was_made():
    found = ask(lambda a, b, c: a, threshold=0.25, seed=3, batch_size=9, max_evaluations=77)
    assert dict(found.settings) == {"threshold": 0.25, "max_evaluations": 77, "batch_size": 9, "seed": 3}
    assert found.model.startswith("paradigm.logic_toys.Facts@")
    assert {"python", "torch", "zeroline"} <= set(found.versions)


# Places


LIKE = {
    "ids": torch.zeros(2, 5),
    "features": torch.zeros(2, 5, 3),
    "image": torch.zeros(2, 3, 4, 6),
    "video": torch.zeros(2, 3, 2, 4, 5),
}
FITS = [
    ("ids", (5,), (1, 5)),
    ("ids", (2, 5), (2, 5)),
    ("features", (5,), (1, 5, 1)),
    ("features", (2, 5), (2, 5, 1)),
    ("features", (5, 3), (1, 5, 3)),
    ("features", (2, 5, 3), (2, 5, 3)),
    ("image", (4, 6), (1, 1, 4, 6)),
    ("image", (2, 4, 6), (2, 1, 4, 6)),
    ("image", (3, 4, 6), (1, 3, 4, 6)),
    ("image", (2, 3, 4, 6), (2, 3, 4, 6)),
    ("video", (3, 2, 4, 5), (1, 3, 2, 4, 5)),
]


@pytest.mark.parametrize(("kind", "shape", "spread"), FITS)
def test_a_place_is_spread_over_the_axes_that_it_leaves_out(kind, shape, spread):
    place = torch.rand(shape) < 0.5
    found = filled(place, LIKE[kind], "a")
    assert found.shape == spread
    assert torch.equal(found.flatten(), place.flatten())
    assert torch.equal(filled(place.numpy(), LIKE[kind], "a"), found)
    assert torch.equal(filled(place.tolist(), LIKE[kind], "a"), found)


@pytest.mark.parametrize("kind", LIKE)
def test_no_place_is_everywhere(kind):
    assert bool(filled(None, LIKE[kind], "a").expand_as(LIKE[kind]).all())


DOES_NOT_FIT = [
    ("ids", (4,)),
    ("ids", (1, 5)),
    ("ids", (3, 5)),
    ("features", (3,)),
    ("features", (3, 5)),
    ("image", (6, 4)),
    ("image", (24,)),
    ("image", ()),
]


@pytest.mark.parametrize(("kind", "shape"), DOES_NOT_FIT)
def test_a_place_that_fits_no_axis_is_refused(kind, shape):
    positions = {"ids": r"\(5,\) or \(5,\)", "features": r"\(5,\) or \(5, 3\)", "image": r"\(4, 6\) or \(3, 4, 6\)"}[kind]
    with pytest.raises(
        InputError, match=rf"player 'a' has a place of shape \({', '.join(map(str, shape))},?\); 2 samples have positions {positions}"
    ):
        filled(torch.ones(shape, dtype=torch.bool), LIKE[kind], "a")


def test_a_place_means_the_same_in_a_batch_of_any_size_or_is_refused():
    place = torch.rand(3, 4, 6) < 0.5
    for batch in (1, 2, 4):
        like = torch.zeros(batch, 3, 4, 6)
        assert torch.equal(filled(place, like, "a").expand_as(like), place.expand_as(like))
    with pytest.raises(InputError, match=r"3 samples, or one sample's; give \(3, 3, 4, 6\)"):  # samples or channels?
        filled(place, torch.zeros(3, 3, 4, 6), "a")


# What is not possible


def three(**place):
    """Player b in another place or of another kind."""
    return [numbered(3)[0], zl.Player(**{"name": "b", "input": "x", "where": torch.arange(3) == 1, **place})]


def with_where(place):
    return three(where=torch.tensor(place))


def named(model_output):
    return zl.target.output(model_output, "odd")


REFUSED = {
    "one player": (UsageError, "1 players were given; logic takes two or more", {"players": numbered(3)[:1]}),
    "no player": (UsageError, "0 players were given; logic takes two or more", {"players": []}),
    "a name for a player": (UsageError, r"players are zl\.Player\(name, input, where\) records, not str", {"players": ["a", "b"]}),
    "overlap": (UsageError, "players 'a' and 'b' overlap at 1 positions of 'x'; give places apart", {"players": with_where([True, True, False])}),
    "same name": (UsageError, "two players are called 'a'; names tell them apart", {"players": three(name="a")}),
    "unknown input": (NotFoundError, "no input 'imag'; possible: x", {"players": three(input="imag")}),
    "empty place": (InputError, "player 'b' holds nothing of 'x': its place is empty$", {"players": with_where([False] * 3)}),
    "empty in one sample": (
        InputError,
        "player 'b' holds nothing of 'x': its place is empty in a sample$",
        {"players": with_where([[False, True, False], [False] * 3])},
    ),
    "place too long": (InputError, r"player 'b' has a place of shape \(4,\); 2 samples have positions \(3,\)", {"players": with_where([True] * 4)}),
    "place of numbers": (InputError, r"player 'b' has a place of torch.int64; it is bool: True where", {"players": with_where([0, 1, 0])}),
    "baseline of another shape": (BaselineError, r"has shape \(2,\); the features have \(2, 3\)", {"baseline": torch.zeros(2)}),
    "NaN baseline": (BaselineError, "holds NaN or infinite values", {"baseline": zl.baseline.constant(math.nan)}),
    "words for numbers": (BaselineError, r"replaces token ids, and input 'x' holds numbers \(torch.float64\)", {"baseline": zl.baseline.token(1)}),
    "several baselines": (BaselineError, "a distribution", {"baseline": zl.baseline.distribution([ZEROS, ZEROS])}),
    "a name for a baseline": (BaselineError, "not str", {"baseline": "zeros"}),
    "no picture": (BaselineError, "blur needs images", {"baseline": zl.baseline.blur(2)}),
    "other input of another shape": (BaselineError, r"gives \(2, 4\) for input 'x'; x has \(2, 3\)", {"baseline": zl.baseline.of(torch.zeros(2, 4))}),
    "threshold 0": (UsageError, "threshold=0 was given; it is a share above 0 and at most 1, or 'answer'", {"threshold": 0}),
    "threshold 1.5": (UsageError, "threshold=1.5 was given", {"threshold": 1.5}),
    "threshold -0.5": (UsageError, "threshold=-0.5 was given", {"threshold": -0.5}),
    "threshold x": (UsageError, "threshold='x' was given", {"threshold": "x"}),
    "threshold True": (UsageError, "threshold=True was given", {"threshold": True}),
    "threshold NaN": (UsageError, "threshold=nan was given", {"threshold": math.nan}),
    "threshold None": (UsageError, "threshold=None was given", {"threshold": None}),
    "answer of a callable": (TargetError, "reads no class: give a share", {"threshold": "answer", "target": named(lambda o: o[:, 0])}),
    "too many coalitions": (
        UsageError,
        r"all coalitions of 3 players are 2\^3 = 8; max_evaluations is 7: give fewer players, or max_evaluations=8 or more",
        {"max_evaluations": 7},
    ),
    "instead of another shape": (
        InputError,
        r"instead= gives \(2, 4\) for 'x'; the inputs have \(2, 3\): a minimal pair",
        {"instead": torch.zeros(2, 4)},
    ),
    "instead of another name": (InputError, "instead= gives nothing for 'x'", {"instead": {"y": torch.zeros(2, 3)}}),
    "NaN target": (NonFiniteError, "the target is nan at sample 0", {"target": named(lambda o: o[:, 0] * math.nan)}),
    "infinite without players": (NonFiniteError, "the target is -inf at sample 0", {"target": named(lambda o: o[:, 0].log())}),
    "two numbers per sample": (TargetError, r"gave shape \(2, 2\) for 2 samples", {"target": named(lambda o: o)}),
    "no such class": (TargetError, "class 9 asked; the model has 2", {"target": 9}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_possible_is_one_clear_error(name):
    kind, message, asked = REFUSED[name]
    with pytest.raises(kind, match=message) as caught:
        ask(lambda a, b, c: a * b * c, batch=2, **asked)
    assert type(caught.value) is kind


def test_more_than_sixty_two_players_are_refused():
    with pytest.raises(UsageError, match="63 players were given; logic takes two or more .*estimates of up to 62"):
        zl.logic(Facts(lambda *facts: sum(facts)).eval(), torch.ones(1, 63), target=0, players=numbered(63))


def test_the_nearest_input_is_named():
    with pytest.raises(NotFoundError, match="no input 'imagee'; nearest: image"):
        zl.logic(Several(**MASK), several(), target=0, players=[ALL[0], zl.Player("picture", "imagee")])


IDS = {
    "zeros": (ZEROS, "baseline 'zeros' fills numbers, and input 'ids' holds ids; use zl.baseline.mask_token"),
    "no such token": (zl.baseline.token(12), "token 12 asked for every word; the embedding 'embed' has 12 entries: 0 to 11"),
    "negative token": (zl.baseline.token(-1), "token -1 asked"),
    "a tensor": (torch.zeros(2, 5, dtype=torch.long), "fills numbers, and input 'ids' holds ids"),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_refuse_what_is_no_word(name):
    baseline, message = IDS[name]
    with pytest.raises(BaselineError, match=message):
        zl.logic(Several(), several(), target=0, players=ALL, baseline={"ids": baseline})


def test_players_of_different_inputs_do_not_overlap_and_those_of_parts_may():
    model, x = Several(**MASK), several()
    channel = torch.zeros_like(x["image"][0], dtype=torch.bool)
    channel[0] = True
    zl.logic(model, x, target=0, players=[zl.Player("red", "image", channel), zl.Player("green", "image", ~channel), ALL[0]])
    rows = [zl.Player("row", "image", block([1], range(WIDTH))), zl.Player("red", "image", channel)]
    with pytest.raises(UsageError, match="players 'row' and 'red' overlap at 6 positions of 'image'"):
        zl.logic(model, x, target=0, players=rows)
    apart = torch.tensor([[True, False, False, False, False], [False, True, False, False, False]])
    zl.logic(model, x, target=0, players=[zl.Player("a", "ids", apart), zl.Player("b", "ids", apart.flip(0))])


def test_players_everywhere_overlap_at_every_position():
    with pytest.raises(UsageError, match="overlap at 3 positions"):
        ask(lambda a, b, c: a, players=[zl.Player("a", "x"), zl.Player("b", "x")])


def test_a_cache_among_the_inputs_is_refused():
    class Cached(Facts):
        def forward(self, x, cache=None):
            return super().forward(x)

    with pytest.raises(InputError, match="hides a batch inside an object"):
        zl.logic(Cached(lambda a, b: a).eval(), {"x": ONES[2], "cache": [ONES[2]]}, target=0, players=numbered(2))


def test_dropout_in_training_mode_is_refused():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    given = [zl.Player("a", "input", torch.arange(3) == 0), zl.Player("b", "input", torch.arange(3) == 1)]
    with pytest.raises(ModelStateError, match=r"'0' drops out at random \(p=0.5\); call model.eval\(\) first"):
        zl.logic(model, ONES[3], target=0, players=given)
    assert model.training


def test_functional_dropout_in_training_mode_is_refused_too():
    class Random(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, self.training)

    with pytest.raises(ModelStateError):
        zl.logic(Random(), torch.ones(1, 64), target=zl.target.output(lambda o: o.sum(1), "sum"), players=numbered(64)[:3])


@pytest.mark.parametrize("size", [0, -1])
def test_no_rows_in_a_pass_are_refused(size):
    with pytest.raises(UsageError, match="batch_size"):
        ask(lambda a, b, c: a, batch_size=size)


def test_a_baseline_for_an_unknown_input_is_refused():
    with pytest.raises(NotFoundError, match="'xx'"):
        ask(lambda a, b, c: a, baseline={"xx": zl.baseline.constant(1)})


def test_a_place_in_words_is_refused():
    with pytest.raises(InputError):
        ask(lambda a, b, c: a, players=three(where="left"))


def test_an_input_of_one_number_per_sample_can_play():
    class Old(nn.Module):
        def forward(self, x, age):
            return torch.stack([x.sum(1) * age, age], 1)

    found = zl.logic(
        Old().eval(), {"x": torch.ones(2, 3), "age": torch.tensor([2.0, 5.0])}, target=0, players=[zl.Player("a", "x"), zl.Player("b", "age")]
    )
    assert found.values.tolist() == [[0, 0, 0, 6], [0, 0, 0, 15]]


def test_an_input_without_a_row_per_sample_is_refused():
    class Shared(nn.Module):
        def forward(self, x, weight):
            return x * weight

    given = [zl.Player("a", "x"), zl.Player("b", "weight")]
    with pytest.raises(InputError, match="weight"):
        zl.logic(Shared().eval(), {"x": torch.ones(2, 3), "weight": torch.ones(1, 3)}, target=0, players=given)


def test_no_samples_are_refused():
    with pytest.raises(InputError):
        ask(lambda a, b, c: a, batch=0)


def test_other_inputs_that_the_model_does_not_read_are_not_blamed_on_baselines():
    model, other = Several(**MASK), several()
    other["ids"][0, 0] = 40  # no such word
    with pytest.raises(InputError, match="instead"):
        zl.logic(model, several(), target=0, players=ALL[1:], instead=other)
