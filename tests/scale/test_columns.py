"""Records as rows and back: every kind of record comes back bit by bit, and programs that know nothing of zeroline read the right numbers."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from scale.rows_of import KINDS, attributions, groundings, layout_and_rows, logics, mechanisms, odd_figures, relevances, row
from zeroline.errors import InputError, LoadError
from zeroline.relevance import Substitution, Tokens
from zeroline.scale.columns import Layout


def written(tmp_path, layout, rows):
    """The rows in a Parquet file, as a table read back from there."""
    pq.write_table(layout.table(rows), tmp_path / "t.parquet")
    return pq.read_table(tmp_path / "t.parquet")


def plain(table):
    """The rows as dicts; arrays as flat lists."""
    return pa.table(
        [c.combine_chunks().storage if isinstance(c.type, pa.BaseExtensionType) else c for c in table.columns], table.column_names
    ).to_pylist()


def bits(tensor):
    """What tells two tensors apart, NaN included."""
    return str(tensor.dtype), tuple(tensor.shape), tensor.flatten().clone().as_strided((tensor.numel(),), (1,)).view(torch.uint8).tolist()


def same(found, record):
    """Is it the record, tensor by tensor and word by word?"""
    assert type(found) is type(record)
    (kept, said), (tensors, words) = found.packed(), record.packed()
    assert {name: bits(t) for name, t in kept.items()} == {name: bits(t) for name, t in tensors.items()}
    assert repr(said) == repr(json.loads(json.dumps(words)))
    assert repr(found.to_dict()) == repr(json.loads(json.dumps(record.to_dict())))
    assert found.rows() == record.rows()


# --- every kind, both ways -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_comes_back_as_it_was(tmp_path, kind, fixed):
    records = KINDS[kind]()
    layout, rows = layout_and_rows(records, fixed)
    assert layout.is_fixed is fixed
    table = written(tmp_path, layout, rows)
    assert table.schema.equals(layout.schema())
    layout = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    for found, record in zip(plain(table), records, strict=True):
        same(layout.record(found, "here"), record)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("number", range(4))
def test_figures_that_are_odd_come_back(tmp_path, number, fixed):
    record = odd_figures()[number]
    layout, rows = layout_and_rows([record, record], fixed)
    for found in plain(written(tmp_path, layout, rows)):
        same(layout.record(found, "here"), record)


def test_odd_figures_may_share_a_table_and_are_null_where_they_are_no_number(tmp_path):
    layout, rows = layout_and_rows(odd_figures())
    table = written(tmp_path, layout, rows)
    assert table["map_error"].to_pylist() == [None, 0.25, 1e308, None]
    assert table["local_error"].to_pylist() == [None, 1e-310, None, 1.0]
    assert table["raw_error"].to_pylist() == [None, -0.0, None, 1.0]
    assert math.copysign(1, table["raw_error"].to_pylist()[1]) == -1
    assert table["error_spread"].to_pylist() == [None] * 4
    assert table["relative_error"].null_count == 1
    assert table["relative_error"].to_pylist()[1] is None
    assert table["difference"].to_pylist()[1] == 0
    for found, record in zip(plain(table), odd_figures(), strict=True):
        same(layout.record(found, "here"), record)


VALUES = {  # numbers at the ends of each type
    torch.float32: [0.0, -0.0, 1e-45, 3.4028235e38, math.inf, -math.inf, math.nan, 0.1],
    torch.float64: [0.0, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, 0.1],
    torch.float16: [0.0, -0.0, 5.96e-8, 65504.0, math.inf, -math.inf, math.nan, 0.1],
    torch.bfloat16: [0.0, -0.0, 9.2e-41, 3.3895e38, math.inf, -math.inf, math.nan, 0.1],
}


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("dtype", VALUES)
def test_every_value_comes_back(tmp_path, dtype, fixed):
    values = torch.tensor(VALUES[dtype], dtype=torch.float64).to(dtype).view(1, 2, 4)
    assert len({tuple(one.view(torch.uint8).tolist()) for one in values.flatten().split(1)}) == 8
    first = attributions()[0]
    records = [replace(first, parts={"input": v}) for v in (values, values.flip(2), values.transpose(1, 2).reshape(1, 2, 4))]
    layout, rows = layout_and_rows(records, fixed)
    table = written(tmp_path, layout, rows)
    for found, record in zip(plain(table), records, strict=True):
        assert bits(layout.record(found, "here").values) == bits(record.values)
    expected = pa.float64() if dtype == torch.float64 else pa.float32()
    assert (table.schema.field("values").type.value_type) == expected


@pytest.mark.parametrize("fixed", [True, False])
def test_values_that_do_not_lie_in_order_keep_their_places(tmp_path, fixed):
    """Transposed, and with sides of one."""
    first = attributions()[0]
    for values in (
        torch.arange(6.0).view(1, 2, 3).transpose(1, 2),
        torch.arange(4.0).view(1, 1, 4, 1),
        torch.arange(3.0).view(3, 1).T[:, :, None],
        torch.ones(1, 1),
    ):
        records = [replace(first, parts={"input": values}), replace(first, parts={"input": values + 10})]
        layout, rows = layout_and_rows(records, fixed)
        found = [layout.record(one, "here").values for one in plain(written(tmp_path, layout, rows))]
        assert [f.tolist() for f in found] == [values.tolist(), (values + 10).tolist()]


def test_several_parts_have_columns_of_their_own(tmp_path):
    first, second = attributions()[:2]
    records = [
        replace(one, parts={"input:ids": torch.full((1, 2), n), "block.0": torch.full((1, 3), n + 0.5)}) for n, one in enumerate((first, second))
    ]
    layout, rows = layout_and_rows(records)
    table = written(tmp_path, layout, rows)
    assert [one["values.block.0"] for one in plain(table)] == [[0.5] * 3, [1.5] * 3]
    for found, record in zip(plain(table), records, strict=True):
        same(layout.record(found, "here"), record)


@pytest.mark.parametrize("counts", [(3, 1), (1, 3), (2, 2)])
def test_what_is_substituted_may_have_another_number_of_rows_for_every_example(tmp_path, counts):
    first, second = relevances()
    put = [Substitution("call", torch.zeros(n, dtype=torch.int64), torch.arange(n), torch.rand(n, 4)) for n in counts]
    records = [replace(one, substituted=(sub, sub)) for one, sub in zip((first, second), put)]
    layout, rows = layout_and_rows(records)
    assert not layout.is_fixed
    assert pa.types.is_fixed_size_list(layout.schema().field("by_source.input_ids").type.storage_type)
    for found, record in zip(plain(written(tmp_path, layout, rows)), records, strict=True):
        same(layout.record(found, "here"), record)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_stream_of_all_samples_is_kept_whole(tmp_path, fixed):
    """Tokens that are no sample's own: as many rows as there were, not one."""
    learned, calls = torch.randn(3, 4), torch.randn(11, 3, 4)
    records = [
        replace(
            one,
            by_source={**one.by_source, "learned": learned + n},
            per_call={**one.per_call, "learned": calls - n},
            tokens={**one.tokens, "learned": Tokens()},
        )
        for n, one in enumerate(relevances())
    ]
    layout, rows = layout_and_rows(records, fixed)
    for found, record in zip(plain(written(tmp_path, layout, rows)), records, strict=True):
        same(layout.record(found, "here"), record)


