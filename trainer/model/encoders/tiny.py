"""A small random ViT with a class token and pre-norm layers, for tests and the demo: it needs no download."""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dst.common.config import build
from dst.common.config_class import config_class
from dst.errors import ConfigError
from trainer.config.model import EncoderConfig
from trainer.model.encoders.base import CLIP_MEAN, CLIP_STD, Tower, layers_read
from trainer.model.encoders.transformer_block import TransformerBlock


@config_class
class TinySizes:
    image_size: int = 336
    """Side of the image in pixels; a multiple of patch_size."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    width: int = 32
    """Width of a token's features."""
    layers: int = 3
    """Transformer layers."""
    heads: int = 2
    """Attention heads; must divide the width."""


def tiny_tower(config: EncoderConfig, weights: bool) -> Tower:
    """A random tower; there are no weights to load. Raises ConfigError for inconsistent sizes."""
    sizes, problems = build(TinySizes, config.config, "model.encoder.config")
    if sizes is None:
        raise ConfigError(problems)
    for name, total, divisor in (
        ("patch_size", sizes.image_size, sizes.patch_size),
        ("heads", sizes.width, sizes.heads),
    ):
        if divisor < 1 or total < 1 or total % divisor:
            problems.append(f"model.encoder.config.{name}: got {divisor}; expected a divisor of {total}")
    if problems:
        raise ConfigError(problems)
    module = TinyVit(sizes, layers_read(config, sizes.layers), cls=config.class_token)
    return Tower(
        module=module,
        image_size=sizes.image_size,
        width=sizes.width,
        num_tokens=module.num_patches + config.class_token,
        mean=config.mean or CLIP_MEAN,
        std=config.std or CLIP_STD,
        portable=dataclasses.replace(config, config=dataclasses.asdict(sizes)),
    )


class TinyVit(nn.Module):
    """[N, 3, S, S] -> [N, P, W]: the output of the last of `layers` layers."""

    def __init__(self, sizes: TinySizes, layers: int, *, cls: bool) -> None:
        super().__init__()
        self.num_patches = (sizes.image_size // sizes.patch_size) ** 2
        self.cls = cls
        self.checkpoints = False
        self.patches = nn.Conv2d(3, sizes.width, sizes.patch_size, sizes.patch_size)
        self.class_embedding = nn.Parameter(torch.randn(sizes.width) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(1 + self.num_patches, sizes.width) * 0.02)
        self.layers = nn.ModuleList(TransformerBlock(sizes.width, sizes.heads) for _ in range(layers))

    def checkpoint_activations(self) -> None:
        self.checkpoints = True

    def forward(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        patches = self.patches(pixels_N3SS).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.position_embedding
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpoints and self.training else layer(x)
        return x if self.cls else x[:, 1:]
