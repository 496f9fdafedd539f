"""Rows of a sequence gathered and cut for MMCA, with one gradient buffer for all pieces.

Shapes: B batch, H heads, T tokens, D head width, N gathered rows, n rows of a piece.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def rows(x: torch.Tensor) -> torch.Tensor:
    """[B, H, T, D] as rows [B * T, H, D]; a view if memory is in the order B, T, H, D, as decoders lay it out."""
    return x.transpose(1, 2).flatten(0, 1)


def gather(x_BHTD: torch.Tensor, index_N: torch.Tensor, *cuts: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
    """Rows of [B, H, T, D], cut into consecutive pieces in one or more ways: for each way its pieces [1, H, n, D]."""
    pieces = iter(_Gather.apply(x_BHTD, index_N, cuts))  # type: ignore[no-untyped-call]
    return [tuple(islice(pieces, len(lengths))) for lengths in cuts]


class _Gather(torch.autograd.Function):
    """Adds the gradients of all pieces in one buffer; torch's own operations would allocate one per way of cutting."""

    @staticmethod
    def forward(
        ctx: Any, x_BHTD: torch.Tensor, index_N: torch.Tensor, cuts: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(index_N)
        ctx.shape, ctx.cuts = x_BHTD.shape, cuts
        rows_NHD = rows(x_BHTD).index_select(0, index_N)
        return tuple(piece.transpose(0, 1)[None] for lengths in cuts for piece in torch.split(rows_NHD, list(lengths)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None]:
        like = next((gradient for gradient in gradients if gradient is not None), None)
        if like is None:
            return None, None, None
        batch, num_heads, length, width = ctx.shape
        remaining = iter(gradients)

        def of_one_cut(lengths: Sequence[int]) -> torch.Tensor:
            pieces = [
                like.new_zeros(count, num_heads, width) if piece is None else piece[0].transpose(0, 1)
                for count, piece in zip(lengths, remaining, strict=False)
            ]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

        total_NHD = functools.reduce(torch.add, map(of_one_cut, ctx.cuts))
        all_NHD = like.new_zeros(batch * length, num_heads, width).index_copy_(0, ctx.saved_tensors[0], total_NHD)
        return all_NHD.view(batch, length, num_heads, width).transpose(1, 2), None, None


def first(sequence: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `count` rows of [1, H, N, D] along N, and the sequence to take the next beginning from."""
    beginning, again = _First.apply(sequence, count)  # type: ignore[no-untyped-call]
    return beginning, again


class _First(torch.autograd.Function):
    """Beginnings of one sequence with one gradient buffer, to which each beginning adds its gradient.

    Plain slices would allocate a buffer of the sequence's size each. Collecting all gradients first and adding them
    together would hold an image's gradient once per text that follows it: memory would grow with the square of the
    number of images.
    """

    @staticmethod
    def forward(ctx: Any, sequence: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.count = sequence.shape, count
        return sequence[:, :, :count], sequence.view_as(sequence)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: torch.Tensor | None, again: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        if first is None:
            return again, None
        batch, num_heads, length, width = ctx.shape
        if again is None and ctx.count == length:  # of the whole sequence: its own gradient is the buffer
            return first, None
        if again is None:
            again = first.new_zeros(batch, length, num_heads, width).transpose(1, 2)
        again[:, :, : ctx.count] += first
        return again, None
