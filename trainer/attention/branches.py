"""Attention of branches: each of them over the keys of their common beginning and, causally, over its own.

No branch copies the beginning and no kernel needs a mask. All queries attend to the beginning in one call, each branch
to itself in a call of its own, and the two softmaxes are merged by their logarithmic sums. In the backward pass each
call gets the merged output and sum: then its gradients are those of one softmax over all keys. Source: the blockwise
attention of https://arxiv.org/abs/2310.01889.

Shapes: H heads, K key-value heads, N queries of all branches, n of one, P keys of the beginning, D head width.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.compat.flash_attention import flash_attention, flash_attention_backward, has_flash_attention

Keys = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, both [1, K, n, D]"""


def attend_branches(
    query_1HND: torch.Tensor,
    beginning: Keys,
    own: Keys,
    lengths: Sequence[int],
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """The outputs [1, H, N, D] of the branches, one after the other. lengths: tokens of each; they sum to N."""
    (key, value), (own_key, own_value) = beginning, own
    if not dropout and has_flash_attention(query_1HND, value):
        out: torch.Tensor = _Merged.apply(query_1HND, key, value, own_key, own_value, lengths, scaling)  # type: ignore[no-untyped-call]
        return out
    pieces = zip(*(torch.split(x, list(lengths), dim=2) for x in (query_1HND, own_key, own_value)), strict=True)
    return torch.cat(
        [
            _attend_by_mask(query, torch.cat([key, own_key], 2), torch.cat([value, own_value], 2), scaling, dropout)
            for query, own_key, own_value in pieces
        ],
        dim=2,
    )


def _attend_by_mask(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
) -> torch.Tensor:
    """For attention that no flash kernel can do: the last keys are those of the queries themselves."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril_(num_keys - num_queries)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        own_key: torch.Tensor,
        own_value: torch.Tensor,
        lengths: Sequence[int],
        scaling: float | None,
    ) -> torch.Tensor:
        parts = [
            flash_attention(query[:, :, rows], own_key[:, :, rows], own_value[:, :, rows], scaling, is_causal=True)
            for rows in _rows(lengths)
        ]
        out, log_sum = (torch.cat(pieces, 2) for pieces in zip(*parts, strict=True))
        if key.shape[2]:
            over_beginning, beginning_sum = flash_attention(query, key, value, scaling, is_causal=False)
            total = torch.logaddexp(log_sum, beginning_sum)
            share = (beginning_sum - total).exp()[..., None]
            merged = torch.lerp(out.to(share.dtype), over_beginning.to(share.dtype), share)
            out, log_sum = merged.to(out.dtype), total
        ctx.save_for_backward(query, key, value, own_key, own_value, out, log_sum)
        ctx.lengths, ctx.scaling = lengths, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, own_key, own_value, out, log_sum = ctx.saved_tensors
        parts = [
            flash_attention_backward(
                grad[:, :, rows],
                query[:, :, rows],
                own_key[:, :, rows],
                own_value[:, :, rows],
                out[:, :, rows],
                log_sum[:, :, rows],
                ctx.scaling,
                is_causal=True,
            )
            for rows in _rows(ctx.lengths)
        ]
        grad_query, grad_own_key, grad_own_value = (torch.cat(pieces, 2) for pieces in zip(*parts, strict=True))
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        if key.shape[2]:
            from_beginning, grad_key, grad_value = flash_attention_backward(
                grad, query, key, value, out, log_sum, ctx.scaling, is_causal=False
            )
            grad_query += from_beginning
        return grad_query, grad_key, grad_value, grad_own_key, grad_own_value, None, None


def _rows(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length
