"""A small convolutional encoder: three strided convolutions, each S to S / 2, then one token per position."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dst.errors import ConfigError
from trainer.config.model import EncoderConfig
from trainer.model.encoders.base import CLIP_MEAN, CLIP_STD, Tower


class Convolutions(nn.Module):
    """[N, 3, S, S] -> [N, (S / 8)², W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, width // 4, width // 2, width]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU())
            for before, after in pairwise(widths)
        )
        self.checkpoints = False

    def checkpoint_activations(self) -> None:
        self.checkpoints = True

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpoints and self.training else layer(x)
        return x.flatten(2).transpose(1, 2)


def convolutions_tower(config: EncoderConfig, weights: bool) -> Tower:
    """`config: {image_size, width}`; random, so there are no weights to load. Raises ConfigError for wrong sizes."""
    size, width = config.config.get("image_size", 336), config.config.get("width", 64)
    if size % 8 or width % 4:
        raise ConfigError(
            [f"model.encoder.config: got image_size {size}, width {width}; expected multiples of 8 and 4"]
        )
    return Tower(
        module=Convolutions(width),
        image_size=size,
        width=width,
        num_tokens=(size // 8) ** 2,
        mean=config.mean or CLIP_MEAN,
        std=config.std or CLIP_STD,
        portable=dataclasses.replace(config, config={"image_size": size, "width": width}),
    )


ENCODER = convolutions_tower
