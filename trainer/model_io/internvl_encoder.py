"""A vision tower as in transformers' InternVL: an InternVLVisionModel (InternViT) at its native image size.

DINOv2 is the same computation under other names: a class token, learned positions, layers with a norm before attention
and before the MLP, and a scale after each (https://arxiv.org/abs/2304.07193, https://arxiv.org/abs/2312.14238).

The rule: a tower is converted only if its parameters and those of the new tower correspond one to one, and every
converted tower is compared with the original on one image before it is used.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from trainer.model.encoders.base import one_side
from trainer.model.encoders.registry import Encoder
from trainer.model_io.converted_encoder import check_same, filled, hf_encoder

MODEL_TYPE = "internvl_vision"

_EXPECTED = "InternVL's is InternViT or DINOv2 (internvl_vision or dinov2 of transformers)"

_NAMES = (  # of DINOv2, in the releases of transformers that have other names for attention
    (r"embeddings\.(cls_token|position_embeddings|patch_embeddings\.projection\.(?:weight|bias))", r"embeddings.\1"),
    (r"encoder\.layer\.(\d+)\.norm1\.(weight|bias)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"encoder\.layer\.(\d+)\.norm2\.(weight|bias)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.([qkv]_proj)\.(weight|bias)", r"encoder.layer.\1.attention.\2.\3"),
    (
        r"encoder\.layer\.(\d+)\.attention\.attention\.(?P<letter>[qkv])[a-z]+\.(weight|bias)",  # query, key, value
        r"encoder.layer.\1.attention.\g<letter>_proj.\3",
    ),
    (
        r"encoder\.layer\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(weight|bias)",
        r"encoder.layer.\1.attention.projection_layer.\2",
    ),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"encoder.layer.\1.lambda_\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.fc([12])\.(weight|bias)", r"encoder.layer.\1.mlp.fc\2.\3"),
)
_POSITIONS = "embeddings.position_embeddings"


def internvl_tower_refusals(encoder: Encoder) -> list[str]:
    """Why this is not a tower of InternVL, a clause each; empty if it is."""
    kind = encoder.portable.kind
    if kind != "hf":
        return [f"its encoder is {kind}, {_EXPECTED}"]
    model = encoder.tower.model
    model_type = model.config.model_type
    if model_type == MODEL_TYPE:
        return []
    if model_type != "dinov2":
        return [f"its encoder is {model_type}, {_EXPECTED}"]
    unknown = [name for name in model.state_dict() if _standard_name(name) is None]
    return [f"its encoder dinov2 has {unknown[0]}, which InternVL's tower has not"] if unknown else []


def internvl_encoder(old: Encoder) -> Encoder:
    """The encoder as such a tower; the same object if it is one. Raises TrainError if the outputs differ."""
    model = old.tower.model
    has_size = one_side(model.config.image_size) == old.image_size
    if model.config.model_type == MODEL_TYPE:
        if has_size:
            return old
        weights = dict(model.state_dict())
        hf_config = dict(old.portable.config)
    else:
        weights = {str(_standard_name(name)): tensor for name, tensor in model.state_dict().items()}
        hf_config = _from_dinov2(model.config)
    if not has_size and _POSITIONS in weights:
        weights[_POSITIONS] = _positions(model, old).detach()
    new = filled(hf_encoder(old, {**hf_config, "image_size": old.image_size}), weights)
    check_same(old, new)
    return new


def _from_dinov2(config: Any) -> dict[str, Any]:
    return {
        "model_type": MODEL_TYPE,
        "hidden_size": config.hidden_size,
        "intermediate_size": int(config.hidden_size * config.mlp_ratio),
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "attention_bias": config.qkv_bias,
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "patch_size": config.patch_size,
    }


def _positions(model: Any, old: Encoder) -> torch.Tensor:
    """The position embeddings [1, P + 1, W] that the old tower interpolates in every forward."""
    patch = one_side(model.config.patch_size)
    tokens = torch.zeros(1, (old.image_size // patch) ** 2 + 1, old.width)
    table: torch.Tensor = model.embeddings.interpolate_pos_encoding(tokens, old.image_size, old.image_size)
    return table


def _standard_name(name: str) -> str | None:
    """The name in InternVL's tower of a DINOv2 parameter; None if it has none."""
    for pattern, new_name in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(new_name)
    return None
