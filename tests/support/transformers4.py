"""Decoders and towers whose exports transformers 4 must read too, with rotary settings that are not its defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.support.exports import CLIP, DINOV2, INTERNVIT, OPEN_CLIP, SIGLIP
from tests.support.paths import ROOT

VERSION = "4.57.6"
"""The last release of transformers 4"""

VENV = Path(os.environ.get("DSVL_TRANSFORMERS4_VENV", ROOT / ".venv-transformers4"))
"""Made by tools/check_transformers4.py"""

GOLDEN = ROOT / "tests/golden/transformers4.json"
"""What exports have that transformers 4 was seen to read with equal logits; written by tools/check_transformers4.py"""

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_SHUFFLE = {"kind": "pixel_shuffle"}
_PLAIN = {"rope_type": "default", "rope_theta": 700.0}
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 8.0, "rope_theta": 500.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 700.0}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 700.0,
    "short_factor": [1.0 + step / 10 for step in range(8)],
    "long_factor": [2.0 + step / 10 for step in range(8)],
}
_SHORT = {"original_max_position_embeddings": 64}

DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": _PLAIN},
    "llama, scaled": {"model_type": "llama", "rope_parameters": {**_LLAMA3, **_SHORT}},
    "qwen2": {"model_type": "qwen2", "rope_parameters": _PLAIN, "tie_word_embeddings": True},
    "qwen2, scaled": {"model_type": "qwen2", "rope_parameters": {**_YARN, **_SHORT}},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "rope_parameters": _PLAIN, "tie_word_embeddings": True},
    "qwen3, scaled": {
        "model_type": "qwen3",
        "head_dim": 16,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": None, "rope_parameters": _PLAIN},
    "phi3": {"model_type": "phi3", "rope_parameters": _PLAIN},
    "phi3, scaled": {"model_type": "phi3", **_SHORT, "rope_parameters": {**_LONG, **_SHORT}},
    "phi3, in part": {"model_type": "phi3", "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.5}},
    "smollm3": {"model_type": "smollm3", "rope_parameters": _PLAIN},
    "olmo2": {"model_type": "olmo2", "rope_parameters": _PLAIN},
    "gemma3_text": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 900.0},
        },
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.5},
        "tie_word_embeddings": False,
    },
    "starcoder2": {"model_type": "starcoder2", "rope_parameters": _PLAIN},
    "cohere": {"model_type": "cohere", "rope_parameters": _PLAIN, "logit_scale": 1.0},
}
ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CLIP": ({"encoder": {"kind": "hf", "config": CLIP}}, {}),
    "CLIP, padded images": ({"encoder": {"kind": "hf", "config": CLIP}}, {"fit": "pad"}),
    "SigLIP": ({"encoder": {"kind": "hf", "config": SIGLIP}}, {"fit": "squash"}),
    "open_clip": ({"encoder": {"kind": "open_clip", "config": OPEN_CLIP}}, {}),
    "InternViT": ({"encoder": {"kind": "hf", "config": INTERNVIT}, "projector": _SHUFFLE}, {"fit": "squash"}),
    "DINOv2": ({"encoder": {"kind": "hf", "config": DINOV2}, "projector": _SHUFFLE}, {}),
}
"""Name -> encoder and projector, and the build's image settings"""

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        name: ({**ENCODERS["CLIP"][0], "decoder": {"config": {**_SIZES, **sizes}}}, {})
        for name, sizes in DECODERS.items()
    },
    **{
        name: ({**model, "decoder": {"config": {**_SIZES, **DECODERS["llama"]}}}, image)
        for name, (model, image) in ENCODERS.items()
    },
}
"""Name -> settings of the model, image settings of the build"""