def test_ragged_columns_take_every_shape(tmp_path):
    first = attributions()[0]
    shapes = [(1, 3, 2, 2), (1, 3, 4, 1), (1, 3, 1, 5), (1, 3, 0, 2)]
    records = [replace(first, parts={"input": torch.randn(shape)}) for shape in shapes]
    layout, rows = layout_and_rows(records, fixed=False)
    table = written(tmp_path, layout, rows)
    assert table["values.shape"].to_pylist() == [list(shape[1:]) for shape in shapes]
    assert [len(one) for one in table["values"].to_pylist()] == [12, 12, 15, 0]
    for found, record in zip(plain(table), records, strict=True):
        same(layout.record(found, "here"), record)


def test_empty_values_in_fixed_columns_come_back(tmp_path):
    records = [replace(attributions()[0], parts={"input": torch.zeros(1, 0, 3)})] * 2
    layout, rows = layout_and_rows(records)
    for found, record in zip(plain(written(tmp_path, layout, rows)), records, strict=True):
        same(layout.record(found, "here"), record)


def test_a_grounding_of_several_targets_comes_back(tmp_path):
    first = groundings()[0]
    record = replace(first, row_stream="", row_words=tuple("abcdefg"), output=torch.arange(7.0).double()[None], target=tuple("abcdefg"))
    layout, rows = layout_and_rows([record, record])
    for found in plain(written(tmp_path, layout, rows)):
        same(layout.record(found, "here"), record)


