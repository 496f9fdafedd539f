"""Vision towers of open_clip: its own ViTs and timm's, SigLIP among them.

Mean and std are those that the weights were trained with. For a SigLIP model whose weights are read from a file,
open_clip reports those of CLIP, so they are taken from the model's published weights instead.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dst.common.suggest import nearest
from dst.errors import ConfigError
from trainer.compat.open_clip import description, quiet
from trainer.config.model import EncoderConfig
from trainer.model.encoders.base import CLIP_MEAN, CLIP_STD, Tower, layers_read, one_side, require_cls

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

# Only the visual half of a config is built, but open_clip requires a text half.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


def open_clip_tower(config: EncoderConfig, weights: bool) -> Tower:
    """A ViT of open_clip. Raises ConfigError for unknown names and tags, and for other towers."""
    architecture, published = _architecture(config), _published(config)
    if weights and config.name is not None and (config.weights is not None or ":" in config.name):
        visual = _pretrained(config)
    else:
        visual = _random(architecture)
    mean, std = (config.mean, config.std) if config.mean and config.std else published
    module, num_layers, has_cls = _cut(visual, config)
    require_cls(config, has_cls)
    image_size = one_side(visual.image_size)
    width, num_patches = _sizes(visual)
    return Tower(
        module=module,
        image_size=image_size,
        width=width,
        num_tokens=num_patches + config.class_token,
        mean=mean,
        std=std,
        portable=dataclasses.replace(
            config, name=None, weights=None, config=architecture, layer=num_layers, mean=mean, std=std
        ),
    )


class OpenClipTower(nn.Module):
    """The last layer's output for the patches, with or without the class token."""

    def __init__(self, visual: Any, *, cls: bool) -> None:
        super().__init__()
        self.visual: Any = visual
        self.cls = cls

    def checkpoint_activations(self) -> None:
        self.visual.set_grad_checkpointing(True)

    def forward(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        outputs: Mapping[str, list[torch.Tensor]] = self.visual.forward_intermediates(
            pixels_N3SS, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=self.cls
        )
        patches = outputs["image_intermediates"][0]
        if not self.cls:
            return patches
        return torch.cat([outputs["image_intermediates_prefix"][0][:, :1], patches], dim=1)


def _architecture(config: EncoderConfig) -> dict[str, Any]:
    """open_clip's description of the visual half of the model."""
    import open_clip

    model: Mapping[str, Any] = config.config
    if config.name is not None:
        described = description(config.name)
        model = (open_clip.get_model_config(config.name) or {}) if described is None else described["model_cfg"]
        if not model:
            hint = nearest(config.name, open_clip.list_models()) or "; see open_clip.list_models()"
            raise ConfigError([f"model.encoder.name: open_clip has no model {config.name!r}{hint}"])
    missing = [key for key in ("embed_dim", "vision_cfg") if key not in model]
    if missing:
        raise ConfigError([f"model.encoder.config: lacks {', '.join(missing)}; expected a model config of open_clip"])
    vision = {**model["vision_cfg"], "patch_dropout": 0.0}  # every placeholder needs its patch
    if isinstance(vision.get("layers"), list):
        raise ConfigError([f"model.encoder: {config.name} is a ResNet; expected one of open_clip's ViTs"])
    return {"embed_dim": model["embed_dim"], "vision_cfg": vision, "quick_gelu": bool(model.get("quick_gelu"))}


def _published(config: EncoderConfig) -> Normalisation:
    """Mean and std of the published weights of this model; those of CLIP for a custom architecture."""
    import open_clip

    name, tag = config.name, config.weights
    if name is None:
        return CLIP_MEAN, CLIP_STD
    if (described := description(name)) is not None:
        preprocessing = described.get("preprocess_cfg", {})
        return tuple(preprocessing.get("mean", CLIP_MEAN)), tuple(preprocessing.get("std", CLIP_STD))
    known = open_clip.list_pretrained_tags_by_model(name)
    tags = [tag] if tag in known else known
    if tag is not None and tag not in known and not Path(tag).is_file():
        hint = nearest(tag, known) or f"; published are {', '.join(known) or 'none'}"
        raise ConfigError([f"model.encoder.weights: {tag!r} is neither a file nor a pretrained tag of {name}{hint}"])
    published = {
        (tuple(entry["mean"]), tuple(entry["std"]))
        for entry in (open_clip.get_pretrained_cfg(name, known_tag) for known_tag in tags)
        if entry.get("mean") and entry.get("std")
    }
    if len(published) > 1 and not (config.mean and config.std):
        raise ConfigError(
            [
                f"model.encoder.mean: weights of {name} were published with different means; set mean and std to those "
                f"of {tag or 'your weights'}: {' or '.join(map(str, sorted(published)))}"
            ]
        )
    _check_activation(name, tag if tag in known else None)
    return published.pop() if published else (CLIP_MEAN, CLIP_STD)


def _check_activation(name: str, tag: str | None) -> None:
    """OpenAI's weights need quick GELU. open_clip has separate model names for it, and only warns about the others."""
    import open_clip

    if tag is None:
        return
    needs_quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    if needs_quick and not open_clip.get_model_config(name).get("quick_gelu", False):
        raise ConfigError(
            [f"model.encoder.name: the weights {tag} were trained with quick GELU; expected name: {name}-quickgelu"]
        )


def _pretrained(config: EncoderConfig) -> Any:
    """The visual half with weights. open_clip reads many checkpoint formats, none of them by running pickled code."""
    import open_clip

    return open_clip.create_model(
        config.name,
        pretrained=config.weights,
        force_patch_dropout=0.0,
        pretrained_text=False,
        require_pretrained=True,
        weights_only=True,
    ).visual


def _random(architecture: Mapping[str, Any]) -> Any:
    import open_clip

    with quiet():
        return open_clip.CLIP(**copy.deepcopy(dict(architecture)), text_cfg=dict(_NO_TEXT)).visual


def _cut(visual: Any, config: EncoderConfig) -> tuple[OpenClipTower, int, bool]:
    """Remove what follows the layer that is read. Returns the tower, that layer's number, and has_cls."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        number = layers_read(config, len(visual.transformer.resblocks))
        visual.prune_intermediate_layers([number - 1], prune_norm=True, prune_head=True)
        visual.attn_pool = None
        return OpenClipTower(visual, cls=config.class_token), number, True
    if not hasattr(trunk, "blocks") or not hasattr(trunk, "prune_intermediate_layers"):
        raise ConfigError([f"model.encoder: {type(trunk).__name__} is not a ViT; expected one of open_clip's ViTs"])
    number = layers_read(config, len(trunk.blocks))
    trunk.prune_intermediate_layers([number - 1], prune_norm=True, prune_head=True)
    visual.head = nn.Identity()
    return OpenClipTower(visual, cls=config.class_token), number, getattr(trunk, "cls_token", None) is not None


def _sizes(visual: Any) -> tuple[int, int]:
    """Width and number of patches."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        rows, columns = visual.grid_size
        return int(visual.conv1.out_channels), rows * columns
    return int(trunk.embed_dim), int(trunk.patch_embed.num_patches)
