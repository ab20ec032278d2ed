"""The mechanism record: layers, ranks and readings from the numbers in it, and that it comes back from disk as it was."""

import dataclasses
import json
import math

import pytest
import torch

import zeroline as zl
from zeroline.circuit import HEAD, Edge, shortest
from zeroline.errors import LoadError, UsageError

NAMES = ["words.0.att", "fuse.layer.0.cross", "fuse.layer.0.cross#1", "fuse.layer.1.cross", "words.1.att"]
KINDS = ["homogenous", "heterogenous", "heterogenous", "heterogenous", "homogenous"]
HEADS = [2, 3, 3, 3, 2]


def edge(number, **other):
    own = {
        "number": number,
        "name": NAMES[number],
        "kind": KINDS[number],
        "queries": "words",
        "keys": "regions" if KINDS[number] == "heterogenous" else "words",
        "heads": HEADS[number],
        "feeds_from": tuple(range(number)),
        "cut": ("regions",) if KINDS[number] == "heterogenous" else ("words",),
    }
    return Edge(**{**own, **other})


def record(**other):
    """Five attentions, of which the fourth has not been cut; numbers of no meaning."""
    torch.manual_seed(2)
    effect, heads = torch.randn(2, 5).double(), torch.randn(2, 5, 3).double()
    heads[:, [0, 4], 2] = math.nan
    effect[:, 3], heads[:, 3] = math.nan, math.nan
    made = {
        "edges": tuple(edge(n) for n in range(5)),
        "streams": (("words", 7), ("regions", 6)),
        "relevance": torch.rand(2, 5).double(),
        "effect": effect,
        "head_effect": heads,
        "target": ("logit of cat", "logit of dog"),
        "output": torch.randn(2).double(),
        "joint": torch.randn(2).double(),
        "baselines": {"words": "token 3 for every word", "regions": "zeros"},
        "readout": ("token 0 of words.1.att", "token 1 of words.1.att"),
        "evaluations": 14,
        "forward_passes": 9,
        "execution": ("suffix", "suffix", "full: 'first' mixes samples", "", "full: another reason"),
        "settings": {"correction": "positive", "heads": True, "calls": NAMES[:3]},
        "versions": {"torch": "2"},
        "model": "toys.Model@abc",
    }
    return zl.Mechanism(**{**made, **other})


# --- edges ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layer.0.attention.self", "encoder.layer.0"),
        ("fuse.layers.12.cross#3", "fuse.layers.12"),
        ("decoder.block.1.layer.0.SelfAttention", "decoder.block.1.layer.0"),
        ("blocks.3", "blocks.3"),
        ("head.attention", "head.attention"),
        ("the model", "the model"),
        ("the model#1", "the model"),
        ("layer2d.att", "layer2d.att"),
        ("model.2d.att", "model.2d.att"),
        ("model.1.2d.att", "model.1"),
        ("0.attend", "0"),
    ],
)
def test_a_layer_is_the_path_up_to_its_last_number(name, layer):
    assert edge(0, name=name).layer == layer


def test_heterogenous_edges_are_those_of_different_streams():
    assert record().heterogenous == (1, 2, 3)


def test_the_difference_is_f_less_f_of_the_baselines():
    found = record()
    assert [float(v) for v in found.difference] == pytest.approx([float(found.output[i] - found.joint[i]) for i in range(2)])


# --- ranks -----------------------------------------------------------------------------------------------------------------
def test_the_rank_correlation_is_over_edges_that_were_cut():
    found = record(effect=torch.tensor([[-4.0, 1.0, -2.0, math.nan, 3.0], [1.0, 2.0, 3.0, math.nan, -4.0]]).double())
    found = dataclasses.replace(found, relevance=torch.tensor([[0.4, 0.1, 0.2, 9.0, 0.3], [0.4, 0.3, 0.2, 9.0, 0.1]]).double())
    assert found.rank_correlation().tolist() == pytest.approx([1.0, -1.0])
    assert found.rank_correlation().dtype == torch.float64


