"""Grounding against dense references in float64, its sum against attention relevance on every family, its options and its errors."""

import json

import pytest
import torch
from torch import nn

import zeroline as zl
from attention_models import FAMILIES, bert
from paradigm import graph_toys as toys
from zeroline.errors import InputError, ModelStateError, NotFoundError, TargetError, UsageError, ZerolineError

CORRECTIONS = list(toys.CORRECT)
HETEROGENEOUS = [
    "LXMERT", "ViLT", "BLIP, matching", "BLIP, question answering", "BLIP-2's Q-Former", "T5", "Marian", "Whisper", "DETR", "TrOCR", "LLaVA",
    "Perceiver", "nn.TransformerDecoder", "hand-written (einsum, bmm)",
]  # fmt: skip


def test_every_family_with_heterogenous_attention_is_in_the_table():
    """SigLIP has one learned query over its image, and a test of its own."""
    named = {f.name for f in FAMILIES if f.heterogenous} | {"ViLT", "LLaVA"}
    assert named - {"SigLIP"} == set(HETEROGENEOUS)


# --- the sum -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", HETEROGENEOUS)
def test_rows_and_what_passed_none_add_up_to_the_relevance_of_the_columns(name):
    _, model, inputs, target = toys.family(name)
    cases = [*((correction, "complete") for correction in CORRECTIONS), ("positive", "incomplete"), ("signed", "incomplete")]
    for correction, coverage in cases:
        found = zl.ground(model, inputs, target=target, correction=correction, coverage=coverage)
        whole = zl.attention_relevance(model, inputs, target=target, correction=correction, coverage=coverage)
        truth = whole.by_source[found.column_stream][:, list(found.column_tokens)]
        total = found.matrix.sum(1) + found.direct
        assert torch.allclose(total, truth, rtol=1e-10, atol=1e-14 * float(truth.abs().max()) + 1e-300)
        assert torch.equal(found.relevance, total)
        assert torch.allclose(found.per_call.sum(0), found.matrix, rtol=1e-12, atol=1e-300)
        assert torch.allclose(found.back_per_call.sum(0), found.back, rtol=1e-12, atol=1e-300)
        assert torch.equal(found.output, whole.output)
        assert found.matrix.dtype == whole.by_source[found.column_stream].dtype
        if correction != "signed":
            assert float(found.matrix.min()) >= 0
            assert float(found.direct.min()) >= 0
            assert float(found.back.min()) >= 0
        assert float(found.matrix.abs().max()) > 1e-6, f"{correction}: nothing comes in through rows, so the test says nothing"


@pytest.mark.parametrize("name", ["LXMERT", "ViLT", "DETR"])
def test_other_ends_add_up_as_well(name):
    """Rows and columns the other way round, and some tokens of each."""
    _, model, inputs, target = toys.family(name)
    usual = zl.ground(model, inputs, target=target)
    whole = zl.attention_relevance(model, inputs, target=target).by_source
    assert torch.equal(zl.ground(model, inputs, target=target, rows=usual.column_stream, columns=usual.row_stream).matrix, usual.back.transpose(1, 2))
    for rows, columns in (
        (usual.column_stream, usual.row_stream),
        ((usual.row_stream, [1, 3]), (usual.column_stream, [5, 2, 0])),
        ((usual.column_stream, [0, 1]), (usual.column_stream, [2, 3, 5])),
    ):
        found = zl.ground(model, inputs, target=target, rows=rows, columns=columns)
        truth = whole[found.column_stream][:, list(found.column_tokens)]
        assert torch.allclose(found.matrix.sum(1) + found.direct, truth, rtol=1e-10, atol=1e-15)


def test_rows_of_merged_patches_add_up_as_well():
    """Swin joins four patches to one row after its second block: paths are booked once all the same."""
    _, model, inputs, target = toys.family("Swin")
    whole = zl.attention_relevance(model, inputs, target=target).by_source["pixel_values"]
    for rows in ([0], [0, 1, 8, 9], range(20)):
        found = zl.ground(model, inputs, target=target, rows=("pixel_values", rows), columns=("pixel_values", range(20, 64)))
        assert torch.allclose(found.relevance, whole[:, 20:], rtol=1e-10)
        assert float(found.matrix.max()) > 0


# --- the definition ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_one_cross_attention_is_row_weight_times_abar(correction):
    """G[i, j] = w_i Abar_ij, w_i the share of word i in the norms of the target's gradient at the attention's output."""
    model = toys.sharp(toys.CrossOnly())
    words, regions = torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double()
    ((a, da, do),) = toys.written_out(model, (words, regions), 1)[model.cross]
    weight = do.square().sum((1, 3)).sqrt()
    weight = weight / weight.sum(1, keepdim=True)
    truth = weight[..., None] * toys.CORRECT[correction](a, da).mean(1)
    found = zl.ground(model, (words, regions), target=1, correction=correction)
    assert (found.row_stream, found.column_stream) == ("words", "regions")
    assert torch.allclose(found.matrix, truth, rtol=1e-10, atol=1e-14)
    assert torch.equal(found.per_call[0], found.matrix)
    assert not bool(found.direct.any())
    assert found.calls == ("cross",)
    assert torch.allclose(found.output, model(words, regions)[:, 1])


