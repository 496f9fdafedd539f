"""How many records samples have, by their numbers in the build: the manifest says it, since a shard is sorted by it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shards import Build


class RecordCounts:
    """Runs of samples with equally many records. Memory: a few numbers for each shard."""

    def __init__(self, build: Build) -> None:
        counts, sizes = [1], [0]
        for split in build.splits:
            for dataset in build.manifest.datasets.values():
                for by_branches in dataset.shards[split].by_branches:
                    for count, samples in enumerate(by_branches, start=1):
                        counts.append(count)
                        sizes.append(samples)
        self._counts = np.array(counts, np.int64)
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def __call__(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Branches of samples, int64 [n]; 1 of a sample without branches. numbers: as preprocess.viewer.selection."""
        counts: npt.NDArray[np.int64] = self._counts[np.searchsorted(self._ends, numbers, side="right")]
        return counts