def test_fewer_than_four_edges_have_no_rank_correlation():
    found = record()
    assert bool(found.rank_correlation("heterogenous").isnan().all())  # three, of which one was not cut
    assert bool(found.rank_correlation("homogenous").isnan().all())
    assert bool(found.rank_correlation().isfinite().all())
    less = dataclasses.replace(found, effect=found.effect.index_fill(1, torch.tensor([0]), math.nan))
    assert bool(less.rank_correlation().isnan().all())
    half = found.effect.clone()
    half[1, 0] = math.nan  # one sample's is enough
    assert bool(dataclasses.replace(found, effect=half).rank_correlation().isnan().all())


def test_without_any_order_in_the_effects_there_is_no_rank_correlation():
    assert bool(record(effect=torch.ones(2, 5).double()).rank_correlation().isnan().all())


# --- heads, fusion, reading --------------------------------------------------------------------------------------------------
def test_heads_come_by_the_size_of_their_effect():
    found = record()
    for sample in range(2):
        listed = found.heads(sample)
        sizes = [abs(v) for _, _, v in listed]
        assert sizes == sorted(sizes, reverse=True)
        known = {(NAMES[n], h): float(found.head_effect[sample, n, h]) for n in (0, 1, 2, 4) for h in range(HEADS[n])}
        assert {(name, head): v for name, head, v in listed} == known
        assert len(listed) == 10


def test_fusion_adds_up_the_heterogenous_edges_of_a_layer():
    found = record()
    for sample in range(2):
        flow, effect = found.relevance[sample], found.effect[sample].abs()
        first = ("fuse.layer.0", float(flow[1] + flow[2]), float(effect[1] + effect[2]))
        second = ("fuse.layer.1", float(flow[3]), 0.0)  # not cut
        for got, truth in zip(found.fusion(sample), (first, second), strict=True):
            assert got[0] == truth[0]
            assert got[1:] == pytest.approx(truth[1:])


def test_the_reading_names_the_layer_the_edge_and_the_head_with_most_effect():
    effect = torch.tensor([[0.5, -3.0, 1.0, math.nan, 2.0], [-9.0, 1.0, 1.0, math.nan, 2.0]]).double()
    heads = torch.full((2, 5, 3), 0.01).double()
    heads[0, 2, 1], heads[1, 4, 0] = -0.75, 0.5
    found = record(effect=effect, head_effect=heads)
    assert found.reading(0) == (
        "sources meet in 3 of 5 attentions, with most effect in fuse.layer.0 (4); the target needs fuse.layer.0.cross most (-3),"
        " of single heads 1 of fuse.layer.0.cross#1 (-0.75)"
    )
    assert found.reading(1).endswith("the target needs words.0.att most (-9), of single heads 0 of words.1.att (+0.5)")
    alone = record(effect=effect, head_effect=heads * math.nan)
    assert alone.reading(0).endswith("the target needs fuse.layer.0.cross most (-3)")


def test_the_reading_of_a_later_layer():
    effect = torch.tensor([[0.5, -0.5, 0.5, 1.5, 0.1]] * 2).double()
    assert "with most effect in fuse.layer.1 (1.5); the target needs fuse.layer.1.cross most" in record(effect=effect).reading()


def test_of_one_source_nothing_is_heterogenous():
    found = record(edges=tuple(edge(n, kind="homogenous") for n in range(5)))
    assert found.reading().startswith("nothing is heterogenous")
    assert found.fusion() == []
    assert not any("fusion" in label for label, _ in found.rows())


def test_without_a_cut_there_is_no_reading():
    found = record(effect=torch.full((2, 5), math.nan).double(), head_effect=torch.full((2, 5, 3), math.nan).double())
    assert found.reading() == "nothing was cut"
    assert found.heads() == []
    assert "nan" not in repr(found)