def test_the_largest_head_instead_of_their_mean():
    model = toys.sharp(toys.CrossOnly())
    words, regions = torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double()
    ((a, da, do),) = toys.written_out(model, (words, regions), 1)[model.cross]
    weight = do.square().sum((1, 3)).sqrt()
    weight = weight / weight.sum(1, keepdim=True)
    heads = a * da
    truth = weight[..., None] * heads.gather(1, heads.abs().argmax(1, keepdim=True))[:, 0]
    found = zl.ground(model, (words, regions), target=1, correction="signed", head_fusion="max")
    assert torch.allclose(found.matrix, truth, rtol=1e-10, atol=1e-14)


def co_attention(model, inputs, correction, rows, columns, guide=None, raw=()):
    """The dense reference of ``toys.CoAttention``: paths of the first word; ``rows`` and ``columns`` are (stream, token numbers)."""
    found = toys.abars(model, inputs, 1, correction)
    plain = toys.abars(model, inputs, 1, "none")
    sizes = {"words": inputs[0].shape[1], "regions": inputs[1].shape[1]}
    batch, number = len(inputs[0]), [0]
    passed = {name: [rows[1].index(t) if name == rows[0] and t in rows[1] else -1 for t in range(size)] for name, size in sizes.items()}
    states = {
        n: toys.source(batch, size, columns[1]) if n == columns[0] else toys.source(batch, size, total=len(columns[1])) for n, size in sizes.items()
    }
    taken = {m: iter(zip(found[m], plain[m])) for m in found}

    def add(attend, query, key):
        abar, whole = next(taken[attend])
        if number[0] in raw:
            abar = whole
        elif guide is not None and key in guide:
            abar = abar * guide[key]
        number[0] += 1
        return toys.called(number[0] - 1, abar, states[key], passed[query], len(rows[1]))

    for own, other, cross in zip(model.words, model.regions, model.cross):
        a, b = add(own, "words", "words"), add(other, "regions", "regions")
        states = {"words": states["words"] + a, "regions": states["regions"] + b}
        a, b = add(cross, "words", "regions"), add(cross, "regions", "words")
        states = {"words": states["words"] + a, "regions": states["regions"] + b}
    return states["words"][[0]]


@pytest.fixture
def pair():
    return toys.sharp(toys.CoAttention()), (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())


ENDS = {
    "words in regions": (("words", [0, 1, 2, 3]), ("regions", [0, 1, 2, 3, 4])),
    "regions in words": (("regions", [0, 1, 2, 3, 4]), ("words", [0, 1, 2, 3])),
    "some of each, in an order of their own": (("words", [3, 1]), ("regions", [4, 0, 2])),
    "words in other words": (("words", [0, 2]), ("words", [1, 3])),
}


@pytest.mark.parametrize("correction", ["positive", "signed"])
@pytest.mark.parametrize("ends", list(ENDS))
def test_two_layers_of_co_attention_against_dense_paths(pair, ends, correction):
    model, inputs = pair
    rows, columns = ENDS[ends]
    truth = co_attention(model, inputs, correction, rows, columns)
    found = zl.ground(model, inputs, target=1, correction=correction, rows=rows, columns=columns)
    names = ["words.0", "regions.0", "cross.0", "cross.0#1", "words.1", "regions.1", "cross.1", "cross.1#1"]
    matrix = sum(one[:, 0] for one in truth.booked.values())
    assert torch.allclose(found.matrix, matrix, rtol=1e-10, atol=1e-13)
    assert torch.allclose(found.direct, truth.none[:, 0], rtol=1e-10, atol=1e-13)
    for call, one in zip(found.calls, found.per_call):
        assert torch.allclose(one, truth.booked[names.index(call)][:, 0], rtol=1e-10, atol=1e-13)
    turned = co_attention(model, inputs, correction, columns, rows)
    back = {n: one[:, 0].transpose(1, 2) for n, one in turned.booked.items()}
    assert torch.allclose(found.back, sum(back.values()), rtol=1e-10, atol=1e-13)
    for call, one in zip(found.calls, found.back_per_call):
        assert torch.allclose(one, back[names.index(call)], rtol=1e-10, atol=1e-13)
    assert torch.allclose(found.coupling, matrix + sum(back.values()), rtol=1e-10, atol=1e-13)
    left = {names[n] for n, one in (*truth.booked.items(), *turned.booked.items()) if bool(one[:, 0].any())}
    assert left <= set(found.calls), "paths leave a token at a call that the record does not name"
    assert list(found.calls) == [name for name in names if name in found.calls]
    assert float(matrix.abs().max()) > 1e-4
    assert ends == "words in other words" or float(found.back.abs().max()) > 1e-4
    if ends == "some of each, in an order of their own":
        assert bool((truth.none.abs() > 1e-6).any())


