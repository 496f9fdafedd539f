"""Sequences of text, images and padding for tests of MMCA, and what its definition gives for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import strategies as st

from tests.support import oracles_attention
from trainer.attention import mmca
from trainer.attention.layout import MmcaLayout, build_layout


@dataclass(frozen=True)
class Case:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    is_image: torch.Tensor
    segment_ids: torch.Tensor

    @property
    def layout(self) -> MmcaLayout:
        return build_layout(self.is_image, self.segment_ids, num_queries=self.query.shape[2])

    def ours(self, **options: Any) -> torch.Tensor:
        out, weights = mmca.mmca_attention(
            torch.nn.Module(), self.query, self.key, self.value, None, scaling=0.4, mmca_layout=self.layout, **options
        )
        assert weights is None
        return out

    def defined(self) -> torch.Tensor:
        return oracles_attention.mmca(self.query, self.key, self.value, self.is_image, self.segment_ids, 0.4)


@st.composite
def cases(draw: st.DrawFn, *, cached: bool = False) -> Case:
    """Rows of samples and padding in any order; each token text or image."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(2 if cached else 1, 14))
    kinds = st.lists(st.booleans(), min_size=length, max_size=length)
    numbers = st.lists(st.integers(0, 3), min_size=length, max_size=length)
    # Whole samples one after the other, as packing makes them, or padding anywhere, as rounds of a chat make it.
    segments = numbers.map(sorted) | st.lists(st.integers(0, 1), min_size=length, max_size=length) | numbers
    num_queries = draw(st.integers(1, length - 1)) if cached else length
    key_heads, groups, width = draw(st.sampled_from([(1, 1, 4), (2, 1, 3), (1, 3, 2), (2, 2, 4)]))
    torch.manual_seed(draw(st.integers(0, 99)))

    def random(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(batch, tokens, heads, width, dtype=torch.float64).transpose(1, 2).requires_grad_()

    return Case(
        query=random(key_heads * groups, num_queries),
        key=random(key_heads, length),
        value=random(key_heads, length),
        is_image=torch.tensor([draw(kinds) for _ in range(batch)]),
        segment_ids=torch.tensor([draw(segments) for _ in range(batch)]),
    )


def gradients(out: torch.Tensor, case: Case) -> list[torch.Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    inputs = (case.query, case.key, case.value)
    actual = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, actual, strict=True)]


def interleaved(num_queries: int = 12) -> Case:
    """A packed sequence of two samples and padding; the second starts with padding and an image."""
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, heads, 12, 4, dtype=torch.float64) for heads in (4, 2, 2))
    is_image = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0]]).bool()
    segment_ids = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    return Case(query[:, :, 12 - num_queries :], key, value, is_image, segment_ids)


def assert_as_defined(case: Case) -> None:
    ours, defined = case.ours(), case.defined()
    torch.testing.assert_close(ours, defined, rtol=0, atol=1e-10)
    for got, expected in zip(gradients(ours, case), gradients(defined, case), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
