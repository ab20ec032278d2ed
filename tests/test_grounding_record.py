"""The grounding record: what it adds up to, what it says, and that it comes back from disk as it was."""

import dataclasses
import json

import pytest
import torch

import zeroline as zl
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.relevance import Tokens


def record(batch=2, rows=3, columns=7, calls=2, **other):
    """Three words over a class token and two rows of three patches; numbers of no meaning."""
    torch.manual_seed(1)
    per_call, back = torch.randn(2, calls, batch, rows, columns).double()
    made = {
        "matrix": per_call.sum(0),
        "per_call": per_call,
        "direct": torch.randn(batch, columns).double(),
        "back": back.sum(0),
        "back_per_call": back,
        "calls": tuple(f"layer.{i}.cross" for i in range(calls)),
        "row_stream": "words",
        "column_stream": "pixels",
        "row_tokens": tuple(range(rows)),
        "column_tokens": tuple(range(columns)),
        "row_words": ("what", "is", "seven", "?", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j")[:rows],
        "column_words": (),
        "lie": Tokens(1, (2, 3)),
        "target": tuple(f"logit of {i}" for i in range(batch)),
        "output": torch.randn(batch).double(),
        "readout": tuple(f"token {i} of layer.1" for i in range(batch)),
        "settings": {"correction": "positive", "calls": [0, 1]},
        "versions": {"torch": "2"},
        "model_class": "toys.Model",
        "weights": "abc",
    }
    return zl.Grounding(**{**made, **other})


def several(batch=2):
    """Three targets as rows."""
    more = {
        "row_stream": "",
        "row_words": ("a", "b", "a - b"),
        "target": tuple(one for one in ("logit of 0", "logit of 1", "0 - 1") for _ in range(batch)),
    }
    return record(batch, output=torch.randn(batch, 3).double(), direct=torch.zeros(batch, 7).double(), **more)


# --- what it adds up to ------------------------------------------------------------------------------------------------
def test_relevance_is_what_came_through_rows_and_past_them():
    found = record()
    truth = torch.tensor([[sum(float(found.matrix[b, i, j]) for i in range(3)) + float(found.direct[b, j]) for j in range(7)] for b in range(2)])
    assert torch.allclose(found.relevance, truth.double())
    assert torch.equal(found.coupling, found.matrix + found.back)


def test_through_is_the_share_of_rows_by_size():
    found = record()
    for b in range(2):
        rows, past = (sum(abs(v) for v in part[b].flatten().tolist()) for part in (found.matrix, found.direct))
        assert float(found.through[b]) == pytest.approx(rows / (rows + past))
    assert found.through.dtype == torch.float64
    assert torch.equal(several().through, torch.ones(2).double())
    nothing = dataclasses.replace(found, matrix=found.matrix * 0, direct=found.direct * 0)
    assert torch.equal(nothing.through, torch.zeros(2).double())


# --- asking it -----------------------------------------------------------------------------------------------------------
def test_a_row_is_found_by_number_and_by_word():
    found = record()
    for number, name in enumerate(("what", "is", "seven")):
        assert torch.equal(found.row(name), found.matrix[:, number])
        assert torch.equal(found.row(number), found.matrix[:, number])
    assert torch.equal(found.row(-1), found.matrix[:, 2])
    assert torch.equal(found.row(-3), found.matrix[:, 0])


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        (3, NotFoundError, r"no row 3; there are 3 \(0 to 2\)"),
        (-4, NotFoundError, "no row -4"),
        ("sevne", NotFoundError, "no row 'sevne'; nearest: seven"),
    ],
)
def test_a_row_that_is_not_there_is_an_error(name, error, words):
    with pytest.raises(error, match=words):
        record().row(name)


def test_a_word_of_two_rows_needs_a_number():
    found = record(row_words=("the", "seven", "the"))
    with pytest.raises(UsageError, match=r"2 rows are called 'the'; give a number \(0, 2\)"):
        found.row("the")
    assert torch.equal(found.row("seven"), found.matrix[:, 1])


