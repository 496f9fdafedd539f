"""Sequences of text, images and padding for tests of MMCA, and what its definition gives for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import strategies as st

from tests.support import oracles_attention
from trainer.attention.layout import AttentionLayout, build_layout
from trainer.attention.mmca import MMCA


@dataclass(frozen=True)
class Case:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    is_image: torch.Tensor
    segment_ids: torch.Tensor
    branch_ids: torch.Tensor | None = None
    flex: bool | None = None

    @property
    def layout(self) -> AttentionLayout:
        return build_layout(
            self.is_image, self.segment_ids, self.branch_ids, num_queries=self.query.shape[2], flex=self.flex
        )

    def ours(self, **options: Any) -> torch.Tensor:
        out, weights = MMCA.attend(
            torch.nn.Module(),
            self.query,
            self.key,
            self.value,
            None,
            scaling=0.4,
            attention_layout=self.layout,
            **options,
        )
        assert weights is None
        return out

    def defined(self) -> torch.Tensor:
        return oracles_attention.mmca(
            self.query, self.key, self.value, self.is_image, self.segment_ids, 0.4, self.branch_ids
        )


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


@st.composite
def branched_cases(draw: st.DrawFn, *, dtype: torch.dtype = torch.float64) -> Case:
    """Rows of samples, each a beginning of text and images and up to three branches of text, and then padding."""
    rows = draw(st.lists(st.lists(_SAMPLE, max_size=2), min_size=1, max_size=2))
    length = max(1, max(sum(len(kinds) + sum(branches) for kinds, branches in row) for row in rows))
    is_image, segment_ids, branch_ids = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(3))
    for number, row in enumerate(rows):
        start = 0
        for segment, (kinds, branches) in enumerate(row, start=1):
            is_image[number, start : start + len(kinds)] = torch.tensor(kinds)
            ids = [0] * len(kinds) + [branch for branch, count in enumerate(branches, 1) for _ in range(count)]
            branch_ids[number, start : start + len(ids)] = torch.tensor(ids)
            segment_ids[number, start : start + len(ids)] = segment
            start += len(ids)
    key_heads, groups, width = draw(st.sampled_from([(1, 1, 4), (2, 1, 3), (1, 3, 2), (2, 2, 4)]))
    torch.manual_seed(draw(st.integers(0, 99)))

    def random(heads: int) -> torch.Tensor:
        return torch.randn(len(rows), length, heads, width, dtype=dtype).transpose(1, 2).requires_grad_()

    query, key, value = random(key_heads * groups), random(key_heads), random(key_heads)
    return Case(query, key, value, is_image.bool(), segment_ids, branch_ids)


_SAMPLE = st.tuples(st.lists(st.booleans(), min_size=1, max_size=5), st.lists(st.integers(1, 4), max_size=3))
"""Whether each token of the beginning is an image's, and the tokens of each branch"""


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