def test_a_guide_and_incomplete_coverage_against_dense_paths(pair):
    model, inputs = pair
    guide = {"regions": torch.rand(5).double()}
    rows, columns = ENDS["words in regions"]
    truth = co_attention(model, inputs, "positive", rows, columns, guide=guide)
    found = zl.ground(model, inputs, target=1, guide=guide)
    assert torch.allclose(found.matrix, sum(one[:, 0] for one in truth.booked.values()), rtol=1e-10, atol=1e-13)
    raw = [0, 1, 3, 4, 5, 7]
    truth = co_attention(model, inputs, "positive", rows, columns, guide=guide, raw=raw)
    found = zl.ground(model, inputs, target=1, guide=guide, calls=[2, 6], coverage="incomplete")
    assert torch.allclose(found.matrix, sum(one[:, 0] for one in truth.booked.values()), rtol=1e-10, atol=1e-13)


def test_of_selected_calls_the_others_pass_nothing_on(pair):
    model, inputs = pair
    found = zl.ground(model, inputs, target=1, calls="cross.1")
    late, _ = toys.abars(model, inputs, 1)[model.cross[1]]
    assert [name for name, one in zip(found.calls, found.per_call) if bool(one.any())] == ["cross.1"]
    assert torch.allclose(found.matrix[:, 0], late[:, 0], rtol=1e-10, atol=1e-14)
    assert not bool(found.matrix[:, 1:].any())


def test_a_given_readout_starts_the_paths_where_it_says():
    model = toys.sharp(toys.CrossOnly())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    ((abar,),) = (toys.abars(model, inputs, 1)[model.cross],)
    found = zl.ground(model, inputs, target=1, readout=2)
    truth = torch.zeros(2, 4, 5).double()
    truth[:, 2] = abar[:, 2]
    assert torch.allclose(found.matrix, truth, rtol=1e-10, atol=1e-14)
    weights = torch.tensor([0.5, 0.0, 0.25, 0.25])
    found = zl.ground(model, inputs, target=1, readout=weights)
    assert torch.allclose(found.matrix, weights.double()[:, None] * abar, rtol=1e-10, atol=1e-14)


def test_one_stream_of_two_segments_against_dense_paths():
    model, x = toys.sharp(toys.OneStream()), torch.randn(2, 6, 8).double()
    found = zl.ground(model, x, target=1, rows=("x", [0, 1, 2]), columns=("x", [3, 4, 5]))
    maps = toys.abars(model, (x,), 1)
    state = toys.source(2, 6, [3, 4, 5])
    for number, layer in enumerate(model.layers):
        state = state + toys.called(number, maps[layer][0], state, [0, 1, 2, -1, -1, -1], 3)
    truth = state[[0]]
    assert torch.allclose(found.matrix, sum(one[:, 0] for one in truth.booked.values()), rtol=1e-10, atol=1e-13)
    assert torch.allclose(found.direct, truth.none[:, 0], rtol=1e-10, atol=1e-13)
    assert not bool(found.direct.any())  # the first token is read, and it is a row: nothing passes by


def test_what_the_target_reads_without_attention_is_direct():
    """Token 3 is read and is a column: its own identity passes no row."""

    class Third(toys.OneStream):
        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x, x)
            return self.head(x[:, 3])

    model, x = toys.sharp(Third(1)), torch.randn(2, 6, 8).double()
    found = zl.ground(model, x, target=1, rows=("x", [0, 1]), columns=("x", [3, 4]))
    abar = toys.abars(model, (x,), 1)[model.layers[0]][0]
    truth = abar[:, 3][:, [3, 4]] + torch.tensor([1.0, 0.0]).double()
    assert torch.allclose(found.direct, truth, rtol=1e-10)
    assert not bool(found.matrix.any())
    assert not bool(found.per_call.any())
    assert torch.equal(found.through, torch.zeros(2).double())


def test_an_encoder_decoder_grounds_its_last_token():
    model = toys.sharp(toys.EncoderDecoder())
    inputs = (torch.randn(2, 6, 8).double(), torch.randn(2, 4, 8).double())
    a = toys.abars(model, inputs, 2)
    found = zl.ground(model, inputs, target=2)
    encoder = torch.eye(6).double() + a[model.encoder][0]
    truth = torch.zeros(2, 4, 6).double()
    truth[:, 3] = (a[model.cross][0] @ encoder)[:, 3]
    assert (found.row_stream, found.column_stream) == ("target", "source")
    assert torch.allclose(found.matrix, truth, rtol=1e-10, atol=1e-14)


