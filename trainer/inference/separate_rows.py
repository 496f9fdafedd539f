"""Rows of decoders that cannot share a memory: each prompt, or each batch of them, has a decoder of its own.

For sliding windows, recurrent layers and positions by distance, whose caches are those of transformers, and for
decoders without a cache. A single row is that of a conversation: the next prompt is read from where it differs.

Shapes: B rows, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from trainer.inference.cached_decoder import CachedDecoder, Prompt
from trainer.inference.joining import joining_of
from trainer.inference.rows import Read
from trainer.inference.uncached_decoder import UncachedDecoder
from trainer.model.vision_chat import VisionChatModel


@dataclass(slots=True, kw_only=True, eq=False)
class _Batch:
    """Sequences that one decoder reads. Those that left are continued with any tokens, as others need the decoder."""

    decoder: CachedDecoder | UncachedDecoder
    traces: list[list[int]]
    """What each has read"""


class SeparateRows:
    """See trainer.inference.rows.Rows. limit: most positions that the model can read."""

    def __init__(
        self, model: VisionChatModel, device: torch.device, *, num_rows: int, uses_cache: bool, limit: int | None
    ) -> None:
        self._model, self._device, self._limit = model, device, limit
        self._num_rows = num_rows
        self._kind: type[CachedDecoder] | type[UncachedDecoder] = CachedDecoder if uses_cache else UncachedDecoder
        self.reset()

    def reset(self) -> None:
        """Remove all rows."""
        self._rows: list[tuple[_Batch, int]] = []
        """Of each row its batch, and its number there"""
        self._left: _Batch | None = None
        """The batch of the only row, which left"""

    @torch.no_grad()
    def join(self, prompt: Prompt) -> Iterator[Read | None]:
        """Read a prompt, in one piece."""
        joining = joining_of(self._model, prompt)
        left, self._left = self._left, None
        kept = 0
        if left is not None:
            (read,) = left.traces
            shared = replace(joining, shared=joining.shared_with(np.array(read, np.int64)))
            kept = shared.kept_in_order
            if not left.decoder.crop(len(read) - kept):
                kept = 0
        decoder = left.decoder if left is not None and kept else self._kind(self._model, 1, self._device)
        first = sum(slot < kept for slot in prompt.slots)
        rest = Prompt(
            ids=prompt.ids[kept:],
            images=prompt.images[first:],
            slots=tuple(slot - kept for slot in prompt.slots[first:]),
            end_id=prompt.end_id,
        )
        logits_1V = decoder.read_padded([rest], first_position=kept)
        self._rows.append((_Batch(decoder=decoder, traces=[joining.trace.tolist()]), 0))
        yield Read(logits_1V[0], kept)

    @torch.no_grad()
    def join_all(self, prompts: Sequence[Prompt]) -> list[tuple[int, Read]]:
        """Read prompts with one decoder."""
        traces = [joining_of(self._model, prompt).trace.tolist() for prompt in prompts]
        decoder = self._kind(self._model, len(prompts), self._device)
        logits_BV = decoder.read_padded(prompts)
        batch = _Batch(decoder=decoder, traces=traces)
        self._rows += [(batch, number) for number in range(len(prompts))]
        return list(enumerate(map(Read, logits_BV)))

    @torch.no_grad()
    def step(self, tokens_B: Sequence[int]) -> torch.Tensor:
        """Read one token in each row. Returns the logits [B, V] after it."""
        tokens = {(id(batch), number): token for (batch, number), token in zip(self._rows, tokens_B, strict=True)}
        logits: dict[int, torch.Tensor] = {}
        for batch in {id(batch): batch for batch, _ in self._rows}.values():
            new = [tokens.get((id(batch), number), 0) for number in range(len(batch.traces))]
            lengths = torch.tensor([[len(trace)] for trace in batch.traces])
            positions = lengths if self._limit is None else lengths.clamp(max=self._limit - 1)  # of those that left
            logits[id(batch)] = batch.decoder.read_tokens(new, positions)
            for trace, token in zip(batch.traces, new, strict=True):
                trace.append(token)
        return torch.stack([logits[id(batch)][number] for batch, number in self._rows])

    def leave(self, row: int, *, keep: bool) -> None:
        """Remove a row; the last one takes its place. keep: a prompt may continue it."""
        batch, _ = self._rows[row]
        self._rows[row] = self._rows[-1]
        del self._rows[-1]
        self._left = batch if keep and self._num_rows == 1 else None
