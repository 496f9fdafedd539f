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
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from dst.common.extensions import call, load_callable, wrong_object
from dst.errors import ConfigError
from trainer.compat.transformers import LIBRARY_ERRORS, reason
from trainer.config.kinds import ENCODER_POINT
from trainer.config.model import EncoderConfig
from trainer.errors import TrainError
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
        """Features [N, P, W] of pixels normalised with `mean` and `std`, of the parameters' type.

        Raises TrainError if the tower makes another shape than it says.
        """
        features_NPW: torch.Tensor = self.tower(pixels_N3SS)
        expected = [len(pixels_N3SS), self.num_tokens, self.width]
        if (shape := shape_of(features_NPW)) != expected:
            raise TrainError(
                f"model.encoder.kind: {self.portable.kind} made {shape} of {expected[0]} images; expected {expected}: "
                "the images, and num_tokens and width of its Tower"
            )
        return features_NPW

    def checkpoint_activations(self) -> None:
        """Recompute each layer's activations in the backward pass instead of keeping them."""
        self.tower.checkpoint_activations()


EncoderFunction = Callable[[EncoderConfig, bool], Tower]
"""An encoder: its config, and whether pretrained weights are loaded; see Tower. Raises ConfigError"""

ENCODERS: dict[str, EncoderFunction] = {
    "open_clip": open_clip_tower,
    "hf": hugging_face_tower,
    "qwen_vl": qwen_vl_tower,
    "tiny": tiny_tower,
}


def encoder_function(kind: str) -> EncoderFunction:
    """The encoder of this kind; an extension is imported. Raises ConfigError if there is none."""
    if kind in ENCODERS:
        return ENCODERS[kind]
    expected = "a function of an EncoderConfig and a bool that returns a Tower"
    return partial(_extension_tower, load_callable(ENCODER_POINT, kind, "model.encoder.kind", expected))


def build_encoder(config: EncoderConfig, *, weights: bool = True) -> Encoder:
    """The encoder with its pretrained weights; `weights=False` leaves them random, for weights that are loaded later.

    Raises ConfigError if files are missing, weights do not fit, the layer or class token does not exist, or an
    extension is not an encoder.
    """
    function = encoder_function(config.kind)
    try:
        tower = function(config, weights)
    except (OSError, SafetensorError, pickle.UnpicklingError, *LIBRARY_ERRORS) as error:
        raise ConfigError([f"model.encoder: {_what(config)} cannot be built: {reason(error)}"]) from error
    return Encoder(tower)


def shape_of(value: object) -> list[int] | str:
    """The shape of a tensor, or what it is instead of one."""
    return list(value.shape) if isinstance(value, torch.Tensor) else f"an object of type {type(value).__name__}"


def _extension_tower(function: EncoderFunction, config: EncoderConfig, weights: bool) -> Tower:
    tower = call(function, f"model.encoder: {config.kind} cannot be built", config, weights)
    if problems := _tower_problems(tower, config.kind):
        raise ConfigError([f"model.encoder.kind: {config.kind}: {problem}" for problem in problems])
    return tower


def _tower_problems(tower: object, kind: str) -> list[str]:
    """What is wrong with a Tower of somebody else; a class does not check the types of its fields."""
    if not isinstance(tower, Tower):
        return [f"it returned: {wrong_object(tower, 'a Tower of trainer.model.encoders.base')}"]
    problems = []
    if not isinstance(tower.module, nn.Module):
        problems.append(f"module: {wrong_object(tower.module, 'a torch.nn.Module')}")
    elif not callable(getattr(tower.module, "checkpoint_activations", None)):
        name = type(tower.module).__name__
        problems.append(f"module: {name} has no method checkpoint_activations(); add one, which may do nothing")
    for name in ("image_size", "width", "num_tokens"):
        if type(value := getattr(tower, name)) is not int or value < 1:
            problems.append(f"{name}: got {value!r}; expected a whole number of at least 1")
    for name in ("mean", "std"):
        value = getattr(tower, name)
        if (
            not isinstance(value, list | tuple)
            or len(value) != 3
            or not all(type(each) in (int, float) for each in value)
        ):
            problems.append(f"{name}: got {value!r}; expected three numbers, for red, green and blue")
    if not isinstance(tower.portable, EncoderConfig) or tower.portable.kind != kind:
        problems.append(f"portable: expected an EncoderConfig of the kind {kind}, as dataclasses.replace(config) makes")
    return problems


def _what(config: EncoderConfig) -> str:
    return f"{config.kind} {config.name or config.weights or 'of these sizes'}"
