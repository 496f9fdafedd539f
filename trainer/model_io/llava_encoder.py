"""A vision tower as in transformers' LLaVA: a CLIPVisionModel or SiglipVisionModel at its native image size.

The rule: an open_clip tower is converted only if its parameters and those of the new tower correspond one to one, and
every converted tower is compared with the original on one image before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainer.compat.transformers import bare
from trainer.model.encoders.registry import Encoder
from trainer.model_io.converted_encoder import check_same, filled, hf_encoder, num_layers
from trainer.model_io.llava_folder import STANDARD

_EXPECTED = "LLaVA's is CLIP or SigLIP (encoder.kind: hf or open_clip)"

_POSITIONS = "embeddings.position_embedding.weight"
_NAMES = (  # those of open_clip, then those of timm's ViTs, which open_clip uses for SigLIP
    (r"class_embedding", "embeddings.class_embedding"),
    (r"positional_embedding", _POSITIONS),
    (r"conv1\.weight", "embeddings.patch_embedding.weight"),
    (r"ln_pre\.(weight|bias)", r"pre_layrnorm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", r"encoder.layers.\1.self_attn.{}_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(weight|bias)", r"encoder.layers.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(weight|bias)", r"encoder.layers.\1.mlp.fc2.\2"),
    (r"trunk\.pos_embed", _POSITIONS),
    (r"trunk\.patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embedding.\1"),
    (r"trunk\.blocks\.(\d+)\.norm([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"trunk\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"encoder.layers.\1.self_attn.{}_proj.\2"),
    (r"trunk\.blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"trunk\.blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)", r"encoder.layers.\1.mlp.fc\2.\3"),
)
_IN_A_LAYER, _IN_CLIP, _IN_SIGLIP = 12, 5, 3
"""Numbers of parameters: of a layer, and of either model outside its layers"""
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}


def tower_refusals(encoder: Encoder) -> list[str]:
    """Why this is not a tower of LLaVA, a clause each; empty if it is."""
    kind = encoder.portable.kind
    if kind == "open_clip":
        return _open_clip_refusals(encoder)
    model_type = encoder.tower.model.config.model_type if kind == "hf" else kind
    return [] if model_type in STANDARD else [f"its encoder is {model_type}, {_EXPECTED}"]


def standard_encoder(old: Encoder) -> Encoder:
    """The encoder as such a tower; the same object if it is one. Raises TrainError if the outputs differ."""
    if old.portable.kind == "open_clip":
        new = _from_open_clip(old)
    elif old.tower.options:
        new = _at_size(old)
    else:
        return old
    check_same(old, new)
    return new


def _open_clip_refusals(encoder: Encoder) -> list[str]:
    visual, config = encoder.tower.visual, encoder.portable.config["vision_cfg"]
    timm = config.get("timm_model_name")
    kind = f"open_clip encoder, timm's {timm}," if timm else "open_clip encoder"
    names = list(visual.state_dict())
    unknown = [name for name in names if _standard_name(name) is None]
    if unknown or len(names) != (_IN_SIGLIP if timm else _IN_CLIP) + _IN_A_LAYER * num_layers(encoder):
        why = f"has {unknown[0]}" if unknown else "has fewer parameters"
    elif config.get("act_kwargs"):
        why = "has act_kwargs"
    elif timm and _activation(visual.trunk.blocks[0].mlp.act) is None:
        why = f"has {type(visual.trunk.blocks[0].mlp.act).__name__}"
    else:
        return []
    return [f"its {kind} {why}, {_EXPECTED}"]


def _from_open_clip(old: Encoder) -> Encoder:
    visual, portable = old.tower.visual, old.portable
    weights = {}
    for name, tensor in visual.state_dict().items():
        new_name = _standard_name(name)
        assert new_name is not None, name
        if "{}" in new_name:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                weights[new_name.format(letter)] = third
        else:
            weights[new_name] = tensor.flatten(0, -2) if new_name == _POSITIONS else tensor
    hf_config = _siglip_config(visual.trunk) if hasattr(visual, "trunk") else _clip_config(visual, portable.config)
    shared = {"hidden_size": old.width, "num_hidden_layers": num_layers(old) + 1, "image_size": old.image_size}
    return filled(hf_encoder(old, {**hf_config, **shared}), weights)


def _clip_config(visual: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    block = visual.transformer.resblocks[0]
    return {
        "model_type": "clip_vision_model",
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_attention_heads": block.attn.num_heads,
        "patch_size": visual.conv1.kernel_size[0],
        "hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "layer_norm_eps": visual.ln_pre.eps,
        "projection_dim": config["embed_dim"],
    }


def _siglip_config(trunk: Any) -> dict[str, Any]:
    block = trunk.blocks[0]
    return {
        "model_type": "siglip_vision_model",
        "intermediate_size": block.mlp.fc1.out_features,
        "num_attention_heads": block.attn.num_heads,
        "patch_size": trunk.patch_embed.proj.kernel_size[0],
        "hidden_act": _activation(block.mlp.act),
        "layer_norm_eps": block.norm1.eps,
    }


def _activation(module: nn.Module) -> str | None:
    """The activation's name in transformers; None for one that neither CLIP nor SigLIP has."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    return _ACTIVATIONS.get(type(module).__name__)


def _at_size(old: Encoder) -> Encoder:
    """A tower with the position embeddings that the old one interpolates in every forward."""
    model, portable = old.tower.model, old.portable
    embeddings = model.get_submodule(_embeddings(model))
    weights = {bare(name): tensor for name, tensor in model.state_dict().items()}
    patch = portable.config["patch_size"]
    extra = len(embeddings.position_embedding.weight) - (portable.config["image_size"] // patch) ** 2
    tokens = torch.zeros(1, (old.image_size // patch) ** 2 + extra, old.width)
    table = embeddings.interpolate_pos_encoding(tokens, old.image_size, old.image_size)[0]
    weights["embeddings.position_embedding.weight"] = table.detach()
    hf_config = {**portable.config, "image_size": old.image_size}
    return filled(hf_encoder(old, hf_config), weights)


def _standard_name(name: str) -> str | None:
    """The name in transformers of an open_clip parameter; `{}` stands for q, k and v. None if it has none."""
    for pattern, new_name in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(new_name)
    return None


def _embeddings(model: nn.Module) -> str:
    name: str = next(name for name, _ in model.named_modules() if name in ("embeddings", "vision_model.embeddings"))
    return name