# --- samples, words ----------------------------------------------------------------------------------------------------------
def test_a_samples_record_is_its_part_of_everything():
    found = record()
    for index, place in ((0, 0), (1, 1), (-1, 1), (-2, 0)):
        one = found.sample(index)
        for name in ("relevance", "effect", "head_effect", "output", "joint"):
            assert torch.equal(getattr(one, name).nan_to_num(7), getattr(found, name)[place : place + 1].nan_to_num(7))
        assert (one.target, one.readout) == ((found.target[place],), (found.readout[place],))
        assert one.edges == found.edges
        assert one.reading() == found.reading(place)
        assert one.table() == found.table(place)
        assert one.rows() == found.rows(place)
    for wrong in (2, -3):
        with pytest.raises(UsageError, match=f"sample {wrong} asked; the record has 2"):
            found.sample(wrong)


def test_the_table_has_a_row_for_every_edge():
    found = record()
    for sample in range(2):
        rows = found.table(sample)
        assert [row[1] for row in rows] == NAMES
        assert all(len(row) == len(HEAD) for row in rows)
        for n, row in enumerate(rows):
            assert row[0] == str(n)
            assert (row[2], row[3], row[4]) == (found.edges[n].keys, found.edges[n].queries, found.edges[n].kind)
            assert row[5] == f"{float(found.relevance[sample, n]):.3g}"
            own = found.head_effect[sample, n, : HEADS[n]]
            if n == 3:
                assert row[6:] == ("-", "-")
            else:
                assert row[6] == f"{float(found.effect[sample, n]):+.3g}"
                assert row[7] == ", ".join(f"{h} {float(own[h]):+.2g}" for h in own.abs().argsort(descending=True).tolist())


def test_no_more_than_three_heads_are_shown():
    found = record(edges=tuple(edge(n, heads=5) for n in range(5)), head_effect=torch.tensor([1.0, -5.0, 2.0, 4.0, -3.0]).expand(2, 5, 5).double())
    assert found.table()[0][7] == "1 -5, 3 +4, 4 -3"


def test_figures_in_words_are_those_of_the_record():
    found = record()
    for sample in range(2):
        said = dict(found.rows(sample))
        total, difference = float(found.effect[sample].nansum()), float(found.difference[sample])
        assert said["target"] == found.target[sample]
        assert said["f(x)"] == f"{float(found.output[sample]):.6g}"
        assert said["f(baselines)"] == f"{float(found.joint[sample]):.6g}"
        assert said["difference"] == f"{difference:.6g}"
        assert said["baselines"] == "words: token 3 for every word; regions: zeros"
        assert said["sum of effects"] == f"{total:.6g}: cuts overlap, so they do not add up (off by {total - difference:+.3g})"
        assert said["read at"] == found.readout[sample]
        assert said["relevance and effect, all"] == f"Spearman's rho {float(found.rank_correlation()[sample]):+.2f}"
        assert "relevance and effect, heterogenous" not in said
        flow, size = found.fusion(sample)[0][1:]
        assert said["fusion in fuse.layer.0"] == f"relevance {flow:.3g}, effect {size:.3g}"
        assert said["evaluations"] == "14 cuts in 9 forward passes; 2 edges in full: 'first' mixes samples"
        assert said["reading"] == found.reading(sample)
    assert dict(record(execution=("suffix",) * 5).rows())["evaluations"] == "14 cuts in 9 forward passes"
    assert dict(record(execution=("full",) * 5).rows())["evaluations"] == "14 cuts in 9 forward passes"
    four = record(edges=tuple(edge(n, kind="heterogenous") for n in range(5)))
    assert "relevance and effect, heterogenous" in dict(four.rows())


def test_it_prints_the_first_sample_and_how_many_more_there_are():
    found = record()
    assert repr(found).startswith("Mechanism of 5 attentions\n")
    mean = float(found.rank_correlation().mean())
    assert repr(found).endswith(f"... and 1 more samples: .sample(i); Spearman's rho of relevance and effect {mean:+.2f} in the mean over all 2")
    assert dict(found.rows())["heads by effect"].count(" of ") == 3
    assert "more samples" not in repr(found.sample(1))
    assert all(name in repr(found) for name in NAMES)
    html = record(target=("<b>", "&"), edges=(edge(0, name="<i>"), *(edge(n) for n in range(1, 5))))._repr_html_()
    assert "&lt;b&gt;" in html
    assert "&lt;i&gt;" in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert html.count("<tr>") == len(found.rows()) + 6