# --- figures ---------------------------------------------------------------------------------------------------------------------


def attribution_figures(one):
    """Written out again, from the record's own tensors."""
    difference = float(one.output) - float(one.baseline_output)
    total = math.fsum(one.values.double().flatten().tolist())
    return {
        "target": one.target[0], "site": one.site, "baseline": one.baseline, "output": float(one.output), "baseline_output": float(one.baseline_output),
        "reference_output": float(one.reference_output), "difference": difference, "total": total, "error": total - difference,
        "relative_error": abs(total - difference) / abs(difference), "local_error": float(one.local_error), "map_error": float(one.map_error),
        "raw_error": None, "baseline_kl": None, "error_spread": None, "evaluations": int(one.evaluations), "forward_passes": one.forward_passes,
        "stopped": one.stopped[0],
    }  # fmt: skip


def logic_figures(one):
    by_number = dict(zip(one.coalitions.tolist(), one.values[0].tolist()))
    everyone, nobody = by_number[7], by_number[0]
    return {
        "target": one.target[0], "output": float(one.output), "value": everyone, "baseline_value": nobody, "difference": everyone - nobody,
        "total": everyone - nobody, "error": 0.0, "exact": True, "threshold": one.threshold, "reading": one.reading[0], "evaluations": 8,
    }  # fmt: skip


FIGURES = {
    "attribution": attribution_figures,
    "relevance": lambda one: {"target": "answer 1", "output": float(one.output), "readout": one.readout[0]},
    "grounding": lambda one: {"target": "answer 1", "output": float(one.output), "readout": one.readout[0]},
    "logic": logic_figures,
    "mechanism": lambda one: {
        **{"target": "answer 1", "output": float(one.output), "joint": float(one.joint), "difference": float(one.output) - float(one.joint)},
        **{"rank_correlation": ranked(one), "reading": one.reading(0), "evaluations": one.evaluations},
    },
}


def ranked(one):
    """Spearman's rho of relevance and effect over the edges that were cut, by scipy."""
    from scipy.stats import spearmanr

    cut = ~one.effect[0].isnan()
    return float(spearmanr(one.relevance[0][cut].numpy(), one.effect[0][cut].abs().numpy()).statistic)


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_are_columns(tmp_path, kind):
    records = KINDS[kind]()
    layout, rows = layout_and_rows(records)
    table = written(tmp_path, layout, rows)
    for number, (found, record) in enumerate(zip(table.to_pylist(), records, strict=True)):
        expected = FIGURES[kind](record)
        for name, value in expected.items():
            assert found[name] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value), name
        told = {"id": f"e{number}", "number": number, "image": f"{number}.png", "text": None, "passage": None, "label": f"class {number % 2}"}
        told |= {"content_hash": f"hash {number}", "settings_hash": "s", "model_hash": "m", "method": "some", "seconds": number / 2, "batch": 2}
        assert {name: found[name] for name in told} == told
        known = {*told, *expected, "record", *(column for array in layout.arrays for column in (f.name for f in array.fields()))}
        assert set(table.column_names) == known


def test_evidence_has_columns_only_where_there_are_places(tmp_path):
    evidence = {"inside": 0.75, "pointing": 1.0, "chance": None}
    layout, rows = layout_and_rows(attributions()[:2], evidence=evidence)
    rows[1] = replace(rows[1], evidence={})
    table = written(tmp_path, layout, rows)
    assert [table[name].to_pylist() for name in ("inside", "pointing", "chance")] == [[0.75, None], [1.0, None], [None, None]]
    bare, _ = layout_and_rows(attributions()[:2])
    assert not {"inside", "pointing", "chance"} & set(bare.schema().names)
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


