"""A projector that averages squares of neighbouring tokens, then maps them to the decoder's width with an MLP."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from dst.errors import ConfigError
from trainer.config.model import ProjectorConfig
from trainer.model.projectors import Projector


class Pooling(Projector):
    """[N, P, W] -> [N, P / side², H]. `config: {side}` is the side of a square of tokens that become one."""

    def __init__(self, config: ProjectorConfig, width: int, tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.side, self.grid = config.config.get("side", 2), math.isqrt(tokens)
        if self.grid**2 != tokens or self.grid % self.side:
            raise ConfigError(
                [
                    f"model.projector.config.side: got {self.side}, but the encoder makes {tokens} tokens; expected a "
                    "divisor of the side of their square"
                ]
            )
        self.num_tokens = tokens // self.side**2
        self.mlp = nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        squares = features.transpose(1, 2).reshape(len(features), -1, self.grid, self.grid)
        pooled = functional.avg_pool2d(squares, self.side).flatten(2).transpose(1, 2)
        embeddings: torch.Tensor = self.mlp(pooled)
        return embeddings


PROJECTOR = Pooling