# --- disk --------------------------------------------------------------------------------------------------------------------
def same(a, b):
    for field in dataclasses.fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)) if isinstance(one, torch.Tensor) else one == other, field.name
        assert type(one) is type(other), field.name


def test_what_is_saved_comes_back(tmp_path):
    found = record()
    found.save(tmp_path / "m.safetensors")
    again = zl.Mechanism.load(tmp_path / "m.safetensors")
    same(found, again)
    assert repr(again) == repr(found)
    again.save(tmp_path / "again.safetensors")
    same(again, zl.Mechanism.load(tmp_path / "again.safetensors"))


def test_everything_is_json_and_nan_is_null():
    found = record()
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for n, one in enumerate(said["edges"]):
        assert (one["number"], one["name"], one["kind"], one["heads"]) == (n, NAMES[n], KINDS[n], HEADS[n])
        assert one["layer"] == found.edges[n].layer
        assert one["relevance"] == pytest.approx(found.relevance[:, n].tolist())
        assert one["execution"] == found.execution[n]
        assert (one["feeds_from"], one["cut"]) == (list(range(n)), list(found.edges[n].cut))
        assert [len(each) for each in one["head_effect"]] == [HEADS[n]] * 2
    assert said["edges"][3]["effect"] == [None, None]
    assert said["edges"][3]["head_effect"] == [[None] * 3] * 2
    assert said["edges"][1]["effect"] == pytest.approx(found.effect[:, 1].tolist())
    assert said["edges"][1]["head_effect"][1] == pytest.approx(found.head_effect[1, 1].tolist())
    assert said["rank_correlation"] == pytest.approx(found.rank_correlation().tolist())
    assert said["rank_correlation_heterogenous"] == [None, None]
    assert [part["layer"] for part in said["fusion"][1]] == ["fuse.layer.0", "fuse.layer.1"]
    assert said["fusion"][1][0]["effect"] == pytest.approx(found.fusion(1)[0][2])
    assert said["fusion"][1][0]["relevance"] == pytest.approx(found.fusion(1)[0][1])
    assert said["reading"] == [found.reading(0), found.reading(1)]
    assert said["difference"] == pytest.approx(found.difference.tolist())
    assert said["streams"] == [{"name": "words", "tokens": 7}, {"name": "regions", "tokens": 6}]
    assert (said["kind"], said["evaluations"], said["forward_passes"]) == ("mechanism", 14, 9)
    assert said["baselines"] == dict(found.baselines)


def test_other_files_are_no_mechanism(tmp_path):
    with pytest.raises(LoadError, match="no file"):
        zl.Mechanism.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(LoadError, match="is not a mechanism that zeroline saved"):
        zl.Mechanism.load(tmp_path / "text")
    zl.gradient_x_input(torch.nn.Linear(4, 2), torch.randn(1, 4), target=0, baseline=zl.baseline.zeros()).save(tmp_path / "attribution")
    with pytest.raises(LoadError, match="not mechanism of format 1"):
        zl.Mechanism.load(tmp_path / "attribution")
    record().save(tmp_path / "m")
    with pytest.raises(LoadError, match="not grounding"):
        zl.Grounding.load(tmp_path / "m")


def test_the_record_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().effect = torch.zeros(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        edge(0).name = "x"


# --- names for figures -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["encoder.layer.0.att", "encoder.layer.1.att"], ["layer.0.att", "layer.1.att"]),
        (["a.b.c.0.x", "a.b.c.1.x"], ["c.0.x", "c.1.x"]),
        (["a.enc.0", "a.dec.0"], ["enc.0", "dec.0"]),
        (["x.0.att"], ["x.0.att"]),
        (["model.att"], ["att"]),
        (["a.att", "b.att"], ["a.att", "b.att"]),
        (["a", "a.b"], ["a", "a.b"]),
        ([], []),
    ],
)
def test_names_lose_the_beginning_that_they_share(names, short):
    assert shortest(names) == dict(zip(names, short))