def test_columns_lie_on_the_grid_without_their_class_token():
    found = record()
    assert found.gridded
    for part in ("matrix", "back", "coupling"):
        assert torch.equal(found.grid(part), getattr(found, part)[:, :, 1:].reshape(2, 3, 2, 3))
    assert torch.equal(found.grid(), found.grid("matrix"))
    for part in ("per_call", "back_per_call"):
        assert torch.equal(found.grid(part), getattr(found, part)[..., 1:].reshape(2, 2, 3, 2, 3))
    assert torch.equal(found.grid("direct"), found.direct[:, 1:].reshape(2, 2, 3))
    assert float(found.grid()[1, 2, 1, 0]) == float(found.matrix[1, 2, 4])


def test_columns_without_a_grid_lie_on_none():
    for other in ({"lie": Tokens(0, None)}, {"lie": Tokens(1, (3, 3))}, {"lie": Tokens(0, (2, 3))}):
        found = record(**other)
        assert not found.gridded
        with pytest.raises(UsageError, match=r"the 7 columns \(pixels\) lie on no grid"):
            found.grid()
    assert record(lie=Tokens(0, None)).where(4) == "token 4"


def test_a_column_is_named_by_its_word_its_place_or_its_number():
    assert [record().where(j) for j in (0, 1, 3, 4, 6)] == ["token 0", "patch (0, 0)", "patch (0, 2)", "patch (1, 0)", "patch (1, 2)"]
    assert record(column_words=tuple("abcdefg")).where(4) == "e"
    some = record(columns=2, column_tokens=(5, 2))
    assert (some.where(0), some.where(1)) == ("token 5", "token 2")


def test_a_samples_record_is_its_part_of_everything():
    found = record()
    for index, place in ((0, 0), (1, 1), (-1, 1), (-2, 0)):
        one = found.sample(index)
        for name in ("matrix", "direct", "back", "output"):
            assert torch.equal(getattr(one, name), getattr(found, name)[place : place + 1])
        for name in ("per_call", "back_per_call"):
            assert torch.equal(getattr(one, name), getattr(found, name)[:, place : place + 1])
        assert (one.target, one.readout) == ((found.target[place],), (found.readout[place],))
        assert one.row_words == found.row_words
        assert torch.equal(one.relevance, found.relevance[place : place + 1])
    targets = several().sample(1)
    assert targets.target == ("logit of 0", "logit of 1", "0 - 1")
    assert targets.output.shape == (1, 3)
    for wrong in (2, -3):
        with pytest.raises(UsageError, match=f"sample {wrong} asked; the record has 2"):
            found.sample(wrong)


# --- words ---------------------------------------------------------------------------------------------------------------
def test_figures_in_words_are_those_of_the_matrix():
    found = record()
    for sample in range(2):
        said = dict(found.rows(sample))
        both = (found.matrix + found.back)[sample].abs()
        for i, word in enumerate(found.row_words):
            best = int(both[i].argmax())
            signed = float((found.matrix + found.back)[sample, i, best])
            assert said[word] == f"{float(both[i].sum() / both.sum()):.2%}, most with {found.where(best)} ({signed:+.3g})"
        assert said["target"] == f"logit of {sample}"
        assert said["rows"] == "3 tokens of words"
        assert said["columns"] == "7 tokens of pixels"
        parts = [float(t[sample].sum()) for t in (found.relevance, found.matrix, found.direct)]
        assert said["relevance of columns"] == f"{parts[0]:.4g} = {parts[1]:.4g} through rows + {parts[2]:.4g} past them"
        assert said["relevance of rows"] == f"{float(found.back[sample].sum()):.4g} through columns"
        each = [float((found.per_call + found.back_per_call)[i, sample].abs().sum()) for i in range(2)]
        for name, size in zip(found.calls, each):
            assert said[f"at {name}"] == f"{size / sum(each):.1%}"


def test_of_many_rows_those_with_most_are_listed_in_their_order():
    found = record(rows=14)
    lines = found.rows()
    both = found.coupling[0].abs().sum(1)
    shown = [label for label, _ in lines if label in found.row_words]
    assert len(shown) == 12
    assert set(found.row_words) - set(shown) == {found.row_words[i] for i in both.argsort()[:2].tolist()}
    assert shown == [word for word in found.row_words if word in shown]
    assert ("", "and 2 rows with less") in lines
    assert not any(label == "" for label, _ in record().rows())