# --- what does not fit -----------------------------------------------------------------------------------------------------------


def test_another_shape_in_a_fixed_layout_is_an_error_that_says_both():
    layout, rows = layout_and_rows(attributions())
    other = row(attributions(sides=(1, 4))[0], 4)
    for ask in (layout.check, lambda one: layout.table([*rows, one])):
        with pytest.raises(InputError, match=r"its 'values/input:input' is \(3, 1, 4\); in this run they are \(3, 2, 2\)"):
            ask(other)
    layout.check(row(attributions("float32")[0]))  # the shape is what must fit


def test_another_map_in_a_fixed_layout_is_an_error_that_says_both():
    maps = [torch.ones(2, 2)] * 4
    layout, _ = layout_and_rows(attributions(), maps=maps)
    with pytest.raises(InputError, match=r"its 'map' is \(2, 3\); in this run they are \(2, 2\)"):
        layout.check(row(attributions()[0], map=torch.ones(2, 3)))
    with pytest.raises(InputError, match=r"its record has no 'map', which the others of the run have"):
        layout.check(row(attributions()[0]))


def test_another_kind_of_record_is_an_error_that_says_both():
    layout, _ = layout_and_rows(logics())
    with pytest.raises(InputError, match="its record is relevance; in this run they are logic"):
        layout.check(row(relevances()[0]))


def test_a_record_without_a_tensor_of_the_run_is_an_error():
    layout, _ = layout_and_rows(attributions())
    with pytest.raises(InputError, match=r"its record has no 'values/input:input', which the others of the run have"):
        layout.check(row(replace(attributions()[0], parts={"block": torch.ones(1, 3, 2, 2)})))


@pytest.mark.parametrize("thing", [3, torch.ones(1), {"a": 1}])
def test_what_is_no_record_of_an_example_is_refused(thing):
    with pytest.raises(InputError, match="no record with one row per example; those are attribution, relevance, logic, grounding, mechanism"):
        Layout.of(row(thing), fixed=True, fixed_map=True, keep="values")


# --- what is kept ----------------------------------------------------------------------------------------------------------------

MAPS = [torch.tensor([[n, -0.5], [math.nan, 1e-45]]) for n in range(4)]


@pytest.mark.parametrize("keep", ["values", "map", "figures"])
@pytest.mark.parametrize("kind", ["attribution", "mechanism"])
def test_what_is_kept_is_what_was_asked(tmp_path, kind, keep):
    records = KINDS[kind]()
    layout, rows = layout_and_rows(records, keep=keep, maps=MAPS[: len(records)])
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    table = written(tmp_path, layout, rows)
    assert ("map" in table.column_names) is (keep != "figures")
    assert bool({"values", "relevance"} & set(table.column_names)) is (keep == "values")
    if keep != "figures":
        for found, expected in zip(plain(table), MAPS, strict=False):
            assert bits(torch.tensor(found["map"]).view(2, 2)) == bits(expected)
    for number, found in enumerate(plain(table)):
        if keep == "values":
            same(layout.record(found, "example 'x' in 'run'"), records[number])
        else:
            with pytest.raises(LoadError, match="example 'x' in 'run': the run kept no values"):
                layout.record(found, "example 'x' in 'run'")
    assert table["output"].to_pylist() == [float(one.output) for one in records]


def test_maps_of_one_size_are_fixed_though_values_are_ragged(tmp_path):
    layout, rows = layout_and_rows(attributions(), fixed=False, fixed_map=True, maps=MAPS)
    assert (layout.map.shape, layout.is_fixed) == ((2, 2), False)
    table = written(tmp_path, layout, rows)
    assert isinstance(table.schema.field("map").type, pa.FixedShapeTensorType)
    assert pa.types.is_list(table.schema.field("values").type)
    for found, record in zip(plain(table), attributions(), strict=True):
        same(layout.record(found, "here"), record)


