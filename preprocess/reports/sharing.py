"""Samples of several records: how many records they have, how often each kind is drawn, and what sharing saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from preprocess.reports.histograms import histogram_table
from preprocess.reports.parts import Part
from preprocess.reports.tables import Table, Value
from shards import Build


def sharing_tables(build: Build, parts: Sequence[Part]) -> Iterator[Table]:
    """From manifest and indexes; none for a build whose samples have no branches."""
    if not build.manifest.has_branches:
        return
    values = {
        split: np.concatenate(records)
        for split in build.splits
        if (records := [part.records for part in parts if part.split == split])
    }
    yield histogram_table(
        "records", "Records of a sample", "How many samples have this many records.", values, unit="records of a sample"
    )
    yield _draws(build)


def _draws(build: Build) -> Table:
    """Of the datasets with branches, since an epoch draws from their samples by number of records."""
    rows: list[list[Value]] = []
    for name, info in build.manifest.datasets.items():
        shards = info.shards["train"]
        if shards.has_branches:
            draws = build.epoch_draws(name)
            rows += [
                [name, count, samples, draws[count], draws[count] / samples]
                for count, samples in shards.by_records.items()
            ]
    return Table(
        name="draws_by_records",
        title="Draws by number of records",
        text="An epoch draws samples with equally many records equally often. Where it draws none, no epoch shows "
        "these samples: it takes too few records of the dataset.",
        columns=("dataset", "records_each", "samples", "samples_drawn", "times_shown"),
        rows=rows,
    )
