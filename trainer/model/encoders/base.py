"""What every kind of vision tower has in common."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dst.errors import ConfigError
from trainer.config.model import EncoderConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LLAVA_LAYER = -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A vision tower: `module` maps [N, 3, S, S] to [N, P, W] and has `checkpoint_activations()`."""

    module: nn.Module
    image_size: int
    width: int
    num_tokens: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    portable: EncoderConfig
    """A config that contains the architecture and builds this tower with random weights"""


def layers_read(config: EncoderConfig, num_layers: int) -> int:
    """How many layers run: the configured layer, counted from 1. Raises ConfigError if it does not exist."""
    layer = LLAVA_LAYER if config.layer is None else config.layer
    number = layer if layer > 0 else num_layers + 1 + layer
    if not 1 <= number <= num_layers:
        raise ConfigError(
            [
                f"model.encoder.layer: got {layer}, but the encoder has {num_layers} layers; expected 1 to "
                f"{num_layers}, or -1 to -{num_layers} from the end"
            ]
        )
    return number


def require_cls(config: EncoderConfig, has_cls: bool) -> None:
    """Raises ConfigError if the config keeps a class token that the encoder does not have."""
    if config.class_token and not has_cls:
        raise ConfigError(["model.encoder.class_token: got true, but this encoder has no class token; expected false"])


def one_side(size: object) -> int:
    """The side of an image size as libraries write it: a number, or two equal ones. Raises ConfigError otherwise."""
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ConfigError([f"model.encoder: its images are {sides} pixels; expected an encoder of square images"])
    return int(sides[0])
