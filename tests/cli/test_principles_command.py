"""``zeroline principles`` as a user meets it: the set that ships, sets of one's own, the spelling of methods, files, errors."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import zeroline as zl
from cli.test_cli import run
from zeroline import Principles, zoo
from zeroline.cli.principles import read_method
from zeroline.errors import NotFoundError, UsageError
from zeroline.zoo.digits_clip import CAPTIONS

OWN, ZEROS = "attention_eclip(weights=attention)", "integrated_gradients(baseline=zeros)"
FILES = {"grad_eclip": "grad_eclip", OWN: "attention_eclip-weights=attention", ZEROS: "integrated_gradients-baseline=zeros"}
QUICK = ["--count", "2", "--no-cascade"]


def once(*arguments):
    """As ``run``, outside of a test."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status, *_ = run(SimpleNamespace(readouterr=lambda: SimpleNamespace(out="", err="")), *arguments)
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(folder, standard output) of three methods over six images."""
    folder = tmp_path_factory.mktemp("asked")
    flags = [part for label in FILES for part in ("--method", label)]
    status, out, err = once("principles", "--count", "6", "--no-cascade", *flags, "--out", folder)
    assert (status, err) == (0, "")
    return folder, out


@pytest.fixture
def undrawn(monkeypatch):
    """No figure is made or rendered, which takes most of the time of a command; an empty file stands for it."""
    monkeypatch.setattr("zeroline.report.principles_figure.figure", lambda _: "a figure")
    monkeypatch.setattr("zeroline.report.figure.save", lambda _, path: path.write_bytes(b""))


@pytest.fixture(scope="module")
def chosen():
    return zoo.test_set("digits-clip")[:6]


def pairs(chosen):
    labels = torch.tensor([CAPTIONS.index(sample.caption) for sample in chosen])
    captions = zoo.preprocess("digits-clip", text=CAPTIONS, pad=True)
    return zl.LabelledSet(zoo.collate(chosen), labels, captions, torch.stack([sample.masks[0] for sample in chosen]))


def alike(found, truth):
    assert (found.method, found.target, found.source) == (truth.method, truth.target, truth.source)
    for name in ("score", "evidence", "hit", "chance"):
        assert torch.allclose(getattr(found, name), getattr(truth, name), rtol=1e-4, atol=1e-6, equal_nan=True)
    for name in ("answer", "label"):
        assert torch.equal(getattr(found, name), getattr(truth, name))
    assert list(found.implied) == list(truth.implied)
    assert [stage.name for stage in found.stages] == [stage.name for stage in truth.stages]


def test_each_method_is_measured_as_the_library_does(asked, chosen):
    folder, _ = asked
    model, data = zoo.load("digits-clip"), pairs(chosen)
    asks = {
        "grad_eclip": ("grad_eclip", {}),
        OWN: ("attention_eclip", {"weights": "attention"}),
        ZEROS: ("integrated_gradients", {"baseline": zl.baseline.zeros()}),
    }
    for label, (name, options) in asks.items():
        found = Principles.load(folder / f"{FILES[label]}.safetensors")
        alike(found, zl.check_principles(name, model, data, cascading=False, **options))
        assert found.accuracy == 1
        assert found.stages == ()
    assert Principles.load(folder / f"{FILES[ZEROS]}.safetensors").settings == {"baseline": "zeros"}
    assert Principles.load(folder / f"{FILES[OWN]}.safetensors").settings == {"weights": "attention"}


def test_files_are_a_figure_a_record_and_one_per_method(asked):
    folder, out = asked
    assert sorted(p.name for p in folder.iterdir()) == sorted(["figure.png", "record.json", *(f"{name}.safetensors" for name in FILES.values())])
    last = out.strip().splitlines()[-1]
    assert last.startswith("wrote ")
    assert all(str(p) in last for p in folder.iterdir())
    assert (folder / "figure.png").stat().st_size > 10_000
    record = json.loads((folder / "record.json").read_text())
    assert list(record) == list(FILES)
    for label, name in FILES.items():
        assert json.dumps(Principles.load(folder / f"{name}.safetensors").to_dict()) == json.dumps(record[label])


def tables(asked):
    """Of each method: the words below its name, and the rows of its record."""
    folder, out = asked
    parts = out[: out.index("wrote ")].split("\nmethod ")
    for label, name, part in zip(FILES, FILES.values(), parts, strict=True):
        yield label, part.removeprefix("method "), Principles.load(folder / f"{name}.safetensors").rows()


def test_the_table_of_each_method_says_its_record_and_ends_with_two_verdicts(asked):
    for label, shown, rows in tables(asked):
        assert shown.split() == [*label.split(), *(word for row in rows for word in " ".join(row).split())]
        assert [row[0] for row in rows[-2:]] == ["principle 1", "principle 2"]
        assert rows[-2][1].startswith("does not hold" if label == "grad_eclip" else "holds")


def test_in_a_pipe_every_row_is_a_line(asked):
    for _, shown, rows in tables(asked):
        assert len(shown.strip().splitlines()) == 1 + len(rows)


def test_json_is_one_document_with_the_files(capsys, tmp_path, undrawn):
    flags = ["--method", OWN, "--method", "rollout"]
    status, out, err = run(capsys, "principles", *QUICK, *flags, "--json", "--out", tmp_path)
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert sorted(shown["files"]) == sorted(map(str, tmp_path.iterdir()))
    assert json.dumps(shown["methods"]) == json.dumps(json.loads((tmp_path / "record.json").read_text()))
    assert list(shown["methods"]) == [OWN, "rollout"]
    assert shown["methods"]["rollout"]["principle_1"]["holds"] is True
    assert shown["methods"]["rollout"]["examples"] == 2


def test_json_is_json_also_where_every_answer_is_right(asked):
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    json.loads((asked[0] / "record.json").read_text(), parse_constant=refuse)


def test_without_methods_three_are_measured_and_the_cascade_is_on(capsys, tmp_path, undrawn, chosen):
    status, out, _ = run(capsys, "principles", "--count", "1", "--seed", "4", "--batch-size", "1", "--out", tmp_path)
    assert status == 0
    names = ["attention_eclip-weights=attention", "attention_relevance", "grad_eclip"]
    assert sorted(p.stem for p in tmp_path.glob("*.safetensors")) == names
    found = Principles.load(tmp_path / "grad_eclip.safetensors")
    truth = zl.check_principles("grad_eclip", zoo.load("digits-clip"), pairs(chosen[:1]), seed=4)
    alike(found, truth)
    assert len(found.stages) == 6
    for one, other in zip(found.stages, truth.stages):
        assert torch.allclose(one.score, other.score, atol=1e-5)
    assert "shuffled to stem" in out


def test_the_classifiers_own_set_is_there_too(capsys, tmp_path, undrawn, digits_vit):
    status, _, _ = run(capsys, "principles", "--model", "zoo:digits-vit", *QUICK, "--method", "rollout", "--out", tmp_path)
    assert status == 0
    first = zoo.test_set("digits-vit")[:2]
    data = zl.LabelledSet(zoo.collate(first), torch.tensor([s.labels[0] for s in first]), masks=torch.stack([s.masks[0] for s in first]))
    alike(Principles.load(tmp_path / "rollout.safetensors"), zl.check_principles("rollout", digits_vit, data, cascading=False))


# Sets of one's own, as CSV files beside their images.


@pytest.fixture
def folder(tmp_path, chosen):
    for number, sample in enumerate(chosen):
        sample.image.save(tmp_path / f"{number}.png")
        Image.fromarray(sample.masks[0].numpy()).save(tmp_path / f"mask{number}.png")
    return tmp_path


def written(folder, rows, columns=("image", "label", "mask")):
    with (folder / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder / "set.csv"


def measured(capsys, folder, file, *more, method="grad_eclip"):
    """The report of a command that succeeds."""
    status, _, err = run(capsys, "principles", file, "--no-cascade", "--method", method, *more, "--out", folder / "out")
    assert (status, err) == (0, "")
    return Principles.load(folder / "out" / f"{method}.safetensors")


@pytest.mark.parametrize("masked", [True, False])
def test_pairs_of_a_file_are_answered_among_its_own_labels(capsys, folder, undrawn, chosen, masked):
    labels = [sample.caption for sample in chosen[:3]] + ["digit"]  # one shorter than the others, and wrong
    rows = [[f"{i}.png", label, *([f"mask{i}.png"] if masked else [])] for i, label in enumerate(labels)]
    found = measured(capsys, folder, written(folder, rows, ("image", "label", "mask")[: 2 + masked]))
    texts = sorted(labels)
    assert found.label.tolist() == [texts.index(label) for label in labels]
    model = zoo.load("digits-clip")
    for i, label in enumerate(labels):  # one by one: nothing is padded
        one = zoo.preprocess("digits-clip", chosen[i].image, label)
        with torch.no_grad():
            cosines = [float(model(**zoo.preprocess("digits-clip", chosen[i].image, text)).logits_per_image) for text in texts]
        own = zl.grad_eclip(model, one)
        assert float(found.score[i]) == pytest.approx(float(own.output), abs=1e-5)
        assert int(found.answer[i]) == max(range(4), key=lambda k: cosines[k])
        assert float(found.evidence[i]) == pytest.approx(float(own.grid("pixel_values").sum()), rel=1e-3)
    if masked:
        data = pairs(chosen[:4])
        truth = zl.check_principles("grad_eclip", model, zl.LabelledSet(data.inputs, data.labels, data.captions, data.masks), cascading=False)
        assert torch.equal(found.hit[:3], truth.hit[:3])
        assert torch.equal(found.chance, truth.chance)
    else:
        assert bool(found.hit.isnan().all())


def test_images_of_a_file_are_classified_by_names_or_numbers(capsys, folder, undrawn, digits_vit, chosen):
    names = [digits_vit.config.id2label[sample.labels[0]] for sample in chosen]
    labels = [names[0], names[1].upper(), str(chosen[2].labels[0]), "nine"]
    rows = [[f"{i}.png", label, f"mask{i}.png"] for i, label in enumerate(labels)]
    found = measured(capsys, folder, written(folder, rows), "--model", "zoo:digits-vit")
    wanted = torch.tensor([sample.labels[0] for sample in chosen[:3]] + [9])
    data = zl.LabelledSet(
        {"pixel_values": zoo.collate(chosen[:4])["pixel_values"]}, wanted, masks=torch.stack([sample.masks[0] for sample in chosen[:4]])
    )
    alike(found, zl.check_principles("grad_eclip", digits_vit, data, cascading=False))
    assert found.target == "logit of the label"


def test_class_names_are_read_in_any_case(capsys, folder, undrawn):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    config.id2label = {0: "Cat", 1: "Dog"}
    ViTForImageClassification(config).save_pretrained(folder / "model")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "model")
    rows = [["0.png", "Dog"], ["1.png", "cat"], ["2.png", "DOG"]]
    found = measured(capsys, folder, written(folder, rows, ("image", "label")), "--model", folder / "model", method="rollout")
    assert found.label.tolist() == [1, 0, 1]


def test_count_takes_the_first_rows(capsys, folder, undrawn, chosen):
    rows = [[f"{i}.png", sample.caption] for i, sample in enumerate(chosen)]
    found = measured(capsys, folder, written(folder, rows, ("image", "label")), "--count", "2")
    assert len(found.label) == 2
    texts = sorted(sample.caption for sample in chosen[:2])
    assert found.label.tolist() == [texts.index(sample.caption) for sample in chosen[:2]]


def test_images_are_looked_for_beside_the_file_and_columns_may_come_in_any_order(capsys, folder, undrawn, chosen, monkeypatch):
    rows = [["whatever", chosen[0].caption, "0.png"]]
    file = written(folder, rows, ("note", "label", "image"))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert len(measured(capsys, folder, file).label) == 1


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ("", 2, "has no rows; the columns image and label are needed, mask is possible"),
        ("image,label\n", 2, "has no rows"),
        ("image,text\n0.png,a\n", 2, "has image, text; the columns image and label are needed"),
        ("label,mask\na,mask0.png\n", 2, "has label, mask; the columns image and label are needed"),
        ("image,label,mask\n0.png,a,mask0.png\n1.png,b,\n", 2, "1 of 2 rows have a mask; give one to every row, or to none"),
        ("image,label\nnone.png,a\n", 2, "no image file"),
        ("image,label,mask\n0.png,a,none.png\n", 2, "no image file"),
        ("image,label\n0.png,\n", 2, "the text is ''; give words"),
        ("image,label\nset.csv,a\n", 1, "as an image"),
        ("image,label\n0.png,\xe9\n".encode("latin-1"), 1, "as CSV"),
        (None, 2, "a labelled set is a CSV file with the columns image, label and mask"),
        pytest.param("image,label\n0.png,a\n1.png\n", 2, "row"),
        pytest.param("image,label\n0.png,a\n1.png,b\n,c\n", 2, "row"),
    ],
)
def test_files_that_are_no_labelled_set_are_one_clear_error(capsys, folder, content, status, message):
    file = folder / "set.csv"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(capsys, folder, [file, *QUICK[2:], "--method", "grad_eclip"], message, status)


def refused(capsys, folder, arguments, message, wanted=2):
    """One line, no files."""
    status, out, err = run(capsys, "principles", *arguments, "--out", folder / "new")
    assert (status, out) == (wanted, "")
    assert err.startswith("error: ")
    assert "unexpected" not in err
    assert err.count("\n") == 1
    assert message in err
    assert not (folder / "new").exists()


def test_a_file_that_a_spreadsheet_saved_is_read(capsys, folder, undrawn, chosen):
    file = folder / "set.csv"
    file.write_bytes(b"\xef\xbb\xbf" + f"image,label\n0.png,{chosen[0].caption}\n".encode())
    measured(capsys, folder, file)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("sevn", "no class 'sevn'; nearest: seven"),
        ("12", "class 12 asked; the model has 10: 0 to 9"),
        ("", "no class ''"),
        pytest.param("-1", "class -1"),
    ],
)
def test_labels_that_are_no_class_are_one_clear_error(capsys, folder, label, message):
    file = written(folder, [["0.png", label], ["1.png", "five"]], ("image", "label"))
    refused(capsys, folder, [file, "--no-cascade", "--model", "zoo:digits-vit", "--method", "rollout"], message)


def test_a_mask_of_another_size_is_refused(capsys, folder):
    Image.new("RGB", (32, 32), "white").save(folder / "small.png")
    file = written(folder, [["0.png", "five", "small.png"]])
    refused(capsys, folder, [file, "--model", "zoo:digits-vit"], "is 32 x 32; the image is 64 x 64")


# Methods as a command line spells them.


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("grad_eclip", "grad_eclip", {}),
        (" grad_eclip() ", "grad_eclip", {}),
        ("grad_eclip(layers=2)", "grad_eclip", {"layers": 2}),
        ("grad_eclip( layers = 2 , similarity=projected)", "grad_eclip", {"layers": 2, "similarity": "projected"}),
        ("grad_cam(pool=False, grid=(8, 8))", "grad_cam", {"pool": False, "grid": (8, 8)}),
        ("odam(smooth=1.5, site=vit.layers.2)", "odam", {"smooth": 1.5, "site": "vit.layers.2"}),
        ("integrated_gradients(path='midpoint', n_steps=4)", "integrated_gradients", {"path": "midpoint", "n_steps": 4}),
        ("attention_relevance(correction=none)", "attention_relevance", {"correction": "none"}),
        ("attention_relevance(guide=None)", "attention_relevance", {"guide": None}),
    ],
)
def test_a_method_is_read_with_its_options(text, name, options):
    assert read_method(text) == (name, options)


def test_baselines_are_read_by_their_names():
    name, options = read_method("integrated_gradients(baseline=blur(4), tolerance=0.1)")
    assert (name, options["tolerance"], options["baseline"].name) == ("integrated_gradients", 0.1, zl.baseline.blur(4).name)
    with pytest.raises(NotFoundError, match="nearest: black"):
        read_method("taylor(baseline=blak)")


@pytest.mark.parametrize(
    "text", ["grad_eclip(layers=2", "grad_eclip(layers=2) and more", "grad_eclip(layers)", "grad_eclip(=2)", "grad_eclip(2 layers=2)"]
)
def test_what_cannot_be_read_says_how_to_write_it(text):
    with pytest.raises(UsageError, match=r"cannot read .* write .*option=value"):
        read_method(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "grad_eclipp"], "no method 'grad_eclipp'; nearest: grad_eclip"),
        (["--method", ""], "no method ''"),
        (["--method", "grad_eclip(layers=2"], "write NAME or NAME(option=value, option=value)"),
        (["--method", "grad_eclip", "--method", "rollout(calls)"], "cannot read 'calls'"),
        (["--method", "attention_transfer"], "attention_transfer gives no map of the sources"),
        (["--method", "grad_eclip(layers=9)"], "layers=9 was asked"),
        (["--method", "grad_eclip(layers=two)"], "layers='two' was asked"),
        (["--method", "attention_eclip(weights=tight)"], "no weights 'tight'"),
        (["--method", "taylor(baseline=blak)"], "no baseline 'blak'; nearest: black"),
        (["--method", "rollout", "--method", "grad_eclip(layers=9)"], "layers=9 was asked"),  # the second fails: nothing of the first
        (["--count", "0"], "--count 0 was asked; 1 or more"),
        (["--count", "-3"], "--count -3 was asked"),
        (["--batch-size", "0"], "batch_size=0 was asked"),
        (["--model", "zoo:digits-clap"], "nearest: digits-clip"),
        (["nothing.csv"], "no file 'nothing.csv'"),
        *(
            pytest.param(["--method", f"grad_eclip({option})"], option.split("=")[0])
            for option in ("layerss=2", "model=2", "batch_size=2", "source=pixels")
        ),
    ],
)
def test_bad_input_is_one_line_with_status_2_and_leaves_no_files(capsys, tmp_path, arguments, message):
    given = [*arguments, *(QUICK if "--count" not in arguments else QUICK[2:])]
    refused(capsys, tmp_path, given, message)


def test_a_model_without_a_set_asks_for_one(capsys, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    refused(capsys, tmp_path, ["--model", tmp_path / "model"], "give a CSV file with the columns image, label")


@pytest.mark.parametrize("breaks", ["zeroline.report.figure.save", "zeroline.report.principles_figure.figure"])
def test_a_figure_that_fails_leaves_what_was_there_before(capsys, tmp_path, monkeypatch, breaks):
    def fail(*_):
        raise OSError("disk full")

    (tmp_path / "record.json").write_text("from before")
    monkeypatch.setattr(breaks, fail)
    status, out, err = run(capsys, "principles", *QUICK, "--method", "rollout", "--out", tmp_path)
    assert (status, out) == (1, "")
    assert "disk full" in err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("record.json", "from before")]


def test_results_that_cannot_be_written_are_told_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("zeroline.cli.principles.check_principles", None)
    (tmp_path / "taken").write_text("a file")
    status, out, err = run(capsys, "principles", *QUICK, "--method", "rollout", "--out", tmp_path / "taken")
    assert (status, out) == (2, "")
    assert "cannot write results to" in err