def test_maps_of_any_size_are_lists_beside_their_shapes(tmp_path):
    maps = [torch.arange(float(a * b)).view(a, b) for a, b in ((1, 2), (3, 1), (2, 2), (1, 1))]
    layout, rows = layout_and_rows(attributions(), fixed=True, fixed_map=False, maps=maps, keep="map")
    table = written(tmp_path, layout, rows)
    assert table["map"].to_pylist() == [one.flatten().tolist() for one in maps]
    assert table["map.shape"].to_pylist() == [list(one.shape) for one in maps]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("keep", ["values", "map", "figures"])
def test_a_layout_survives_the_manifest(kind, fixed, keep):
    layout, _ = layout_and_rows(KINDS[kind](), fixed, keep, maps=[torch.ones(2, 3)] * 4, evidence={})
    found = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert found == layout
    assert found.schema().equals(layout.schema())


# --- read by others --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["fixed", "ragged"])
def shard(request, tmp_path):
    """A shard as a run writes it, and what is in it."""
    from zeroline.scale.store import _write_parquet

    records = attributions("float32")
    layout, rows = layout_and_rows(records, request.param, maps=[torch.full((2, 2), float(n)) for n in range(4)])
    _write_parquet(tmp_path / "part-000000.parquet", layout.table(rows), {"zeroline": "{}"})
    values = [one.values.flatten().tolist() for one in records]
    return tmp_path / "part-000000.parquet", records, values


def flat(nested):
    return np.concatenate(
        [np.ravel(np.asarray(one, dtype=object)) if not isinstance(one, (list, np.ndarray)) else np.ravel(flat(one)) for one in nested]
    ).tolist()


def test_duckdb_reads_a_shard(shard):
    duckdb = pytest.importorskip("duckdb")
    path, records, values = shard
    found = duckdb.sql(f"select id, values, error, stopped, list_sum(map) as painted from '{path}' order by number desc").fetchall()
    assert [one[0] for one in found] == ["e3", "e2", "e1", "e0"]
    assert [flat(one[1]) for one in found] == values[::-1]
    assert [one[2] for one in found] == [float(one.error) for one in records[::-1]]
    assert [one[3] for one in found] == [one.stopped[0] for one in records[::-1]]
    assert [one[4] for one in found] == [12.0, 8.0, 4.0, 0.0]
    counted = duckdb.sql(f"select label, count(*), avg(output) from '{path}' group by label order by label").fetchall()
    outputs = [float(one.output) for one in records]
    assert counted == [("class 0", 2, pytest.approx((outputs[0] + outputs[2]) / 2)), ("class 1", 2, pytest.approx((outputs[1] + outputs[3]) / 2))]
    method = duckdb.sql(f"select json_extract_string(record, '$.record.method') from '{path}'").fetchall()
    assert method == [("integrated_gradients",)] * 4


def test_pandas_reads_a_shard(shard):
    path, records, values = shard
    found = pandas.read_parquet(path)
    assert found["id"].tolist() == ["e0", "e1", "e2", "e3"]
    assert [flat(one) for one in found["values"]] == values
    assert found["error"].tolist() == [float(one.error) for one in records]
    assert found["evaluations"].tolist() == [int(one.evaluations) for one in records]
    assert [flat(one) for one in found["map"]] == [[float(n)] * 4 for n in range(4)]
    assert found["raw_error"].isna().all()


def test_hugging_face_datasets_read_a_shard(shard, tmp_path):
    datasets = pytest.importorskip("datasets")
    path, records, values = shard
    found = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train")
    assert found["id"] == ["e0", "e1", "e2", "e3"]
    assert [flat(one) for one in found["values"]] == values
    assert list(found["output"]) == [float(one.output) for one in records]
    assert [flat(one) for one in found["map"]] == [[float(n)] * 4 for n in range(4)]
    assert len(found.filter(lambda one: one["label"] == "class 1")) == 2


def test_the_json_of_a_record_is_json(tmp_path):
    """NaN and Infinity are no JSON: other programs stop there."""

    def refuse(constant):
        raise AssertionError(constant)

    for records in (odd_figures(), mechanisms(False), logics(11), groundings()):
        layout, rows = layout_and_rows(records)
        for text in layout.table(rows)["record"].to_pylist():
            json.loads(text, parse_constant=refuse)
