"""Sizes of tiny encoders, the images that they take, and how a config is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dst.errors import ConfigError
from trainer.config.model import EncoderConfig
from trainer.model.encoders.registry import build_encoder

SIDE = 28
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": SIDE, "layers": 3, "width": 16, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 4, "vocab_size": 10, "width": 8, "heads": 1, "layers": 1},
}


def pixels(side: int = SIDE) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


def refused(config: EncoderConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        build_encoder(config)
    return str(caught.value)
