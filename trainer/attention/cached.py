"""Attention of a few new tokens against a KV cache, by masks over the whole cache, which gathering would copy.

Shapes: B batch, H heads, K key-value heads, T key tokens, Q query tokens, D head width.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

import torch
from torch.nn import functional

from trainer.attention.layout import StepMasks


def attend_by_masks(
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    plan: StepMasks,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """For few queries: score every cached key once, and take both softmaxes of the same scores."""
    batch, num_heads, num_queries, width = query_BHQD.shape
    num_key_heads, num_keys = key_BKTD.shape[1:3]
    scale = width**-0.5 if scaling is None else scaling
    grouped = query_BHQD.reshape(batch, num_key_heads, -1, width)  # the queries of a key head: groups * Q rows
    scores = grouped @ key_BKTD.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    scores = scores.view(batch, num_key_heads, -1, num_queries, num_keys)
    text, image = (_softmax_over(scores, seen_BQT[:, None, None]) for seen_BQT in (plan.text, plan.image))
    weights = functional.dropout(text, dropout) + functional.dropout(image, dropout)
    out = weights.to(value_BKTD.dtype).view(batch, num_key_heads, -1, num_keys) @ value_BKTD
    return out.view(batch, num_heads, num_queries, -1).transpose(1, 2).contiguous()


def _softmax_over(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax over the seen keys; all zero where no key is seen."""
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen
