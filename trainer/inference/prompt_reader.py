"""Reads prompts into a memory of keys and values, several at once, in pieces.

- With an ImageReader (MMCA): keys and values of each tile are taken from the cache, or from a forward over the tile;
  they are placed, and then the text is read, whose queries see them.
- Without: tiles are encoded, and all positions are read in order.
Either way what a kept sequence has in common with the beginning of a prompt is copied from it.

Queries are padded on the left, so that the last one of each prompt is the last of its row.

Shapes: B prompts, T positions, Q queries, K keys, M queries that are not padding, N tiles, S side in pixels, H hidden
size, V vocabulary.
"""

# ruff: noqa: N803, N806, N815 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from trainer.attention.layout import AttentionLayout, build_layout
from trainer.attention.text_queries import prompt_layout
from trainer.inference.image_states import ImageReader
from trainer.inference.joining import Joining, RowBeginning
from trainer.inference.next_logits import NextLogits
from trainer.inference.rows import Read
from trainer.inference.slots import PromptWrite, Slots, States
from trainer.inference.state_cache import StateCache
from trainer.model.vision_chat import VisionChatModel


class PromptReader:
    """Reads prompts with one model. images: None to read images with the text around them."""

    def __init__(
        self, model: VisionChatModel, device: torch.device, *, cache: StateCache, images: ImageReader | None
    ) -> None:
        self._model, self._device, self._cache, self._images = model, device, cache, images
        self._forward = NextLogits(model)

    def places_images_of(self, joining: Joining) -> bool:
        """Whether the images of a prompt are read apart from its text; its last token must be text."""
        return self._images is not None and not joining.is_image[-1]

    def start_of(self, joining: Joining, longest: int) -> int:
        """Where a prompt begins in its row of the memory, if the longest of its group has this many positions."""
        return 0 if self.places_images_of(joining) else longest - joining.length

    def num_new(self, joining: Joining) -> int:
        """How many tokens are read in the forward that gives the logits."""
        if self.places_images_of(joining):
            return len(joining.text) - joining.kept_text
        return joining.length - joining.kept_in_order

    def read(
        self, group: Sequence[Joining], slots: Slots, *, first_row: int = 0, piece: int
    ) -> Iterator[list[Read] | None]:
        """Read prompts that are all read in the same way into consecutive rows of a memory.

        piece: most tokens of a forward. Each step computes one piece; the last gives what was read of each prompt. What
        the prompts share with kept sequences is copied in the first step.
        """
        slots.reserve(max(joining.length for joining in group))
        if self._images is not None and self.places_images_of(group[0]):
            return self._read_around_images(group, slots, first_row, self._images, piece)
        return self._read_in_order(group, slots, first_row, piece)

    def _read_around_images(
        self, group: Sequence[Joining], slots: Slots, first_row: int, images: ImageReader, piece: int
    ) -> Iterator[list[Read] | None]:
        cached = [joining.kept_text for joining in group]
        for row, joining in enumerate(group):
            if joining.beginning is not None and joining.kept_text:
                text = joining.text[: joining.kept_text]
                slots.put(first_row + row, self._tensor(text), joining.beginning.take(text))
        unknown = self._place_known(group, slots, first_row, images, cached)
        at_once = max(1, piece // self._model.image_tokens)
        digests = list(unknown)
        for start in range(0, len(digests), at_once):
            tiles = [unknown[digest] for digest in digests[start : start + at_once]]
            features_NQH = images.encode(torch.stack([tile.pixels_3SS for tile in tiles]))
            parts = []
            for features_QH in torch.split(features_NQH.flatten(0, 1), piece):
                yield None
                parts.append(images.read(features_QH))
            for tile, states in zip(tiles, States.joined(parts).split(self._model.image_tokens), strict=True):
                self._cache.add_image(tile.digest, states, others=len(tile.places) - 1)
                for row, slot in tile.places:
                    self._place(slots, first_row + row, slot, images.placed(states, slot))
            yield None
        news = [joining.text[joining.kept_text :] for joining in group]
        longest = max(map(len, news))
        for start, end in _pieces(longest, len(group), piece):
            queries = [new[max(0, start + len(new) - longest) : max(0, end + len(new) - longest)] for new in news]
            logits_BV = self._read_text(group, queries, end - start, slots, first_row)
            yield list(map(Read, logits_BV, cached)) if end == longest else None

    def _place_known(
        self, group: Sequence[Joining], slots: Slots, first_row: int, images: ImageReader, cached: list[int]
    ) -> dict[bytes, _UnknownTile]:
        """Place the tiles that are kept somewhere. Adds their tokens to `cached`; returns the others, by digest."""
        size = self._model.image_tokens
        unknown: dict[bytes, _UnknownTile] = {}
        for row, joining in enumerate(group):
            for slot, digest, tile_3SS in zip(
                joining.prompt.slots, joining.digests, joining.prompt.images, strict=True
            ):
                if digest in unknown:
                    unknown[digest].places.append((row, slot))
                    continue
                if isinstance(joining.beginning, RowBeginning) and slot + size <= joining.shared:
                    self._cache.count(hits=1)
                    states = joining.beginning.take(np.arange(slot, slot + size))
                else:
                    kept = self._cache.image(digest)
                    if kept is None:
                        unknown[digest] = _UnknownTile(digest, tile_3SS, [(row, slot)])
                        continue
                    states = images.placed(kept, slot)
                self._place(slots, first_row + row, slot, states)
                cached[row] += size
        return unknown

    def _place(self, slots: Slots, row: int, slot: int, states: States) -> None:
        slots.put(row, slice(slot, slot + self._model.image_tokens), states)

    def _read_text(
        self,
        group: Sequence[Joining],
        queries: Sequence[npt.NDArray[np.int64]],
        width: int,
        slots: Slots,
        first_row: int,
    ) -> torch.Tensor:
        """The logits [B, V] after the last of these positions of each prompt."""
        ids_BQ, positions_BQ = np.zeros((2, len(group), width), np.int64)
        for row, (joining, positions) in enumerate(zip(group, queries, strict=True)):
            ids_BQ[row, width - len(positions) :] = joining.prompt.ids[positions]
            positions_BQ[row, width - len(positions) :] = positions
        num_keys = int(positions_BQ[:, -1].max()) + 1
        layout = prompt_layout(
            [joining.is_image for joining in group],
            queries,
            num_queries=width,
            num_keys=num_keys,
            device=self._device,
        )
        embeddings_BQH = self._model.decoder.get_input_embeddings()(self._tensor(ids_BQ))
        lengths = [len(positions) for positions in queries]
        store = self._write(slots, first_row, lengths, width, np.concatenate(queries), num_keys)
        return self._forward(embeddings_BQH, self._tensor(positions_BQ), store, layout=layout)

    def _read_in_order(
        self, group: Sequence[Joining], slots: Slots, first_row: int, piece: int
    ) -> Iterator[list[Read] | None]:
        longest = max(joining.length for joining in group)
        kept = [joining.kept_in_order for joining in group]
        starts = np.array([longest - joining.length for joining in group])
        for row, joining in enumerate(group):
            if joining.beginning is not None and kept[row]:
                states = joining.beginning.take(np.arange(kept[row]))
                slots.put(first_row + row, slice(int(starts[row]), int(starts[row]) + kept[row]), states)
        width = max(self.num_new(joining) for joining in group)
        ids_BQ = np.zeros((len(group), width), np.int64)
        for row, joining in enumerate(group):
            new = joining.prompt.ids[kept[row] :]
            ids_BQ[row, width - len(new) :] = new
        embeddings_BQH = self._model.decoder.get_input_embeddings()(self._tensor(ids_BQ))
        yield from self._encode_new(group, kept, embeddings_BQH, piece)
        is_image_BK = np.zeros((len(group), longest), np.bool_)
        for row, joining in enumerate(group):
            is_image_BK[row, starts[row] :] = joining.is_image
        for start, end in _pieces(width, len(group), piece):
            columns = np.arange(longest - width + start, longest - width + end)
            lengths = [min(end - start, end - width + self.num_new(joining)) for joining in group]
            store = self._write(
                slots,
                first_row,
                [max(0, length) for length in lengths],
                end - start,
                np.concatenate([columns[len(columns) - max(0, length) :] for length in lengths]),
                int(columns[-1]) + 1,
            )
            mask_BK = self._tensor((np.arange(store.num_keys) >= starts[:, None]).astype(np.int64))
            layout: AttentionLayout | None = None
            if self._model.uses_layout:
                images_BK = self._model.attended_as_images(self._tensor(is_image_BK[:, : store.num_keys]))
                layout = build_layout(images_BK, mask_BK, num_queries=len(columns))
            positions_BQ = self._tensor(np.maximum(columns - starts[:, None], 0))
            logits_BV = self._forward(embeddings_BQH[:, start:end], positions_BQ, store, layout=layout, mask_BK=mask_BK)
            yield list(map(Read, logits_BV, kept)) if end == width else None

    def _encode_new(
        self, group: Sequence[Joining], kept: Sequence[int], embeddings_BQH: torch.Tensor, piece: int
    ) -> Iterator[None]:
        """Write the embeddings of the tiles that are read to their places among the queries."""
        size, width = self._model.image_tokens, embeddings_BQH.shape[1]
        places: dict[bytes, list[tuple[int, int]]] = {}
        tiles: dict[bytes, torch.Tensor] = {}
        for row, joining in enumerate(group):
            for slot, digest, tile_3SS in zip(
                joining.prompt.slots, joining.digests, joining.prompt.images, strict=True
            ):
                if slot >= kept[row]:
                    places.setdefault(digest, []).append((row, slot - joining.length + width))
                    tiles[digest] = tile_3SS
            num_kept = sum(slot < kept[row] for slot in joining.prompt.slots)
            self._cache.count(hits=num_kept, misses=len(joining.prompt.slots) - num_kept)
        digests, at_once = list(tiles), max(1, piece // size)
        for start in range(0, len(digests), at_once):
            some = digests[start : start + at_once]
            features_NQH = self._model.encode(torch.stack([tiles[digest] for digest in some]).to(self._device))
            for digest, features_QH in zip(some, features_NQH.to(embeddings_BQH.dtype), strict=True):
                for row, column in places[digest]:
                    embeddings_BQH[row, column : column + size] = features_QH
            yield None

    def _write(
        self,
        slots: Slots,
        first_row: int,
        lengths: Sequence[int],
        width: int,
        positions_M: npt.NDArray[np.int64],
        num_keys: int,
    ) -> PromptWrite:
        """The store of a forward of which each row has some last queries, at these positions row after row."""
        return PromptWrite(
            slots=slots,
            first_row=first_row,
            batch=len(lengths),
            rows_M=self._tensor(np.repeat(np.arange(len(lengths)), lengths)),
            queries_M=self._tensor(np.concatenate([np.arange(width - length, width) for length in lengths])),
            positions_M=self._tensor(positions_M),
            num_before=num_keys - width,
            num_keys=num_keys,
        )

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


class _UnknownTile(NamedTuple):
    """A tile that is read, and where the prompts of a group show it: rows and positions."""

    digest: bytes
    pixels_3SS: torch.Tensor
    places: list[tuple[int, int]]


def _pieces(width: int, num_rows: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns with at most this many tokens in all rows together, or one column."""
    step = max(1, most_tokens // num_rows)
    for start in range(0, width, step):
        yield start, min(start + step, width)
