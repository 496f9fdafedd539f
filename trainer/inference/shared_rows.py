"""Rows whose keys and values are in one memory, so that a token of every row is one forward.

Prompts are read by trainer.inference.prompt_reader: one in short pieces between two tokens of running answers, or all
of a batch at once. What rows have read is copied to later prompts that begin alike, from the rows or from the cache.

Shapes: B rows, P positions, K keys, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.attention.text_queries import step_layout
from trainer.inference.cached_decoder import Prompt
from trainer.inference.image_states import ImageReader
from trainer.inference.joining import Beginning, Joining, RowBeginning, groups_of, joining_of, ready
from trainer.inference.next_logits import NextLogits
from trainer.inference.prompt_reader import PromptReader
from trainer.inference.rows import Read
from trainer.inference.slots import Slots, StepWrite
from trainer.inference.state_cache import Prefix, StateCache, Trace, num_shared
from trainer.model.decoder_protocol import takes_positions
from trainer.model.vision_chat import VisionChatModel

CHUNK = 256
"""Most tokens of a prompt that are read between two tokens of running answers"""
GROUP = 8192
"""Most tokens of the prompts of a batch that are read in one forward"""


class SharedRows:
    """Rows of one decoder. images: None to read images with the text around them.

    A single row is that of a conversation: what it has read stays in its memory, and the next prompt continues it.
    """

    def __init__(
        self,
        model: VisionChatModel,
        device: torch.device,
        *,
        num_rows: int,
        cache: StateCache,
        images: ImageReader | None,
    ) -> None:
        self._model, self._device, self._cache, self._images = model, device, cache, images
        self._reader = PromptReader(model, device, cache=cache, images=images)
        self._forward = NextLogits(model)
        self._pads = takes_positions(model.decoder)
        """Whether prompts of different lengths may be read together"""
        self._num_rows = num_rows
        self.reset()

    def reset(self) -> None:
        """Remove all rows, and their memory."""
        self._slots, self._joining = Slots(self._num_rows), Slots(1)
        self._traces: list[list[int]] = []
        """What each row has read"""
        self._left: Trace | None = None
        """What the only row had read, which left; it is still in the memory"""
        self._is_image_BP = torch.zeros(self._num_rows, 0, dtype=torch.bool, device=self._device)

    @torch.no_grad()
    def join(self, prompt: Prompt) -> Iterator[Read | None]:
        """Read a prompt. Raises TrainError if its images do not fit its placeholders. One prompt at a time."""
        joining = self._with_beginning(joining_of(self._model, prompt))
        for reads in self._reader.read([joining], self._joining, piece=CHUNK):
            if reads is not None:
                if reads[0].logits_V.isfinite().all():
                    self._keep(self._joining, 0, joining.trace)
                self._add_rows([joining], self._joining)  # last: whoever asked hears of no row if anything fails
            yield None if reads is None else reads[0]

    @torch.no_grad()
    def join_all(self, prompts: Sequence[Prompt]) -> list[tuple[int, Read]]:
        """Read prompts at once; their rows join in the order of the result, which names each by its index.

        What they have read is kept when they leave: those of a batch begin as its rows do, not as what is kept.
        """
        waiting = {index: joining_of(self._model, prompt) for index, prompt in enumerate(prompts)}
        self._left = None  # the first prompt takes its place
        joined: list[tuple[int, Read]] = []
        while waiting:
            waiting = {index: self._with_beginning(joining) for index, joining in waiting.items()}
            in_order = {i: each for i, each in waiting.items() if not self._reader.places_images_of(each)}
            around = waiting.keys() - in_order.keys()
            for alike in (around, ready(in_order)):
                lengths = {index: self._reader.num_new(waiting[index]) for index in alike}
                for group in groups_of(lengths, GROUP if self._pads else 0):
                    joinings, row = [waiting.pop(index) for index in group], len(self._traces)
                    longest = max(joining.length for joining in joinings)
                    if all(self._reader.start_of(joining, longest) == 0 for joining in joinings):
                        slots = self._slots
                    else:
                        slots, row = Slots(len(group)), 0  # rows that do not begin at 0 are moved there
                    *_, reads = self._reader.read(joinings, slots, first_row=row, piece=GROUP)
                    assert reads is not None, "the last piece gives the logits"
                    self._add_rows(joinings, slots)
                    joined += zip(group, reads, strict=True)
        return joined

    @torch.no_grad()
    def step(self, tokens_B: Sequence[int]) -> torch.Tensor:
        """Read one text token in each row. Returns the logits [B, V] after it."""
        lengths = [len(trace) for trace in self._traces]
        num_keys = max(lengths) + 1
        self._reserve(num_keys)
        lengths_B = torch.tensor(lengths, device=self._device)
        ids_B = torch.tensor(tokens_B, device=self._device)
        layout, mask_BK = None, None
        if self._model.uses_layout:
            is_image_BK = self._model.attended_as_images(self._is_image_BP[: len(lengths), :num_keys])
            layout = step_layout(is_image_BK, lengths_B[:, None])
        else:
            mask_BK = (torch.arange(num_keys, device=self._device) <= lengths_B[:, None]).long()
        store = StepWrite(slots=self._slots, lengths_B=lengths_B, num_keys=num_keys)
        embeddings_BH = self._model.decoder.get_input_embeddings()(ids_B)
        logits_BV = self._forward(embeddings_BH[:, None], lengths_B[:, None], store, layout=layout, mask_BK=mask_BK)
        for trace, token in zip(self._traces, tokens_B, strict=True):
            trace.append(token)
        return logits_BV

    def leave(self, row: int, *, keep: bool) -> None:
        """Remove a row; the last one takes its place. keep: what it has read may serve later prompts."""
        last = len(self._traces) - 1
        length = len(self._traces[last])
        trace = np.array(self._traces[row], np.int64)
        if keep:
            self._keep(self._slots, row, trace)
        if row != last:
            self._slots.clear(row, len(trace))
            self._slots.move(self._slots, last, row, length)
            self._is_image_BP[row] = self._is_image_BP[last]
            self._traces[row] = self._traces[last]
        if keep and self._num_rows == 1:
            self._left = trace
        else:
            self._slots.clear(last, length)
        self._is_image_BP[last] = False
        del self._traces[last]

    def _with_beginning(self, joining: Joining) -> Joining:
        """With what is kept of the longest beginning that it shares with any sequence."""
        rows = [self._left] if self._left is not None else [np.array(trace, np.int64) for trace in self._traces]
        known: list[tuple[int, Beginning]] = [
            (num_shared(trace, joining.trace), RowBeginning(trace=trace, slots=self._slots, row=row))
            for row, trace in enumerate(rows)
        ]
        prefix, shared = self._cache.prefix(joining.trace)
        if prefix is not None and (self._images is None or self._reader.places_images_of(joining)):
            known.append((shared, prefix))
        shared, beginning = max(known, key=lambda pair: pair[0], default=(0, None))
        return replace(joining, beginning=beginning, shared=shared)

    def _add_rows(self, joinings: Sequence[Joining], slots: Slots) -> None:
        """The prompts that were read become the last rows."""
        longest = max(joining.length for joining in joinings)
        for index, joining in enumerate(joinings):
            start = self._reader.start_of(joining, longest)
            row, self._left = len(self._traces), None
            self._reserve(joining.length + 1)
            if slots is not self._slots:
                self._slots.move(slots, index, row, joining.length, start=start)
            self._is_image_BP[row] = False
            self._is_image_BP[row, : joining.length] = self._tensor(joining.is_image)
            self._traces.append(joining.trace.tolist())

    def _keep(self, slots: Slots, row: int, trace: Trace) -> None:
        """Keep what a row has read; images are kept apart where they can be placed anywhere."""
        positions = np.arange(len(trace)) if self._images is None else np.flatnonzero(trace >= 0)
        states = slots.take(row, self._tensor(positions))
        self._cache.add_prefix(Prefix(trace=trace, positions=positions, states=states))

    def _reserve(self, positions: int) -> None:
        self._slots.reserve(positions)
        reserved = self._is_image_BP.shape[1]
        if reserved < positions:
            more = torch.zeros(self._num_rows, positions, dtype=torch.bool, device=self._device)  # doubles the memory
            self._is_image_BP = torch.cat([self._is_image_BP, more], dim=1)

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)
