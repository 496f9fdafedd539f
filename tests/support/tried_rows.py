"""Rows of decoders whose logits are compared with those of whole sequences at each use."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter

import torch

from tests.support.tiny_models import Loaded
from tests.support.whole_sequences import whole_logits
from trainer.inference.cached_decoder import Prompt
from trainer.inference.rows import Rows


@dataclass
class Tried:
    """Rows, and what each should have read."""

    record: Loaded
    rows: Rows
    expected: list[tuple[Prompt, list[int]]] = field(default_factory=list)

    def join(self, prompt: Prompt) -> int:
        """Returns the number of cached tokens."""
        (read,) = [read for read in self.rows.join(prompt) if read is not None]
        torch.testing.assert_close(read.logits_V, whole_logits(self.record.model, prompt), rtol=1e-9, atol=1e-9)
        self.expected.append((prompt, []))
        return read.cached

    def join_all(self, prompts: list[Prompt]) -> list[int]:
        """Returns the number of cached tokens of each, in the order of the prompts."""
        joined = self.rows.join_all(prompts)
        for index, read in joined:
            whole = whole_logits(self.record.model, prompts[index])
            torch.testing.assert_close(read.logits_V, whole, rtol=1e-9, atol=1e-9)
            self.expected.append((prompts[index], []))
        return [read.cached for _, read in sorted(joined, key=itemgetter(0))]

    def step(self, tokens: list[int]) -> None:
        logits = self.rows.step(tokens)
        for row, (begin, read) in enumerate(self.expected):
            read.append(tokens[row])
            whole = whole_logits(self.record.model, begin, read)
            torch.testing.assert_close(logits[row], whole, rtol=1e-9, atol=1e-9)

    def leave(self, row: int, *, keep: bool = True) -> None:
        self.rows.leave(row, keep=keep)
        last = self.expected.pop()
        if row < len(self.expected):
            self.expected[row] = last
