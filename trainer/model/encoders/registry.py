"""Encoders: from normalised pixels to features of patches.

The rule: an Encoder holds exactly the parameters that its output needs. Layers after the one that is read, final norms
and pooling heads are removed, so no unused weight is stored, partitioned or trained. The output is that of a layer,
before any final norm, as in LLaVA: hidden_states[layer] in transformers.

Shapes: N images, S side in pixels, P tokens per image, W width.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from dst.errors import ConfigError
from trainer.compat.transformers import reason
from trainer.config.model import EncoderConfig
from trainer.model.encoders.base import Tower
from trainer.model.encoders.huggingface import hugging_face_tower
from trainer.model.encoders.open_clip import open_clip_tower
from trainer.model.encoders.qwen_vl import qwen_vl_tower
from trainer.model.encoders.tiny import tiny_tower


class Encoder(nn.Module):
    """A vision tower, with what is needed to prepare its input and to build it again."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower: Any = tower.module  # its class depends on the kind, and LLaVA's export reads its parts
        self.image_size, self.width, self.num_tokens = tower.image_size, tower.width, tower.num_tokens
        self.mean, self.std = tower.mean, tower.std
        self.portable = tower.portable
        """A config that contains the architecture: builds this encoder with random weights, without their source."""

    def forward(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        """Features [N, P, W] of pixels normalised with `mean` and `std`, of the parameters' type."""
        features_NPW: torch.Tensor = self.tower(pixels_N3SS)
        return features_NPW

    def checkpoint_activations(self) -> None:
        """Recompute each layer's activations in the backward pass instead of keeping them."""
        self.tower.checkpoint_activations()


ENCODERS: dict[str, Callable[[EncoderConfig, bool], Tower]] = {
    "open_clip": open_clip_tower,
    "hf": hugging_face_tower,
    "qwen_vl": qwen_vl_tower,
    "tiny": tiny_tower,
}


def build_encoder(config: EncoderConfig, *, weights: bool = True) -> Encoder:
    """The encoder with its pretrained weights; `weights=False` leaves them random, for weights that are loaded later.

    Raises ConfigError if files are missing, weights do not fit, or the layer or class token does not exist.
    """
    try:
        tower = ENCODERS[config.kind](config, weights)
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ConfigError([f"model.encoder: {_what(config)} cannot be built: {reason(error)}"]) from error
    return Encoder(tower)


def _what(config: EncoderConfig) -> str:
    return f"{config.kind} {config.name or config.weights or 'of these sizes'}"
