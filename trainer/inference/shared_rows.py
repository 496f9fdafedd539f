"""Rows whose keys and values are in one memory, so that a token of every row is one forward.

How a prompt is read, in pieces of at most CHUNK tokens:
- with an ImageReader (MMCA): keys and values of each tile are taken from the cache, or from a forward over the tile;
  they are placed, and then the text is read, whose queries see them;
- without: tiles are encoded, and all positions are read in order.
Either way the longest beginning that a kept sequence shares is copied from it.

Shapes: B rows, P positions, Q new tokens, K keys, N tiles, S side in pixels, H hidden size, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from trainer.attention.layout import AttentionLayout, build_layout
from trainer.attention.text_queries import prompt_layout, step_layout
from trainer.compat.transformers import KeyValueStore, cache_argument, own_cache
from trainer.inference.cached_decoder import Prompt
from trainer.inference.image_states import ImageReader
from trainer.inference.rows import Read
from trainer.inference.slots import PromptWrite, Slots, States, StepWrite
from trainer.inference.state_cache import Prefix, StateCache, Trace, digest_of, trace_of
from trainer.model.decoder_logits import finish_logits
from trainer.model.decoder_protocol import takes_positions
from trainer.model.vision_chat import VisionChatModel

CHUNK = 256
"""Most tokens of a prompt that are read between two tokens of running answers"""


class SharedRows:
    """Rows of one decoder. images: None to read images with the text around them."""

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
        self._cache_argument, self._takes_positions = cache_argument(), takes_positions(model.decoder)
        self._num_rows = num_rows
        self.reset()

    def reset(self) -> None:
        """Remove all rows, and their memory."""
        self._slots, self._joining = Slots(self._num_rows), Slots(1)
        self._traces: list[list[int]] = []
        """What each row has read"""
        self._is_image_BP = torch.zeros(self._num_rows, 0, dtype=torch.bool, device=self._device)

    @property
    def places_images(self) -> bool:
        """Whether images are read apart from the text around them."""
        return self._images is not None

    @torch.no_grad()
    def join(self, prompt: Prompt) -> Iterator[Read | None]:
        """Read a prompt. Raises TrainError if its images do not fit its placeholders. One prompt at a time."""
        model, length = self._model, len(prompt.ids)
        ids_1Q = torch.from_numpy(prompt.ids).to(self._device)[None]
        slots_N2 = torch.tensor([(0, slot) for slot in prompt.slots], dtype=torch.int64).reshape(-1, 2)
        model.image_positions(ids_1Q, prompt.images, slots_N2.to(self._device))
        is_image = prompt.ids == model.image_id
        digests = [digest_of(tile_3SS) for tile_3SS in prompt.images]
        trace = trace_of(prompt, digests, model.image_tokens)
        self._joining.reserve(length)
        if self._images is not None and not is_image[-1]:
            pieces = self._read_around_images(prompt, is_image, trace, digests, self._images)
        else:
            pieces = self._read_in_order(prompt, is_image, trace)
        for read in pieces:
            if read is not None:
                if read.logits_V.isfinite().all():
                    self._keep(self._joining, 0, trace)
                self._add_row(is_image, trace)  # last: whoever asked hears of no row if anything fails
            yield read

    @torch.no_grad()
    def step(self, tokens_B: Sequence[int]) -> torch.Tensor:
        """Read one text token in each row. Returns the logits [B, V] after it."""
        lengths = [len(trace) for trace in self._traces]
        num_keys = max(lengths) + 1
        self._reserve(num_keys)
        lengths_B = torch.tensor(lengths, device=self._device)
        ids_B = torch.tensor(tokens_B, device=self._device)
        if self._model.uses_layout:
            is_image_BK = self._model.attended_as_images(self._is_image_BP[: len(lengths), :num_keys])
            layout, mask_BK = step_layout(is_image_BK, lengths_B[:, None]), None
        else:
            layout = None
            mask_BK = (torch.arange(num_keys, device=self._device) <= lengths_B[:, None]).long()
        store = StepWrite(slots=self._slots, lengths_B=lengths_B, num_keys=num_keys)
        embeddings_BH = self._model.decoder.get_input_embeddings()(ids_B)
        logits_BV = self._forward(embeddings_BH[:, None], lengths_B[:, None], store, layout, mask_BK)
        for trace, token in zip(self._traces, tokens_B, strict=True):
            trace.append(token)
        return logits_BV

    def leave(self, row: int, *, keep: bool) -> None:
        """Remove a row; the last one takes its place. keep: what it has read may serve later prompts."""
        last = len(self._traces) - 1
        length = len(self._traces[last])
        if keep:
            self._keep(self._slots, row, np.array(self._traces[row], np.int64))
        if row != last:
            self._slots.clear(row, len(self._traces[row]))
            self._slots.move(self._slots, last, row, length)
            self._is_image_BP[row] = self._is_image_BP[last]
            self._traces[row] = self._traces[last]
        self._slots.clear(last, length)
        self._is_image_BP[last] = False
        del self._traces[last]

    def _read_around_images(
        self,
        prompt: Prompt,
        is_image: npt.NDArray[np.bool_],
        trace: Trace,
        digests: Sequence[bytes],
        images: ImageReader,
    ) -> Iterator[Read | None]:
        num_cached = 0
        for slot, digest, tile_3SS in zip(prompt.slots, digests, prompt.images, strict=True):
            states = self._cache.image(digest)
            if states is None:
                features_QH = images.encode(tile_3SS)
                parts = []
                for start in range(0, len(features_QH), CHUNK):
                    yield None
                    parts.append(images.read(features_QH[start : start + CHUNK]))
                states = States.joined(parts)
                self._cache.add_image(digest, states)
                yield None
            else:
                num_cached += self._model.image_tokens
            self._joining.put(0, slice(slot, slot + self._model.image_tokens), images.placed(states, slot))
        text = np.flatnonzero(~is_image)
        prefix, shared = self._cache.prefix(trace)
        num_kept = min(int(np.searchsorted(text, shared)), len(text) - 1)
        self._restore(prefix, num_kept)
        num_cached += num_kept
        for start in range(num_kept, len(text), CHUNK):
            positions = text[start : start + CHUNK]
            num_keys = int(positions[-1]) + 1
            layout = prompt_layout(is_image[:num_keys], len(positions), self._device)
            embeddings_QH = self._model.decoder.get_input_embeddings()(self._tensor(prompt.ids[positions]))
            logits_1V = self._read_chunk(embeddings_QH, positions, layout, None)
            yield Read(logits_1V[0], num_cached) if positions[-1] == text[-1] else None

    def _read_in_order(self, prompt: Prompt, is_image: npt.NDArray[np.bool_], trace: Trace) -> Iterator[Read | None]:
        model, length = self._model, len(prompt.ids)
        prefix, shared = (None, 0) if self._images else self._cache.prefix(trace)
        num_kept = min(shared, length - 1)
        num_kept = min([num_kept, *(slot for slot in prompt.slots if slot < num_kept < slot + model.image_tokens)])
        self._restore(prefix, num_kept)
        embeddings_QH = model.decoder.get_input_embeddings()(self._tensor(prompt.ids))
        for slot, tile_3SS in zip(prompt.slots, prompt.images, strict=True):
            if slot >= num_kept:
                features_QH = model.encode(tile_3SS[None].to(self._device))[0]
                embeddings_QH[slot : slot + model.image_tokens] = features_QH.to(embeddings_QH.dtype)
                yield None
        for start in range(num_kept, length, CHUNK):
            positions = np.arange(start, min(start + CHUNK, length))
            num_keys = int(positions[-1]) + 1
            layout, mask_1K = None, None
            if model.uses_layout:
                is_image_1K = model.attended_as_images(torch.from_numpy(is_image[None, :num_keys]).to(self._device))
                layout = build_layout(is_image_1K, num_queries=len(positions))
            else:
                mask_1K = torch.ones(1, num_keys, dtype=torch.int64, device=self._device)
            logits_1V = self._read_chunk(embeddings_QH[start:num_keys], positions, layout, mask_1K)
            yield Read(logits_1V[0], num_kept) if num_keys == length else None

    def _read_chunk(
        self,
        embeddings_QH: torch.Tensor,
        positions: npt.NDArray[np.int64],
        layout: AttentionLayout | None,
        mask_1K: torch.Tensor | None,
    ) -> torch.Tensor:
        """The logits [1, V] after the last of these positions of the prompt that joins."""
        num_keys, positions_Q = int(positions[-1]) + 1, self._tensor(positions)
        store = PromptWrite(
            slots=self._joining,
            row=0,
            positions_Q=positions_Q,
            num_before=num_keys - len(positions),
            num_keys=num_keys,
        )
        return self._forward(embeddings_QH[None], positions_Q[None], store, layout, mask_1K)

    def _forward(
        self,
        embeddings_BQH: torch.Tensor,
        positions_BQ: torch.Tensor,
        store: KeyValueStore,
        layout: AttentionLayout | None,
        mask_BK: torch.Tensor | None,
    ) -> torch.Tensor:
        """The logits [B, V] after the last new token of each row."""
        decoder = self._model.decoder
        arguments: dict[str, object] = {"attention_mask": mask_BK}
        if layout is not None:
            arguments["attention_layout"] = layout
        if self._takes_positions:
            arguments["position_ids"] = positions_BQ
        arguments[self._cache_argument] = own_cache(store, decoder.config.num_hidden_layers)
        hidden_BQH = decoder.base_model(inputs_embeds=embeddings_BQH, use_cache=True, **arguments).last_hidden_state
        return finish_logits(decoder.config, decoder.get_output_embeddings()(hidden_BQH[:, -1]))

    def _add_row(self, is_image: npt.NDArray[np.bool_], trace: Trace) -> None:
        """The prompt that was read becomes the last row."""
        row, length = len(self._traces), len(trace)
        self._reserve(length + 1)
        self._slots.move(self._joining, 0, row, length)
        self._is_image_BP[row, :length] = torch.from_numpy(is_image).to(self._device)
        self._traces.append(trace.tolist())

    def _keep(self, slots: Slots, row: int, trace: Trace) -> None:
        """Keep what a row has read; images are kept apart where they can be placed anywhere."""
        positions = np.arange(len(trace)) if self._images is None else np.flatnonzero(trace >= 0)
        states = slots.take(row, self._tensor(positions))
        self._cache.add_prefix(Prefix(trace=trace, positions=positions, states=states))

    def _restore(self, prefix: Prefix | None, num_kept: int) -> None:
        """Copy the first tokens of a kept sequence into the prompt that joins."""
        if prefix is not None and num_kept:
            positions_Q = self._tensor(prefix.positions[:num_kept])
            self._joining.put(0, positions_Q, prefix.states.first(num_kept))

    def _reserve(self, positions: int) -> None:
        self._slots.reserve(positions)
        reserved = self._is_image_BP.shape[1]
        if reserved < positions:
            more = torch.zeros(self._num_rows, positions, dtype=torch.bool, device=self._device)  # doubles the memory
            self._is_image_BP = torch.cat([self._is_image_BP, more], dim=1)

    def _tensor(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)
