"""Sequences that a decoder continues together, and that join and leave at any token.

Shapes: B rows, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from trainer.inference.cached_decoder import CachedDecoder, Prompt
from trainer.inference.generate import Generator
from trainer.inference.uncached_decoder import UncachedDecoder


class Rows(Protocol):
    """Rows have numbers 0, 1, 2, ... in the order in which they joined; where one leaves, the last takes its place."""

    def join(self, prompt: Prompt) -> Iterator[Read | None]:
        """Read a prompt in pieces, each a short computation; its row joins with the last one, which is a Read."""

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


class SeparateRows:
    """Each row has a decoder of its own: for decoders whose rows cannot share a cache."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._decoders: list[CachedDecoder | UncachedDecoder] = []
        self._lengths: list[int] = []

    @torch.no_grad()
    def join(self, prompt: Prompt) -> Iterator[Read | None]:
        decoder = self._generator.new_decoder(1)
        logits_1V = decoder.read_padded([prompt])
        self._decoders.append(decoder)
        self._lengths.append(len(prompt.ids))
        yield Read(logits_1V[0])

    @torch.no_grad()
    def step(self, tokens_B: Sequence[int]) -> torch.Tensor:
        logits = []
        for row, (decoder, token) in enumerate(zip(self._decoders, tokens_B, strict=True)):
            logits.append(decoder.read_tokens([token], torch.tensor([[self._lengths[row]]])))
            self._lengths[row] += 1
        return torch.cat(logits)

    def leave(self, row: int, *, keep: bool) -> None:
        decoder, length = self._decoders.pop(), self._lengths.pop()
        if row < len(self._decoders):
            self._decoders[row], self._lengths[row] = decoder, length

    def reset(self) -> None:
        self._decoders.clear()
        self._lengths.clear()
