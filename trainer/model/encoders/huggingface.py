"""Vision towers of transformers: CLIP, SigLIP, DINOv2 and InternViT, from a folder or the hub.

A tower is built with only the layers that are read and without its final norm. So its last_hidden_state is
hidden_states[layer] of the full model.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dst.errors import ConfigError
from trainer.compat.transformers import checkpoint_activations, image_processor_settings, load_pretrained, new_model
from trainer.config.model import EncoderConfig
from trainer.model.encoders.base import CLIP_MEAN, CLIP_STD, Tower, layers_read, one_side, require_cls

_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Facts of an architecture. norm: its final norm. interpolates: it always interpolates position embeddings."""

    norm: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_cls: bool = True
    interpolates: bool = False


_WHOLE_MODELS = ("clip", "siglip", "internvl")
"""Models whose vision tower is loaded from their own folder"""
_TOWER_NAMES = {"internvl_vision": {r"^(model\.)?vision_tower\.": ""}}
"""model_type -> how its weights are named in the folder of the whole model -> in the tower"""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES = {
    "clip_vision_model": Family(norm="post_layernorm", mean=CLIP_MEAN, std=CLIP_STD),
    "siglip_vision_model": Family(norm="post_layernorm", mean=_HALF, std=_HALF, has_cls=False),
    "dinov2": Family(norm="layernorm", mean=_IMAGENET_MEAN, std=_IMAGENET_STD, interpolates=True),
    "dinov2_with_registers": Family(norm="layernorm", mean=_IMAGENET_MEAN, std=_IMAGENET_STD, interpolates=True),
    "internvl_vision": Family(norm="layernorm", mean=_IMAGENET_MEAN, std=_IMAGENET_STD, interpolates=True),
}


def hugging_face_tower(config: EncoderConfig, weights: bool) -> Tower:
    """A tower of one of FAMILIES. Raises ConfigError for others, and OSError and ValueError of transformers."""
    from transformers import AutoModel

    hf_config = _hf_config(config)
    family = FAMILIES.get(hf_config.model_type)
    if family is None:
        raise ConfigError(
            [f"model.encoder: {hf_config.model_type} is not a known encoder; expected one of {', '.join(FAMILIES)}"]
        )
    require_cls(config, family.has_cls)
    full_config = hf_config.to_dict()
    hf_config.num_hidden_layers = layers_read(config, hf_config.num_hidden_layers)
    hf_config.vision_use_head = False  # SigLIP's pooling head; other families ignore it
    hf_config._attn_implementation = "sdpa"
    if weights and config.name is not None:
        model = load_pretrained(
            AutoModel,
            config.name,
            unread=(family.norm, "head", "mask_token"),
            config=hf_config,
            dtype=torch.float32,
            key_mapping=_TOWER_NAMES.get(hf_config.model_type),
        )
    else:
        model = new_model(AutoModel, hf_config)
    native = one_side(hf_config.image_size)
    image_size = config.image_size or native
    patch = one_side(hf_config.patch_size)
    if image_size != native and image_size % patch:  # native sizes are exempt: SigLIP's 384 is not a multiple of 14
        raise ConfigError(
            [f"model.encoder.image_size: got {image_size}; expected a multiple of the patch size {patch}"]
        )
    _cut(model, family)
    num_patches = (image_size // patch) ** 2
    mean, std = (config.mean, config.std) if config.mean and config.std else _normalisation(config, family)
    return Tower(
        module=HuggingFaceTower(
            model, num_patches, cls=config.class_token, interpolate=image_size != native and not family.interpolates
        ),
        image_size=image_size,
        width=int(hf_config.hidden_size),
        num_tokens=num_patches + config.class_token,
        mean=mean,
        std=std,
        portable=dataclasses.replace(
            config, name=None, config=full_config, layer=hf_config.num_hidden_layers, mean=mean, std=std
        ),
    )


class HuggingFaceTower(nn.Module):
    """The last layer's output for the patches, with or without the class token, without other extra tokens."""

    def __init__(self, model: Any, num_patches: int, *, cls: bool, interpolate: bool) -> None:
        super().__init__()
        self.model = model
        self.num_patches = num_patches
        self.cls = cls
        self.options = {"interpolate_pos_encoding": True} if interpolate else {}

    def checkpoint_activations(self) -> None:
        checkpoint_activations(self.model)

    def forward(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        tokens = self.model(pixel_values=pixels_N3SS, **self.options).last_hidden_state
        patches = tokens[:, -self.num_patches :]
        return torch.cat([tokens[:, :1], patches], dim=1) if self.cls else patches


def _hf_config(config: EncoderConfig) -> Any:
    """The configuration of the vision model; of a larger model, that of its vision part."""
    from transformers import AutoConfig

    if config.name is not None:
        hf_config = AutoConfig.from_pretrained(config.name, trust_remote_code=False)
    else:
        settings = dict(config.config)
        if "model_type" not in settings:
            raise ConfigError(["model.encoder.config.model_type: missing; expected one of " + ", ".join(FAMILIES)])
        hf_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    vision = getattr(hf_config, "vision_config", hf_config)
    if vision is not hf_config and hf_config.model_type not in _WHOLE_MODELS:
        start = f"set model.init_from: {config.name} to train it, or " if hf_config.model_type == "llava" else ""
        raise ConfigError(
            [
                f"model.encoder: {config.name or 'config'} is a whole {hf_config.model_type}, of which this is a part; "
                f"expected a vision tower alone, CLIP, SigLIP or InternVL; {start}name the folder of its vision tower"
            ]
        )
    return vision


def _cut(model: Any, family: Family) -> None:
    """Remove the final norm, and DINOv2's embedding for masked patches."""
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last == family.norm and "layer" not in parent:
            setattr(model.get_submodule(parent), last, nn.Identity())
        if getattr(module, "mask_token", None) is not None:
            module.mask_token = None


def _normalisation(config: EncoderConfig, family: Family) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std: from the model's preprocessor_config.json, else those that its family was trained with."""
    if config.name is None:
        return family.mean, family.std
    settings = image_processor_settings(config.name)
    return tuple(settings.get("image_mean") or family.mean), tuple(settings.get("image_std") or family.std)
