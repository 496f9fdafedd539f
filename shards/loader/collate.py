"""Rows of samples as arrays that a model takes.

Shapes: B rows, T positions a row, N images in all. A placeholder becomes `image_tokens` positions that all hold its id.
Padding holds id 0, label -100, position 0, segment 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import ShardError
from shards.format.shard import Sample
from shards.loader.placeholders import expand

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Arrays:
    """What a batch of rows is written into; integers of any width."""

    input_ids: npt.NDArray[Any]
    """[B, T]"""
    labels: npt.NDArray[Any]
    """[B, T]: the id, or -100; a sample's first position is never learnt, since what it follows is another sample"""
    position_ids: npt.NDArray[Any]
    """[B, T], from 0 in each sample"""
    segment_ids: npt.NDArray[Any]
    """[B, T]: 1, 2, ... for a row's samples, 0 for padding"""
    image_slots: npt.NDArray[Any]
    """[N, 2]: row and first position of each image, in the order of rows, samples and placeholders"""


def collate(rows: Sequence[Sequence[Sample]], out: Arrays, *, image_id: int, image_tokens: int) -> None:
    """Fill `out`, whose T no row may exceed. Raises ShardError for a sample whose placeholders are not its images."""
    for array, padding in ((out.input_ids, 0), (out.labels, IGNORE), (out.position_ids, 0), (out.segment_ids, 0)):
        array.fill(padding)
    ascending = np.arange(out.input_ids.shape[1])
    slots: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        ids, labels = out.input_ids[number], out.labels[number]
        positions, segments = out.position_ids[number], out.segment_ids[number]
        start = 0
        for segment, sample in enumerate(row, start=1):
            expansion = expand(sample.ids, image_id=image_id, image_tokens=image_tokens)
            image_starts = expansion.image_starts.tolist()
            if len(image_starts) != len(sample.images):
                raise ShardError(
                    f"{sample.where} has {len(image_starts)} placeholders and {len(sample.images)} images; see "
                    "dsvl-prep verify"
                )
            expanded = expansion.apply(sample.ids)
            end = start + len(expanded)
            ids[start:end] = expanded
            labels[start:end] = expansion.apply(np.where(expansion.is_image, IGNORE, sample.labels))
            labels[start] = IGNORE
            positions[start:end] = ascending[: end - start]
            segments[start:end] = segment
            slots += [(number, start + image_start) for image_start in image_starts]
            start = end
    if slots:
        out.image_slots[:] = slots