# --- laws --------------------------------------------------------------------------------------------------------------
def test_permuted_columns_permute_the_matrix(pair):
    model, inputs = pair
    order = [3, 0, 4, 1, 2]
    whole = zl.ground(model, inputs, target=1)
    asked = zl.ground(model, inputs, target=1, columns=("regions", order))
    assert asked.column_tokens == tuple(order)
    assert torch.equal(asked.matrix, whole.matrix[:, :, order])
    assert torch.equal(asked.direct, whole.direct[:, order])
    assert torch.equal(asked.per_call, whole.per_call[..., order])
    assert torch.equal(asked.back, whole.back[:, :, order])
    assert torch.equal(asked.back_per_call, whole.back_per_call[..., order])
    moved = zl.ground(model, (inputs[0], inputs[1][:, order]), target=1)  # other regions in these places, the same model of sets
    assert torch.allclose(moved.matrix, whole.matrix[:, :, order], rtol=1e-9, atol=1e-13)
    rows = zl.ground(model, inputs, target=1, rows=("words", [2, 0, 3, 1]))
    assert torch.equal(rows.matrix, whole.matrix[:, [2, 0, 3, 1]])


def test_negative_token_numbers_count_from_the_end_and_repeats_count_once(pair):
    model, inputs = pair
    found = zl.ground(model, inputs, target=1, rows=("words", [-1, 3, 0]), columns=("regions", range(-2, 0)))
    assert found.row_tokens == (3, 0)
    assert found.column_tokens == (3, 4)
    assert found.row_words == ("token 3", "token 0")


@pytest.mark.parametrize("name", ["LXMERT", "ViLT", "T5", "DETR", "LLaVA", "nn.TransformerDecoder"])
def test_a_batch_of_two_is_two_of_one(name):
    _, model, inputs, target = toys.family(name)
    both = zl.ground(model, inputs, target=target)
    for i in range(2):
        alone = zl.ground(model, {key: value[i : i + 1] for key, value in inputs.items()}, target=target)
        assert torch.allclose(alone.matrix, both.matrix[i : i + 1], rtol=1e-8, atol=1e-12)
        assert torch.allclose(alone.direct, both.direct[i : i + 1], rtol=1e-8, atol=1e-12)
        assert torch.allclose(alone.back, both.back[i : i + 1], rtol=1e-8, atol=1e-12)
        assert alone.readout == both.readout[i : i + 1]


def test_float32_and_bfloat16_models_give_float32():
    for dtype, close in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        _, model, inputs, target = toys.family("LXMERT", dtype)
        _, exact, fine, _ = toys.family("LXMERT")
        found, truth = zl.ground(model, inputs, target=target), zl.ground(exact, fine, target=target)
        assert found.matrix.dtype == torch.float32
        assert found.output.dtype == torch.float64
        assert float((found.matrix - truth.matrix).abs().max()) <= close * float(truth.matrix.max())


def test_the_same_call_gives_the_same_numbers_whatever_the_mode_it_is_called_in(pair):
    model, inputs = pair
    plain = zl.ground(model, inputs, target=1).matrix
    with torch.no_grad():
        assert torch.equal(zl.ground(model, inputs, target=1).matrix, plain)
    with torch.inference_mode():
        assert torch.equal(zl.ground(model, inputs, target=1).matrix, plain)


def test_the_model_is_as_it_was_also_after_an_error(pair):
    model, inputs = pair
    next(model.parameters()).requires_grad_(False)
    before = toys.state_of(model)
    zl.ground(model, inputs, target=1)
    toys.assert_same_state(before, toys.state_of(model))
    zl.ground(model, inputs, target={"a": 0, "b": 1})
    toys.assert_same_state(before, toys.state_of(model))
    for wrong in ({"rows": "wordz"}, {"words": {"words": ["a"]}}, {"target": 99}, {"calls": 99}):
        with pytest.raises(ZerolineError):
            zl.ground(model, inputs, **{"target": 1, **wrong})
        toys.assert_same_state(before, toys.state_of(model))


# --- ends that go without saying ---------------------------------------------------------------------------------------
def test_usual_ends_are_the_text_and_then_the_image():
    usual = {
        "LXMERT": ("input_ids", "visual_feats"), "ViLT": ("input_ids", "pixel_values"), "LLaVA": ("input_ids", "pixel_values"),
        "BLIP, matching": ("input_ids", "pixel_values"), "T5": ("decoder_input_ids", "input_ids"),
        "DETR": ("model.query_position_embeddings.weight", "pixel_values"), "nn.TransformerDecoder": ("target", "memory"),
    }  # fmt: skip
    for name, ends in usual.items():
        _, model, inputs, target = toys.family(name)
        found = zl.ground(model, inputs, target=target)
        assert (found.row_stream, found.column_stream) == ends
        assert found.row_tokens == tuple(range(len(found.row_tokens)))


