"""Projectors: from an encoder's tokens to the decoder's embeddings.

Shapes: N images, P tokens per image from the encoder, Q tokens per image for the decoder, W encoder width, H hidden
size. PROJECTORS is the table of all kinds.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from dst.common.extensions import call, load_callable, wrong_object
from dst.errors import ConfigError
from trainer.config.kinds import PROJECTOR_POINT
from trainer.config.model import ProjectorConfig
from trainer.model.encoders.transformer_block import TransformerBlock


class Projector(nn.Module):
    """Maps [N, P, W] to [N, num_tokens, H]. A kind is a subclass that takes (config, W, P, H) as those below do."""

    num_tokens: int
    """Q, tokens per image that come out"""


class Linear(Projector):
    """DeepSpeed-VisualChat's: one linear map, then LayerNorm."""

    def __init__(self, config: ProjectorConfig, width: int, tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.num_tokens = tokens
        self.linear = nn.Linear(width, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, features_NPW: torch.Tensor) -> torch.Tensor:
        out_NQH: torch.Tensor = self.norm(self.linear(features_NPW))
        return out_NQH


class Mlp(Projector):
    """LLaVA-1.5's: Linear, GELU, Linear, all as wide as the decoder."""

    def __init__(self, config: ProjectorConfig, width: int, tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.num_tokens = tokens
        self.linear_1 = nn.Linear(width, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features_NPW: torch.Tensor) -> torch.Tensor:
        out_NQH: torch.Tensor = self.linear_2(nn.functional.gelu(self.linear_1(features_NPW)))
        return out_NQH


class PixelShuffle(Projector):
    """InternVL's: 2 x 2 neighbouring patches become one token, 4 W wide; then LayerNorm, Linear, GELU, Linear.

    A quarter of the tokens, with nothing averaged away (https://arxiv.org/abs/2404.16821).
    """

    def __init__(self, config: ProjectorConfig, width: int, tokens: int, hidden_size: int) -> None:
        """Raises ConfigError unless the patches are a square with an even side."""
        super().__init__()
        self.side = math.isqrt(tokens)
        if self.side**2 != tokens or self.side % 2:
            raise ConfigError(
                [
                    f"model.projector.kind: pixel_shuffle joins 2 x 2 patches, but the encoder makes {tokens} tokens; "
                    "expected a square with an even side, such as 24 x 24, without a class token"
                ]
            )
        self.num_tokens = tokens // 4
        self.norm = nn.LayerNorm(4 * width)
        self.linear_1 = nn.Linear(4 * width, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features_NPW: torch.Tensor) -> torch.Tensor:
        half = self.side // 2
        squares = features_NPW.reshape(
            -1, half, 2, half, 2, features_NPW.shape[2]
        )  # row, row in the square, column, ...
        joined_NQW = squares.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        out_NQH: torch.Tensor = self.linear_2(nn.functional.gelu(self.linear_1(self.norm(joined_NQW))))
        return out_NQH


class Perceiver(Projector):
    """Trained queries read the tokens through cross-attention; a linear map brings the result to the decoder's width.

    It adds no position embeddings: those of the encoder are in the tokens.
    """

    def __init__(self, config: ProjectorConfig, width: int, tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.num_tokens = config.num_queries
        self.queries = nn.Parameter(torch.randn(config.num_queries, width) * 0.02)
        self.layers = nn.ModuleList(
            TransformerBlock(width, config.num_heads, cross=True) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, hidden_size)

    def forward(self, features_NPW: torch.Tensor) -> torch.Tensor:
        queries_NQW = self.queries.expand(len(features_NPW), -1, -1)
        for layer in self.layers:
            queries_NQW = layer(queries_NQW, features_NPW)
        out_NQH: torch.Tensor = self.linear(self.norm(queries_NQW))
        return out_NQH


class Vit(Projector):
    """One more encoder layer, in which an image's tokens attend to each other, then a linear map."""

    def __init__(self, config: ProjectorConfig, width: int, tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.num_tokens = tokens
        self.layer = TransformerBlock(width, config.num_heads)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, hidden_size)

    def forward(self, features_NPW: torch.Tensor) -> torch.Tensor:
        out_NQH: torch.Tensor = self.linear(self.norm(self.layer(features_NPW)))
        return out_NQH


ProjectorFunction = Callable[[ProjectorConfig, int, int, int], Projector]
"""A projector: its config, W, P and H. Raises ConfigError"""

PROJECTORS: dict[str, ProjectorFunction] = {
    "linear": Linear,
    "mlp": Mlp,
    "perceiver": Perceiver,
    "pixel_shuffle": PixelShuffle,
    "vit": Vit,
}


def projector_function(kind: str) -> ProjectorFunction:
    """The projector of this kind; an extension is imported. Raises ConfigError if there is none."""
    if kind in PROJECTORS:
        return PROJECTORS[kind]
    expected = "a class derived from Projector of trainer.model.projectors"
    return partial(_extension_projector, load_callable(PROJECTOR_POINT, kind, "model.projector.kind", expected))


def build_projector(config: ProjectorConfig, *, encoder_width: int, encoder_tokens: int, hidden_size: int) -> Projector:
    """A random projector.

    Raises ConfigError if its heads do not divide the encoder's width, or if an extension is not a projector.
    """
    if config.kind in ("perceiver", "vit") and encoder_width % config.num_heads:
        divisors = [str(heads) for heads in range(1, 65) if encoder_width % heads == 0]
        raise ConfigError(
            [
                f"model.projector.num_heads: got {config.num_heads}, which does not divide the encoder's width "
                f"{encoder_width}; expected one of {', '.join(divisors)}"
            ]
        )
    return projector_function(config.kind)(config, encoder_width, encoder_tokens, hidden_size)


def _extension_projector(
    function: ProjectorFunction, config: ProjectorConfig, width: int, tokens: int, hidden_size: int
) -> Projector:
    made: object = call(function, f"model.projector: {config.kind} cannot be built", config, width, tokens, hidden_size)
    where = f"model.projector.kind: {config.kind}"
    if not isinstance(made, Projector):
        expected = "a Projector of trainer.model.projectors"
        raise ConfigError([f"{where}: it returned: {wrong_object(made, expected)}"])
    if type(number := getattr(made, "num_tokens", None)) is not int or number < 1:
        raise ConfigError([f"{where}: num_tokens: got {number!r}; expected a whole number of at least 1"])
    return made
