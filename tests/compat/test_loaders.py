"""open_clip and timm by name: the real packages build, load and prepare; the command line and ``zl.load`` give what they give."""

import builtins
import json
import re

import pytest
import torch

import zeroline as zl
from zeroline import zoo
from zeroline.cli import main
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.spelling.models import load_model

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": [32, 48], "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def picture():
    return zoo.samples("digits-vit")[12].image


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A CLIP of open_clip with random weights: its architecture registered, its checkpoint in a file, the model that was saved."""
    open_clip = pytest.importorskip("open_clip", reason="installed by make test")
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "zeroline-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "zeroline-tiny.json")
    torch.manual_seed(0)
    model = open_clip.create_model("zeroline-tiny").eval()
    torch.save(model.state_dict(), folder / "tiny.pt")
    return f"open_clip:zeroline-tiny/{folder / 'tiny.pt'}", model


def test_open_clip_is_loaded_from_a_checkpoint_with_its_own_preprocessing(tiny, picture):
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name, saved = tiny
    found = zl.load(name)
    inputs = found.prepare(picture, "a yellow nine")
    see = image_transform_v2(PreprocessCfg(**saved.visual.preprocess_cfg), is_train=False)
    image, text = see(picture.convert("RGB"))[None], open_clip.get_tokenizer("zeroline-tiny")(["a yellow nine"])
    assert torch.equal(inputs["image"], image)
    assert inputs["image"].shape == (1, 3, 32, 48)
    assert torch.equal(inputs["text"], text)
    assert found.words(text[0].tolist()) == ["<start_of_text>", "a</w>", "yellow</w>", "nine</w>", "<end_of_text>", *[""] * 11]
    with torch.no_grad():
        mine, theirs = found.model(**inputs), saved(image, text)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs))
    assert not found.model.training


def test_open_clip_is_explained_as_a_dual_encoder_from_black(tiny, picture):
    name, model = tiny
    found = zl.explain(name, picture, text="a yellow nine", tolerance=0.002)
    with torch.no_grad():
        image, text, _ = model(**zl.load(name).prepare(picture, "a yellow nine"))
    assert float(found.output) == pytest.approx(float((image * text).sum()), abs=1e-5)
    assert float(found.relative_error) < 0.002
    mean, std = (torch.tensor(model.visual.preprocess_cfg[which]).view(-1, 1, 1) for which in ("mean", "std"))
    with torch.no_grad():
        black, text, _ = model((0 - mean / std).expand(1, 3, 32, 48), zl.load(name).prepare(None, "a yellow nine")["text"])
    assert float(found.baseline_output) == pytest.approx(float((black * text).sum()), abs=1e-5)
    apart = zl.explain(name, picture, text=["a yellow nine", "a dog"], target="logit", path="midpoint", n_steps=1)
    one, two = (zl.explain(name, picture, text=text, target="logit", path="midpoint", n_steps=1) for text in ("a yellow nine", "a dog"))
    assert float(apart.output) == pytest.approx(float(one.output - two.output), abs=1e-4)


def test_the_command_line_explains_open_clip_with_texts(tiny, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture.save("pair.png")
    command = ["explain", "pair.png", "--text", "a yellow nine", "--text", "a dog", "--model", tiny[0], "--path", "midpoint", "--n-steps", "2"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    assert (tmp_path / "out/figure.png").exists()
    record = json.loads((tmp_path / "out/record.json").read_text())["a yellow nine"]
    found = zl.explain(tiny[0], picture, text="a yellow nine", path="midpoint", n_steps=2)
    assert record["output"] == pytest.approx(found.output.tolist())
    assert record["total"] == pytest.approx(found.total.tolist())
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["explain", "pair.png", "--model", tiny[0]])
    assert ended.value.code == 2
    assert "--text" in capsys.readouterr().err


def test_open_clip_runs_no_code_from_a_checkpoint(tiny, tmp_path):
    class Runs:
        def __reduce__(self):
            return open, (str(tmp_path / "was-run"), "w")

    torch.save({"state_dict": Runs()}, tmp_path / "bad.pt")
    with pytest.raises(LoadError, match="cannot load 'zeroline-tiny/"):
        zl.load(f"open_clip:zeroline-tiny/{tmp_path / 'bad.pt'}")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("open_clip:ViT-B-33/openai", NotFoundError, "nearest: .*ViT-B-32"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79", NotFoundError, "nearest: laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32", NotFoundError, "open_clip:ViT-B-32/TAG or open_clip:ViT-B-32/CHECKPOINT-FILE"),
    ],
)
def test_open_clip_names_that_are_none_are_said_with_those_that_are(tiny, name, error, says):
    with pytest.raises(error, match=says):
        zl.load(name)


def test_open_clip_is_no_classifier(tiny):
    with pytest.raises(UsageError, match="--text"):
        load_model(tiny[0])


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("open_clip:ViT-B-32/openai", "open_clip", "open_clip"), ("timm:vit_tiny_patch16_224", "timm", "timm")]
)
def test_a_package_that_is_missing_is_said_with_the_extra_that_brings_it(scheme, package, extra, monkeypatch):
    real = builtins.__import__

    def without(name, *more):
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LoadError, match=re.escape(f"pip install 'zeroline[{extra}]'")):
        zl.load(scheme)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_timm_models_come_with_their_own_preprocessing_and_normalisation(name, picture, monkeypatch):
    timm = pytest.importorskip("timm", reason="installed by make test")
    from timm.data import create_transform, resolve_model_data_config

    create, made = timm.create_model, []

    def random(asked, pretrained):
        assert pretrained
        torch.manual_seed(0)
        made.append(create(asked, pretrained=False, num_classes=5))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", random)
    found = zl.explain(f"timm:{name}", picture, target=3, method="gradient_x_input")
    config = resolve_model_data_config(made[0])
    x = create_transform(**config, is_training=False)(picture.convert("RGB"))[None]
    mean, std = (torch.tensor(config[which]).view(-1, 1, 1) for which in ("mean", "std"))
    black = (0 - mean / std).expand_as(x)
    with torch.no_grad():
        assert float(found.output) == pytest.approx(float(made[0].eval()(x)[0, 3]), abs=1e-5)
        assert float(found.baseline_output) == pytest.approx(float(made[0](black)[0, 3]), abs=1e-5)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(made[0](x)[0, 3], x)
    assert torch.allclose(found.values, (x - black).detach() * gradient, atol=1e-6)