def test_text_comes_first_where_images_look_at_it_before_it_looks_at_them():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.a, self.b, self.head = nn.Embedding(20, 8), toys.Attend(), toys.Attend(), nn.Linear(8, 3)

        def forward(self, ids, image):
            x = self.words(ids)
            image = image + self.a(image, x)
            return self.head((x + self.b(x, image))[:, 0])

    found = zl.ground(toys.sharp(Backwards()), (torch.randint(0, 20, (2, 4)), torch.randn(2, 5, 8).double()), target=0)
    assert (found.row_stream, found.column_stream) == ("ids", "image")


def test_with_one_end_named_the_other_is_what_it_meets(pair):
    model, inputs = pair
    for named, rows, columns in (
        ({"rows": "regions"}, "regions", "words"),
        ({"columns": "words"}, "regions", "words"),
        ({"columns": "regions"}, "words", "regions"),
    ):
        found = zl.ground(model, inputs, target=1, **named)
        assert (found.row_stream, found.column_stream) == (rows, columns)
    _, vilt, given, target = toys.family("ViLT")  # nothing is heterogenous: the other input
    assert zl.ground(vilt, given, target=target, rows="pixel_values").column_stream == "input_ids"


def test_of_several_streams_that_one_meets_the_first_is_meant():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = toys.Attend(), toys.Attend(), nn.Linear(8, 3)

        def forward(self, words, sound, image):
            x = words + self.a(words, image)
            return self.head((x + self.b(x, sound))[:, 0])

    model = toys.sharp(Three())
    inputs = tuple(torch.randn(2, size, 8).double() for size in (4, 3, 5))
    assert zl.ground(model, inputs, target=1, rows="words").column_stream == "image"
    assert zl.ground(model, inputs, target=1, columns="sound").row_stream == "words"
    assert zl.ground(model, inputs, target=1).column_stream == "image"


def segmented(types, mask=None):
    torch.manual_seed(0)
    model, inputs = bert("sdpa")
    for p in model.parameters():
        if p.ndim > 1:
            p.data = torch.randn(p.shape) * 0.3
    given = {"input_ids": inputs["input_ids"], "token_type_ids": torch.tensor(types)}
    return model.eval().double(), given | ({} if mask is None else {"attention_mask": torch.tensor(mask)})


def test_segments_of_one_text_are_rows_and_columns_without_padding():
    model, inputs = segmented([[0, 0, 0, 1, 1, 1, 0]] * 2, [[1] * 6 + [0]] * 2)
    found = zl.ground(model, inputs, target=1)
    assert (found.row_stream, found.column_stream) == ("input_ids", "input_ids")
    assert (found.row_tokens, found.column_tokens) == ((0, 1, 2), (3, 4, 5))
    named = zl.ground(model, inputs, target=1, rows=("input_ids", [0, 1, 2]), columns=("input_ids", [3, 4, 5]))
    assert torch.equal(found.matrix, named.matrix)
    whole = zl.attention_relevance(model, inputs, target=1).by_source["input_ids"]
    assert torch.allclose(found.relevance, whole[:, 3:6], rtol=1e-10)
    assert float(found.matrix.abs().max()) > 1e-5


def test_a_token_that_any_sample_sees_is_no_padding():
    model, inputs = segmented([[0, 0, 0, 1, 1, 1, 1]] * 2, [[1] * 7, [1] * 6 + [0]])
    found = zl.ground(model, inputs, target=1)
    assert (found.row_tokens, found.column_tokens) == ((0, 1, 2), (3, 4, 5, 6))
    assert not bool(found.matrix[1, :, 3].any())
    assert bool(found.matrix[0, :, 3].any())


def test_samples_with_other_segments_are_asked_for_one_at_a_time():
    model, inputs = segmented([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])
    with pytest.raises(InputError, match="segments differ .*one at a time"):
        zl.ground(model, inputs, target=1)
    alone = zl.ground(model, {name: t[1:] for name, t in inputs.items()}, target=1)
    assert (alone.row_tokens, alone.column_tokens) == ((0, 1), (2, 3, 4, 5, 6))


def test_with_one_end_named_the_other_is_a_segment():
    model, inputs = segmented([[0, 0, 0, 1, 1, 1, 1]] * 2)
    found = zl.ground(model, inputs, target=1, rows=("input_ids", [2, 1]))
    assert (found.row_tokens, found.column_tokens) == ((2, 1), (3, 4, 5, 6))
    found = zl.ground(model, inputs, target=1, columns=("input_ids", [4]))
    assert (found.row_tokens, found.column_tokens) == ((0, 1, 2), (4,))


def test_one_segment_is_one_source():
    model, inputs = segmented([[0] * 7] * 2)
    with pytest.raises(UsageError, match="one source"):
        zl.ground(model, inputs, target=1)


