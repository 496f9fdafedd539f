"""Sequences of samples as arrays that a model takes: all of a batch but its pixels.

A placeholder becomes `image_tokens` tokens for each tile of its image; all hold its id. Shapes and padding as in
shards.loader.fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import ShardError
from shards.format.sample import Sample
from shards.loader.fields import FIELDS, IGNORE, BatchFields
from shards.sampling.placeholders import expand


def collate(
    sequences: Sequence[Sequence[Sample]], out: BatchFields[npt.NDArray[Any]], *, image_id: int, image_tokens: int
) -> None:
    """Fill `out`, whose T no sequence may exceed.

    Raises ShardError for a sample whose placeholders are not its images.
    """
    for name, field in FIELDS.items():
        if field.padding is not None:
            getattr(out, name).fill(field.padding)
    ascending = np.arange(out.input_ids.shape[1])
    slots: list[tuple[int, int]] = []
    for number, sequence in enumerate(sequences):
        ids, labels = out.input_ids[number], out.labels[number]
        positions, segments = out.position_ids[number], out.segment_ids[number]
        start = 0
        for segment, sample in enumerate(sequence, start=1):
            expansion = expand(sample.ids, image_id=image_id, image_tokens=image_tokens, grids=sample.stated_grids)
            if len(expansion.image_starts) != len(sample.images):
                raise ShardError(
                    f"{sample.where} has {len(expansion.image_starts)} placeholders and {len(sample.images)} images; "
                    "see dsvl-prep verify"
                )
            end = start + expansion.length
            expansion.write(sample.ids, ids[start:end], image_value=image_id)
            expansion.write(sample.labels, labels[start:end], image_value=IGNORE)
            labels[start] = IGNORE
            positions[start:end] = ascending[: end - start]
            segments[start:end] = segment
            if sample.branch_ids is not None:
                branches = out.branch_ids[number, start:end]
                expansion.write(sample.branch_ids, branches, image_value=0)
                _continue_positions(sample, branches, positions[start:end])
            slots += [(number, start + tile_start) for tile_start in expansion.tile_starts]
            start = end
    if slots:
        out.image_slots[:] = slots


def _continue_positions(sample: Sample, branches: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]) -> None:
    """Let the positions of every branch continue from the end of the beginning.

    Raises ShardError for branch numbers that are not in order: no attention is defined for them.
    """
    steps = np.diff(branches, prepend=0)
    starts = np.flatnonzero(steps)
    if len(starts) < 2 or starts[0] == 0 or (steps[starts] != 1).any():
        raise ShardError(f"{sample.where}: its branch numbers are not 0, 1, 2, ... in order; see dsvl-prep verify")
    lengths = np.diff(starts, append=len(positions))
    positions[starts[0] :] -= np.repeat(starts - starts[0], lengths)