def test_several_targets_say_so_and_claim_no_sum():
    said = dict(several().rows())
    assert said["target"] == "3 targets"
    assert said["rows"] == "3 targets"
    assert "relevance of columns" not in said


def test_a_record_of_nothing_prints_without_a_nan():
    empty = record()
    empty = dataclasses.replace(empty, **{name: getattr(empty, name) * 0 for name in ("matrix", "per_call", "direct", "back", "back_per_call")})
    assert "nan" not in repr(empty)
    assert "0.0%" in repr(empty)


def test_it_prints_the_first_sample_and_how_many_more_there_are():
    assert repr(record()).startswith("Grounding of words in pixels\n")
    assert repr(record()).endswith("... and 1 more samples: .sample(i)")
    assert "more samples" not in repr(record(batch=1))
    assert repr(several()).startswith("Grounding of targets in pixels\n")
    html = record(row_words=("<b>", "&", "seven"), target=("<i>", "x"), row_stream="<u>")._repr_html_()
    assert all(f"&lt;{letter}&gt;" in html for letter in "biu")
    assert not any(f"<{letter}>" in html for letter in "biu")
    assert "&amp;" in html


# --- disk ------------------------------------------------------------------------------------------------------------------
def same(a, b):
    for field in dataclasses.fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name
        assert type(one) is type(other), field.name


@pytest.mark.parametrize("made", [record, several, lambda: record(lie=Tokens(0, None), column_words=tuple("abcdefg")), lambda: record(calls=0)])
def test_what_is_saved_comes_back(made, tmp_path):
    found = made()
    found.save(tmp_path / "g.safetensors")
    again = zl.Grounding.load(tmp_path / "g.safetensors")
    same(found, again)
    assert again.model_id == "toys.Model@abc"
    assert torch.equal(again.relevance, found.relevance)
    assert repr(again) == repr(found)
    again.save(tmp_path / "again.safetensors")
    same(again, zl.Grounding.load(tmp_path / "again.safetensors"))


def test_everything_but_the_values_is_json():
    found = record()
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert said["rows"] == {"stream": "words", "tokens": [0, 1, 2], "words": ["what", "is", "seven"]}
    assert said["columns"] == {"stream": "pixels", "tokens": list(range(7)), "words": [], "prefix": 1, "grid": [2, 3]}
    assert torch.allclose(torch.tensor(said["row_totals"]).double(), found.coupling.sum(2))
    assert torch.allclose(torch.tensor(said["direct"]).double(), found.direct.sum(1))
    assert torch.allclose(torch.tensor(said["through"]).double(), found.through)
    assert torch.allclose(torch.tensor(said["output"]).double(), found.output)
    assert (said["kind"], said["target"], said["calls"]) == ("grounding", list(found.target), list(found.calls))
    assert said["model"] == "toys.Model@abc"


def test_weights_are_hashed_when_they_are_asked_for():
    asked = []

    def hashed():
        asked.append(1)
        return "xyz"

    found = record(weights=hashed)
    assert not asked
    assert found.model_id == "toys.Model@xyz"


def test_other_files_are_no_grounding(tmp_path):
    with pytest.raises(LoadError, match="no file"):
        zl.Grounding.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(LoadError, match="is not a grounding that zeroline saved"):
        zl.Grounding.load(tmp_path / "text")
    model = torch.nn.Linear(4, 2)
    zl.gradient_x_input(model, torch.randn(1, 4), target=0, baseline=zl.baseline.zeros()).save(tmp_path / "attribution")
    with pytest.raises(LoadError, match="not grounding of format 1"):
        zl.Grounding.load(tmp_path / "attribution")
    with pytest.raises(LoadError):
        zl.Attribution.load(_saved(tmp_path))


def _saved(folder):
    record().save(folder / "g")
    return folder / "g"


def test_the_record_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().matrix = torch.zeros(1)
