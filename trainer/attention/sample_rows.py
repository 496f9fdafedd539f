"""A sample in the rows that attention gathers: how many queries and keys it has, and which of them attend alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Run(NamedTuple):
    """Consecutive text queries of a sample that follow the same images: their number, and that of their image keys."""

    queries: int
    image_keys: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleRows:
    """A sample in the gathered rows: its numbers of queries and keys. With branches all text keys are queries."""

    queries: int
    text_keys: int
    image_keys: int
    runs: tuple[Run, ...]
    """All queries in order; a run sees the first `image_keys` of the sample's image keys"""
    mask: torch.Tensor | None = None
    """bool [queries, text_keys] if a KV cache holds some keys; None: plain causal"""
    branches: tuple[int, ...] = ()
    """The last queries: how many each branch of the sample has; empty for a sample without branches"""

    @property
    def beginning(self) -> int:
        """Queries before the branches."""
        return self.queries - sum(self.branches)

    @property
    def text_pieces(self) -> tuple[int, ...]:
        """The queries of parts that attend in different ways: of the beginning and of all branches, or of all."""
        return (self.beginning, sum(self.branches)) if self.branches else (self.queries,)

    @property
    def key_pieces(self) -> tuple[int, ...]:
        """The text keys of these parts."""
        return self.text_pieces if self.branches else (self.text_keys,)

    @property
    def parts(self) -> tuple[int, ...]:
        """The queries of the beginning and of each branch; all of them if there are no branches."""
        return (self.beginning, *self.branches)
