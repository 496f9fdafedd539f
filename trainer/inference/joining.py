"""Prompts that are about to be read: what is known of their beginnings, and which of them are read together.

Rule: of a prompt that begins as an earlier one of its batch does, only the rest is read, once the earlier one is.

Shapes: T positions, Q positions that are read, D head width, K key-value heads.
"""

# ruff: noqa: N806 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from trainer.inference.cached_decoder import Prompt
from trainer.inference.slots import Slots, States
from trainer.inference.state_cache import Trace, digest_of, num_shared, trace_of
from trainer.model.vision_chat import VisionChatModel

WORTH_WAITING = 64
"""A prompt is read after another one of its batch if it shares this many more positions with it than with any known"""

FEW = 8
"""A beginning of less than this part of a prompt is read again where all is read in order"""


class Beginning(Protocol):
    """A sequence whose keys and values are kept, of all of its positions or of its text: see state_cache.Prefix."""

    @property
    def trace(self) -> Trace: ...

    def take(self, positions: npt.NDArray[np.int64]) -> States:
        """The states [K, Q, D] of the first positions that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowBeginning:
    """A row of a memory, which has all positions of its sequence."""

    trace: Trace
    slots: Slots
    row: int

    def take(self, positions: npt.NDArray[np.int64]) -> States:
        return self.slots.take(self.row, torch.from_numpy(positions).to(self.slots.device))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joining:
    """A prompt that is about to be read."""

    prompt: Prompt
    is_image: npt.NDArray[np.bool_]
    """[T]"""
    digests: tuple[bytes, ...]
    """Of each tile"""
    trace: Trace
    image_tokens: int
    beginning: Beginning | None = None
    """A kept sequence that begins alike"""
    shared: int = 0
    """Positions from the start that both have"""

    @property
    def length(self) -> int:
        return len(self.trace)

    @property
    def text(self) -> npt.NDArray[np.int64]:
        """The positions of text."""
        return np.flatnonzero(~self.is_image)

    def shared_with(self, trace: Trace) -> int:
        """How many positions from the start a sequence has in common with the prompt."""
        return num_shared(self.trace, trace)

    @property
    def kept_in_order(self) -> int:
        """Positions that are not read if all are read in order: at least one is, and images are read as a whole.

        0 if they are few: attention is faster to all positions than to those behind others.
        """
        kept = min(self.shared, self.length - 1)
        if kept * FEW < self.length:
            return 0
        return min([kept, *(slot for slot in self.prompt.slots if slot < kept < slot + self.image_tokens)])

    @property
    def kept_text(self) -> int:
        """Tokens that are not read if text alone is."""
        return min(int(np.searchsorted(self.text, self.shared)), len(self.text) - 1)


def joining_of(model: VisionChatModel, prompt: Prompt) -> Joining:
    """Raises TrainError if the prompt's images do not fit its placeholders."""
    slots_N2 = torch.tensor([(0, slot) for slot in prompt.slots], dtype=torch.int64).reshape(-1, 2)
    model.image_positions(torch.from_numpy(prompt.ids)[None], prompt.images, slots_N2)
    digests = tuple(digest_of(tile_3SS) for tile_3SS in prompt.images)
    return Joining(
        prompt=prompt,
        is_image=prompt.ids == model.image_id,
        digests=digests,
        trace=trace_of(prompt, digests, model.image_tokens),
        image_tokens=model.image_tokens,
    )


def ready(waiting: Mapping[int, Joining]) -> list[int]:
    """The prompts, by their numbers, that begin as no other one before them does, or not by much."""
    numbers = sorted(waiting)
    return [
        number
        for index, number in enumerate(numbers)
        if not any(
            num_shared(waiting[before].trace, waiting[number].trace) >= waiting[number].shared + WORTH_WAITING
            for before in numbers[:index]
        )
    ]


def groups_of(lengths: Mapping[int, int], most_tokens: int) -> Iterator[Sequence[int]]:
    """Numbers of prompts that are read together: of similar length, so that little is padding, longest first.

    lengths: what is read of each. A group of more than one has at most this many tokens, padding included.
    """
    group: list[int] = []
    for number in sorted(lengths, key=lambda number: -lengths[number]):
        longest = lengths[group[0]] if group else 0
        if group and ((len(group) + 1) * longest > most_tokens or longest > 2 * lengths[number] + WORTH_WAITING):
            yield group
            group = []
        group.append(number)
    if group:
        yield group
