"""The transformer block of the tiny encoder and the projectors: attention and an MLP, each after a LayerNorm.

Shapes: N images, Q queries, P keys, D width.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention of Q queries over P keys, without a mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query_NQD: torch.Tensor, keys_NPD: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query_NQD), (self.key, keys_NPD), (self.value, keys_NPD))
        )
        attended_NQD = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out_NQD: torch.Tensor = self.out(attended_NQD)
        return out_NQD


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)). With `cross` it attends to a context, which has its own norm."""

    def __init__(self, width: int, heads: int, *, cross: bool = False, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width) if cross else None
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, x_NQD: torch.Tensor, context_NPD: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.norm_attention(x_NQD)
        keys = normed if self.norm_context is None else self.norm_context(context_NPD)
        x_NQD = x_NQD + self.attention(normed, keys)
        out_NQD: torch.Tensor = x_NQD + self.mlp(self.norm_mlp(x_NQD))
        return out_NQD
