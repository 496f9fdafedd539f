"""torch's flash attention for CPUs with the logarithms of its sums, which the public function does not return.

These operators are not documented; torch's own scaled_dot_product_attention calls them. Run with torch 2.9.0 and
2.13.0. Where one is missing or has another signature, `has_flash_attention` is False and attention takes a slower way.

Shapes: H heads, K key-value heads (H is a multiple of K), N queries, M keys, D head width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


def has_flash_attention(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the functions below work for tensors such as these."""
    return query.device.type == "cpu" and query.shape[3] == value.shape[3] and _operators() is not None


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output [1, H, N, D], and for each query the logarithm of the sum of its exponentiated scores [1, H, N].

    query [1, H, N, D], key and value [1, K, M, D]; the sums have at least float32.
    """
    operators = _operators()
    assert operators is not None
    out, log_sum = operators[0](query, key, value, 0.0, is_causal, scale=scaling)
    return out, log_sum


def flash_attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    scaling: float | None,
    *,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, where `out` and `log_sum` may be those of a softmax over more keys."""
    operators = _operators()
    assert operators is not None
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = operators[1](
        grad, query, key, value, out, log_sum, 0.0, is_causal, scale=scaling
    )
    return grads


@cache
def _operators() -> tuple[Any, Any] | None:
    """Forward and backward; None unless they give what they should for grouped heads."""
    try:
        forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8)
        out, log_sum = forward(query, key, key, 0.0, False, scale=None)
        grads = backward(out, query, key, key, out, log_sum, 0.0, False, scale=None)
    except (AttributeError, RuntimeError, TypeError):
        return None
    fits = out.shape == query.shape and torch.allclose(log_sum, torch.full((1, 4, 3), 5.0).log())
    return (
        (forward, backward) if fits and [grad.shape for grad in grads] == [query.shape, key.shape, key.shape] else None
    )