def test_a_learned_query_that_pools_regions_is_passed():
    _, model, inputs, target = toys.family("SigLIP")
    found = zl.ground(model, inputs, target=target)
    assert (found.row_stream, found.column_stream) == ("vision_model.head.probe", "pixel_values")
    assert float(found.through.min()) == 1


# --- targets as rows -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("correction", ["positive", "signed"])
def test_of_several_targets_each_row_is_its_relevance(correction):
    _, model, inputs, _ = toys.family("T5")
    targets = {"first": zl.target.token(7, position=0), "last": zl.target.token(9), "apart": zl.target.sequence([3, 4], 1)}
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    found = zl.ground(model, inputs, target=targets, columns="input_ids", correction=correction)
    hook.remove()
    assert len(passes) == 1
    assert found.row_words == ("first", "last", "apart")
    assert found.row_stream == ""
    for row, (name, target) in enumerate(targets.items()):
        alone = zl.attention_relevance(model, inputs, target=target, correction=correction)
        assert torch.allclose(found.matrix[:, row], alone.by_source["input_ids"], rtol=1e-10, atol=1e-15)
        assert torch.allclose(found.per_call[:, :, row], alone.per_call["input_ids"], rtol=1e-10, atol=1e-15)
        assert torch.allclose(found.output[:, row], alone.output)
        assert torch.equal(found.row(name), found.matrix[:, row])
    for empty in (found.direct, found.back, found.back_per_call):
        assert not bool(empty.any())
    assert torch.equal(found.coupling, found.matrix)
    assert found.back_per_call.shape == found.per_call.shape
    assert found.calls == tuple(name for name, _ in alone.calls)
    assert found.target == tuple(words for t in targets.values() for words in zl.attention_relevance(model, inputs, target=t).target)


def test_several_targets_take_columns_options_and_words():
    _, model, inputs, _ = toys.family("T5")
    targets = {"a": zl.target.token(7), "b": zl.target.token(8)}
    found = zl.ground(model, inputs, target=targets, columns=("input_ids", [4, 1]), correction="none", words={"input_ids": "abcdefg"})
    whole = zl.rollout(model, inputs, target=zl.target.token(8)).by_source["input_ids"]
    assert torch.allclose(found.matrix[:, 1], whole[:, [4, 1]], rtol=1e-10)
    assert found.column_words == ("e", "b")
    assert found.column_tokens == (4, 1)
    assert found.settings["correction"] == "none"


def test_several_targets_look_at_the_image_or_at_the_longest_source():
    _, model, inputs, _ = toys.family("DETR")
    found = zl.ground(model, inputs, target={"left": zl.target.box(2, "left"), "class": zl.target.detection(2, 1)})
    assert (found.column_stream, found.lie.grid) == ("pixel_values", (4, 6))
    assert found.grid().shape == (2, 2, 4, 6)
    _, llava, given, _ = toys.family("LLaVA")
    assert zl.ground(llava, given, target={"a": zl.target.token(7)}).column_stream == "pixel_values"  # 5 tokens, of which 4 lie on a grid; 9 words
    _, t5, given, _ = toys.family("T5")
    assert zl.ground(t5, given, target={"a": zl.target.token(7)}).column_stream == "input_ids"  # 7 tokens, 5 in the decoder


def test_of_several_targets_a_samples_record_says_what_its_own_targets_are():
    model, x = toys.sharp(toys.OneStream()), torch.randn(6, 5, 8).double()
    top = zl.attention_relevance(model, x, target="top").target
    assert len(set(top)) > 1
    found = zl.ground(model, x, target={"best": "top"})
    assert [found.sample(i).target for i in range(6)] == [(one,) for one in top]


# --- words and the lie -----------------------------------------------------------------------------------------------------
def test_words_name_rows_and_columns(pair):
    model, inputs = pair
    found = zl.ground(model, inputs, target=1, words={"words": ["what", "is", "the", "seven"], "regions": list("vwxyz")})
    assert found.row_words == ("what", "is", "the", "seven")
    assert found.column_words == ("v", "w", "x", "y", "z")
    some = zl.ground(model, inputs, target=1, rows=("words", [3, 1]), columns=("regions", [4, 0]), words={"words": ["what", "is", "the", "seven"]})
    assert some.row_words == ("seven", "is")
    assert some.column_words == ()
    numbers = zl.ground(model, inputs, target=1, words={"words": range(4)})
    assert numbers.row_words == ("0", "1", "2", "3")


def test_an_image_lies_on_its_grid_and_a_part_of_it_on_none():
    _, model, inputs, target = toys.family("ViLT")
    found = zl.ground(model, inputs, target=target)
    assert (found.lie.prefix, found.lie.grid) == (1, (4, 4))
    assert torch.equal(found.grid(), found.matrix[..., 1:].reshape(2, 7, 4, 4))
    assert torch.equal(found.grid("per_call"), found.per_call[..., 1:].reshape(len(found.calls), 2, 7, 4, 4))
    assert found.where(6) == "patch (1, 1)"
    part = zl.ground(model, inputs, target=target, columns=("pixel_values", range(1, 9)))
    assert not part.gridded
    assert part.where(0) == "token 1"
    with pytest.raises(UsageError, match="8 columns .*lie on no grid"):
        part.grid()


