"""How full training sequences will be: packed by best fit, and padded for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards import Build, ShardError
from shards.sampling.packed_sequences import WINDOW
from shards.sampling.packing import best_fit

PADDED_BATCH = 16
"""Rows that are padded to the longest of them where nothing is packed."""

_MOST_WINDOWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RowUse:
    """Shares of row positions that hold a sample, over `samples` of an epoch's `epoch_samples`.

    packed: rows of max_length. padded: a row a sample, batches of 16 as long as their longest. too_long: samples that
    no row can hold; they are left out of the rest.
    """

    max_length: int
    epoch_samples: int
    samples: int
    too_long: int
    rows: int
    packed: float
    padded: float


def row_use(build: Build, max_length: int) -> RowUse | None:
    """Pack an epoch's windows, or 64 evenly spread ones of a bigger epoch, as the loader does. None without samples."""
    try:
        order = build.order()
    except ShardError:
        return None
    image_tokens = build.manifest.config.image_tokens
    starts = np.arange(0, len(order), WINDOW)
    if len(starts) > _MOST_WINDOWS:
        starts = starts[np.linspace(0, len(starts) - 1, _MOST_WINDOWS).astype(int)]
    samples = too_long = rows = filled = padded = 0
    for start in starts.tolist():
        part = order.samples(0, start, min(start + WINDOW, len(order)))
        lengths, images = build["train"].lengths(part, image_tokens)
        fit = lengths <= max_length
        samples += len(lengths)
        too_long += int((~fit).sum())
        lengths, images = lengths[fit], images[fit]
        filled += int(lengths.sum())
        rows += len(best_fit(lengths.tolist(), images.tolist(), max_length=max_length))
        for batch in range(0, len(lengths), PADDED_BATCH):
            some = lengths[batch : batch + PADDED_BATCH]
            padded += len(some) * int(some.max())
    return RowUse(
        max_length=max_length,
        epoch_samples=len(order),
        samples=samples,
        too_long=too_long,
        rows=rows,
        packed=filled / (rows * max_length) if rows else 0.0,
        padded=filled / padded if padded else 0.0,
    )


def row_use_text(use: RowUse) -> str:
    """One line for people."""
    part = "an epoch" if use.samples == use.epoch_samples else f"{use.samples:,} of an epoch's samples"
    text = (
        f"rows of {use.max_length:,} positions: {use.packed:.1%} used when packed, {use.samples - use.too_long:,} "
        f"samples in {use.rows:,} rows ({part}); {use.padded:.1%} when padded in batches of {PADDED_BATCH}"
    )
    return text + (f"; {use.too_long:,} samples are too long: the loader refuses such rows" if use.too_long else "")
