"""How full training sequences will be: packed by best fit, and padded for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards import Build, ShardError
from shards.sampling.packed_sequences import WINDOW
from shards.sampling.packing import best_fit

PADDED_BATCH = 16
"""Sequences of a batch, padded to the longest of them, where nothing is packed"""

_MOST_WINDOWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingReport:
    """Shares of sequences' token indexes that hold a sample, over `samples` of an epoch's `epoch_samples`.

    packed: sequences of max_length. padded: a sequence per sample, batches of 16 as long as their longest. too_long:
    samples that no sequence can hold; they are left out of the rest.
    """

    max_length: int
    epoch_samples: int
    samples: int
    too_long: int
    sequences: int
    packed: float
    padded: float


def packing_report(build: Build, max_length: int) -> PackingReport | None:
    """Pack an epoch's windows, or 64 evenly spread ones of a bigger epoch, as the loader does. None without samples."""
    try:
        order = build.order()
    except ShardError:
        return None
    image_tokens = build.manifest.config.image_tokens
    starts = np.arange(0, len(order), WINDOW)
    if len(starts) > _MOST_WINDOWS:
        starts = starts[np.linspace(0, len(starts) - 1, _MOST_WINDOWS).astype(int)]
    samples = too_long = sequences = filled = padded = 0
    for start in starts.tolist():
        drawn = order.samples(0, start, min(start + WINDOW, len(order)))
        lengths, images = build["train"].lengths(drawn, image_tokens)
        fit = lengths <= max_length
        samples += len(lengths)
        too_long += int((~fit).sum())
        lengths, images = lengths[fit], images[fit]
        filled += int(lengths.sum())
        sequences += len(best_fit(lengths.tolist(), images.tolist(), max_length=max_length))
        for batch in range(0, len(lengths), PADDED_BATCH):
            padded_lengths = lengths[batch : batch + PADDED_BATCH]
            padded += len(padded_lengths) * int(padded_lengths.max())
    return PackingReport(
        max_length=max_length,
        epoch_samples=len(order),
        samples=samples,
        too_long=too_long,
        sequences=sequences,
        packed=filled / (sequences * max_length) if sequences else 0.0,
        padded=filled / padded if padded else 0.0,
    )


def packing_report_text(report: PackingReport) -> str:
    """One line for people."""
    share = "an epoch" if report.samples == report.epoch_samples else f"{report.samples:,} of an epoch's samples"
    text = (
        f"sequences of {report.max_length:,} tokens: {report.packed:.1%} used when packed, "
        f"{report.samples - report.too_long:,} samples in {report.sequences:,} sequences ({share}); "
        f"{report.padded:.1%} when padded in batches of {PADDED_BATCH}"
    )
    return text + (f"; {report.too_long:,} samples are too long: the loader refuses them" if report.too_long else "")