def test_all_columns_in_another_order_do_not_lie_on_the_grid_as_they_come():
    _, model, inputs, target = toys.family("ViLT")
    whole = zl.ground(model, inputs, target=target)
    turned = zl.ground(model, inputs, target=target, columns=("pixel_values", range(16, -1, -1)))
    assert turned.where(0) != "token 0"
    assert not turned.gridded or torch.equal(turned.grid(), whole.grid())


def test_a_grid_can_be_given():
    model, inputs = toys.sharp(toys.CrossOnly()), (torch.randint(0, 5, (2, 4)), torch.randn(2, 6, 8).double())

    class Worded(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.inner = nn.Embedding(5, 8), model

        def forward(self, ids, image):
            return self.inner(self.words(ids), image)

    found = zl.ground(toys.sharp(Worded()), inputs, target=1, grid=(2, 3))
    assert torch.equal(found.grid(), found.matrix.reshape(2, 4, 2, 3))
    found = zl.ground(toys.sharp(Worded()), inputs, target=1, grid=(1, 5), prefix=1)
    assert torch.equal(found.grid()[:, :, 0], found.matrix[..., 1:])
    several = zl.ground(toys.sharp(Worded()), inputs, target={"a": 0, "b": 1}, grid=(2, 3))
    assert several.grid().shape == (2, 2, 2, 3)
    with pytest.raises(InputError, match="3 x 3"):
        zl.ground(toys.sharp(Worded()), inputs, target=1, grid=(3, 3))


def test_the_record_says_what_was_asked(pair):
    model, inputs = pair
    found = zl.ground(model, inputs, target=[1, 2], correction="absolute", calls=[0, 2], coverage="incomplete")
    assert found.settings == {
        "correction": "absolute",
        "calls": [0, 2],
        "coverage": "incomplete",
        "guide": None,
        "head_fusion": "mean",
        "readout": None,
    }
    assert found.target == ("logit of 1", "logit of 2")
    assert found.readout == ("token 0 of cross.1",) * 2
    assert found.versions["torch"] == torch.__version__
    assert found.model_id.startswith(found.model_class + "@")
    assert "CoAttention" in found.model_id
    json.dumps(found.to_dict())
    by_hand = zl.ground(model, inputs, target=1, readout=torch.tensor([0.5, 0.5, 0, 0]), calls=slice(0, 8))
    assert by_hand.settings["readout"] == [0.5, 0.5, 0, 0]
    json.dumps(by_hand.to_dict())
    assert zl.ground(model, inputs, target=1, calls=(0, 2)).settings["calls"] == [0, 2]
    assert zl.ground(model, inputs, target=1, calls=range(2)).settings["calls"] == [0, 1]


def test_each_sample_says_where_it_is_read():
    """CLIP reads a text at its last marker, which stands elsewhere in each."""
    _, model, inputs, target = toys.family("CLIP")
    ids = torch.tensor([[7, 8, 9, 10, 59, 11, 12], [7, 8, 59, 9, 10, 11, 12]])
    given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = zl.ground(model, given, target=target, rows=("pixel_values", [0]), columns="input_ids")
    assert found.readout == zl.attention_relevance(model, given, target=target).readout
    assert "token 4 of text_model" in found.readout[0]
    assert "token 2 of text_model" in found.readout[1]


def test_a_guide_by_stream_is_kept_as_numbers(pair):
    model, inputs = pair
    found = zl.ground(model, inputs, target=1, guide={"regions": torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0])})
    assert found.settings["guide"] == {"regions": [1.0, 0.0, 1.0, 0.5, 1.0]}


