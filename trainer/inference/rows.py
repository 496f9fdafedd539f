"""Sequences that a decoder continues together, and that join and leave at any token.

Shapes: V vocabulary, B rows.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from trainer.inference.cached_decoder import Prompt


class Rows(Protocol):
    """Rows have numbers 0, 1, 2, ... in the order in which they joined; where one leaves, the last takes its place."""

    def join(self, prompt: Prompt) -> Iterator[Read | None]:
        """Read a prompt in pieces, each a short computation; its row joins with the last one, which is a Read."""

    def join_all(self, prompts: Sequence[Prompt]) -> list[tuple[int, Read]]:
        """Read prompts at once; their rows join in the order of the result, which names each by its index."""

    def step(self, tokens_B: Sequence[int]) -> torch.Tensor:
        """Read one token in each row. Returns the logits [B, V] after it."""

    def leave(self, row: int, *, keep: bool) -> None:
        """Remove a row. keep: what it has read is sound, and may serve later prompts."""

    def reset(self) -> None:
        """Remove all rows, also after an error in the middle of a step."""


class Read:
    """A prompt that was read. logits: [V], after it. cached: its positions that were not computed."""

    __slots__ = ("cached", "logits_V")

    def __init__(self, logits_V: torch.Tensor, cached: int = 0) -> None:
        self.logits_V, self.cached = logits_V, cached
