"""SECURITY.md says what is never called; here the source is read for it."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src/zeroline"
MODULES = sorted(SRC.rglob("*.py"))

# modules whose business is to make objects, or run code, out of bytes
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
# names that run text as code, or start programs, wherever they come from
RUNNERS = {"eval", "exec", "compile", "__import__"}
PROGRAMS = {"os.system", "os.popen", "subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "subprocess.check_call"}


def dotted(node):
    """``a.b.c`` of an expression, or ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def real_names(tree):
    """What each imported name stands for: {"load": "torch.load"} after ``from torch import load``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.asname: one.name for one in node.names if one.asname}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return found


def only_errors(node):
    """``from pickle import UnpicklingError``: to catch what a refused file raises."""
    return all(one.name.endswith("Error") for one in node.names)


def given(call, name):
    """The constant passed by keyword, ``...`` for an expression, None where it is not passed."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
    return None


def offences(source):
    """One (line, what) per thing that SECURITY.md says zeroline does not do."""
    tree = ast.parse(source)
    names = real_names(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""] * (not only_errors(node))
            found += [(node.lineno, f"imports {m}") for m in modules if m.partition(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [(node.lineno, "sets Pillow's limit") for t in targets if dotted(t).endswith("MAX_IMAGE_PIXELS")]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += [(node.lineno, f"{node.name} trusts remote code by default") for d in defaults(node) if d]
        if isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in of_call(node, names)]
        if isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            found.append((node.lineno, "names all interfaces"))
    return found


def defaults(function):
    """Is a default of ``trust_remote_code`` anything but False? One per such argument."""
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    pairs = [
        *zip(positional[len(positional) - len(spec.defaults) :], spec.defaults, strict=True),
        *zip(spec.kwonlyargs, spec.kw_defaults, strict=True),
    ]
    return [not (isinstance(d, ast.Constant) and d.value is False) for a, d in pairs if a.arg == "trust_remote_code" and d is not None]


def of_call(call, names):
    name = dotted(call.func)
    first, _, rest = name.partition(".")
    name = names.get(first, first) + (f".{rest}" if rest else "")
    if name in RUNNERS or name in PROGRAMS or name.startswith(("torch.hub.", "torch.jit.load", "torch.package.")):
        yield f"calls {name}"
    if name == "torch.load" and given(call, "weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name in ("numpy.load", "np.load") and given(call, "allow_pickle") not in (None, False):
        yield "numpy.load with pickles"
    if name.startswith("yaml.") and not name.startswith("yaml.safe_"):
        yield f"calls {name}"
    if name.endswith(".from_pretrained") and given(call, "weights_only") not in (None, True):
        yield "from_pretrained with weights_only off"
    if given(call, "trust_remote_code") is True:
        yield "trusts remote code"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "from pickle import UnpicklingError, loads",
        "import torch; torch.load('a')",
        "import torch as t; t.load('a', weights_only=False)",
        "from torch import load; load('a')",
        "import torch; torch.hub.load('a', 'b')",
        "import numpy as np; np.load('a', allow_pickle=True)",
        "import yaml; yaml.load('a')",
        "from yaml import load; load('a')",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "import os; os.system('ls')",
        "import subprocess as s; s.run(['ls'])",
        "from PIL import Image; Image.MAX_IMAGE_PIXELS = None",
        "AutoModel.from_pretrained('a', trust_remote_code=True)",
        "AutoModel.from_pretrained('a', weights_only=False)",
        "def load(name, *, trust_remote_code=True): ...",
        "def load(name, trust_remote_code=YES): ...",
        "serve('0.0.0.0', 80)",
    ],
)
def test_each_offence_is_seen(line):
    assert len(offences(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load('a', weights_only=True)",
        "model.eval()",
        "import re; re.compile('a')",
        "import yaml; yaml.safe_load('a')",
        "AutoModel.from_pretrained('a', trust_remote_code=flag, weights_only=True)",
        "def load(name, *, trust_remote_code=False): ...",
        "def load(name, *, trust_remote_code): ...",
        "from pickle import UnpicklingError",
        "import ast; ast.literal_eval('1')",
    ],
)
def test_what_is_allowed_is_no_offence(line):
    assert offences(line) == []


def test_the_source_does_nothing_that_security_md_excludes():
    assert len(MODULES) > 100
    found = [f"{path.relative_to(SRC)}:{line} {what}" for path in MODULES for line, what in offences(path.read_text())]
    assert found == []


# what these classes read is JSON and text
WITHOUT_WEIGHTS = {"transformers.AutoConfig", "AutoConfig", "AutoImageProcessor", "maker"}


def test_every_model_from_elsewhere_is_asked_for_weights_only():
    calls = [n for path in MODULES for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    loads = [
        n for n in calls if isinstance(n.func, ast.Attribute) and n.func.attr == "from_pretrained" and dotted(n.func.value) not in WITHOUT_WEIGHTS
    ]
    assert len(loads) == 2
    assert all(given(call, "weights_only") is True for call in loads)


@pytest.mark.parametrize("loader", ["from_hub", "any_from_hub"])
def test_a_pickled_weight_file_that_would_run_code_is_refused(loader, tmp_path):
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from zeroline.errors import LoadError
    from zeroline.model import loading

    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    config = ViTConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8)
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    weights = tmp_path / "model/pytorch_model.bin"
    torch.save(Harmful(), weights)
    with pytest.raises(LoadError, match="could run code; use a model saved as safetensors"):
        getattr(loading, loader)(str(tmp_path / "model"))
    assert not (tmp_path / "ran").exists()
    torch.load(weights, weights_only=False)
    assert (tmp_path / "ran").exists(), "the file is harmless, so nothing was tested"