# --- bad input -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rows": "wordz"}, NotFoundError, "no stream 'wordz'; nearest: words.*zeroline trace"),
        ({"columns": "region"}, NotFoundError, "nearest: regions"),
        ({"rows": ("wordz", [0])}, NotFoundError, "nearest: words"),
        ({"rows": ("words", [0, 1]), "columns": ("words", [2, 1])}, UsageError, r"share 1 tokens of 'words' \(token 1\).*rows=\(stream, numbers\)"),
        ({"rows": "words", "columns": "words"}, UsageError, "share 4 tokens"),
        ({"rows": ("words", [4])}, InputError, r"token 4 of 'words' asked; it has 4 \(0 to 3\)"),
        ({"columns": ("regions", [-6])}, InputError, r"token -6 of 'regions' asked; it has 5 \(0 to 4\)"),
        ({"columns": ("regions", [])}, InputError, "no token of 'regions' was asked"),
        ({"rows": 3}, UsageError, r"a stream's name, or \(stream, token numbers\), not 3"),
        ({"columns": ["regions"]}, UsageError, r"not \['regions'\]"),
        ({"words": {"words": ["a", "b"]}}, InputError, "2 words were given for 'words'; it has 4 tokens"),
        (
            {"rows": ("words", [0, 1, 2]), "words": {"words": ["a", "b"]}},
            InputError,
            "2 words were given for 'words'; it has 4 tokens: give a word for each",
        ),
        ({"words": {"words": list("abcdefgh")}}, InputError, "8 words were given for 'words'; it has 4"),
        ({"words": {"regions": ["a"]}}, InputError, "1 words were given for 'regions'; it has 5"),
        ({"rule": "chefer-bimodal"}, UsageError, "rule='chefer-bimodal'.*paths.*graph rule"),
        ({"target": {"a": 0, "b": 1}, "rows": "words"}, UsageError, "several targets are the rows themselves"),
        ({"target": {"a": 0}, "columns": "region"}, NotFoundError, "nearest: regions"),
        ({"target": {"a": 0}, "columns": ("regions", [9])}, InputError, "token 9 of 'regions'"),
        ({"target": {}}, TargetError, "no targets"),
        ({"target": 99}, TargetError, "the model has 3"),
        ({"correction": "postive"}, NotFoundError, "nearest: positive"),
        ({"calls": 9}, NotFoundError, "no call 9; the model has 8"),
        ({"guide": torch.ones(4)}, InputError, "2 sources"),
        ({"guide": {"region": torch.ones(5)}}, NotFoundError, "nearest: regions"),
        ({"readout": torch.ones(9)}, UsageError, "9"),
        ({"grid": (3, 3)}, InputError, "3 x 3"),
        ({"target": zl.target.output(lambda o: o[:, 0].detach())}, TargetError, "needs no gradient"),
    ],
)
def test_bad_input_gets_one_clear_error(pair, options, error, words):
    model, inputs = pair
    with pytest.raises(error, match=words) as caught:
        zl.ground(model, inputs, **{"target": 1, **options})
    assert isinstance(caught.value, ZerolineError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "words"), [({"coverage": "half"}, "complete, incomplete"), ({"head_fusion": "min"}, "mean")])
def test_options_are_checked_as_by_attention_relevance(pair, options, words):
    model, inputs = pair
    with pytest.raises(NotFoundError, match=words):
        zl.ground(model, inputs, target=1, **options)


@pytest.mark.parametrize(
    "target",
    [
        1,
        {"a": 0, "b": 1},
    ],
)
def test_words_of_a_stream_that_does_not_exist_are_an_error(pair, target):
    model, inputs = pair
    with pytest.raises(NotFoundError, match="no stream 'regionz'; nearest: regions"):
        zl.ground(model, inputs, target=target, words={"regionz": list("abcde")})


def test_sources_of_other_numbers_of_samples_are_no_rows_and_columns():
    """Two images and three texts: there is no matrix per sample."""
    _, model, inputs, _ = toys.family("CLIP")
    given = {"pixel_values": inputs["pixel_values"], "input_ids": inputs["input_ids"][[0, 0, 1]]}
    target = zl.target.output(lambda o: o.image_embeds[:, 0])
    with pytest.raises(InputError, match="'input_ids' has 3 samples and 'pixel_values' 2"):
        zl.ground(model, given, target=target, rows="input_ids", columns="pixel_values")


def test_a_model_of_one_source_needs_ends_or_targets():
    model, x = toys.sharp(toys.OneStream()), torch.randn(2, 5, 8).double()
    with pytest.raises(UsageError, match=r"one source \(x\).*rows= and columns=.*dict of targets"):
        zl.ground(model, x, target=1)
    with pytest.raises(UsageError, match="nothing but 'x' meets"):
        zl.ground(model, x, target=1, rows=("x", [0]))
    assert zl.ground(model, x, target={"a": 0, "b": 1}).matrix.shape == (2, 2, 5)


def test_training_mode_with_dropout_is_refused():
    model = nn.Sequential(nn.Dropout(0.5), toys.OneStream())
    with pytest.raises(ModelStateError, match="eval"):
        zl.ground(model.double(), torch.randn(2, 5, 8).double(), target=1, rows=("x", [0]), columns=("x", [1]))


def test_two_towers_that_never_meet_have_no_grounding_and_it_is_said():
    _, model, inputs, target = toys.family("CLIP")
    pairs = {name: tensor[: len(inputs["pixel_values"])] for name, tensor in inputs.items()}
    found = zl.ground(model, pairs, target=zl.target.output(lambda o: o.logits_per_image.diagonal(), "pairs"))
    assert not bool(found.coupling.any())
    assert "meet in no attention" in dict(found.rows())["note"]
    _, model, inputs, target = toys.family("LXMERT")
    assert "note" not in dict(zl.ground(model, inputs, target=target).rows())
