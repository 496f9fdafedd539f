"""Our loader, with the same batches of padded single samples as the others, or packed; its images leave as uint8."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

import shards
from harness import Task, measure
from shards.loader import Batch, Loader


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    print(json.dumps(measure(lambda: loader(task), task, count_records if task.packed else count)))


def loader(task: Task) -> Loader:
    return Loader(
        shards.open(task.folder / task.build),
        batch_size=task.batch_size,
        max_length=4096,
        packed=task.packed,
        workers=task.workers,
        epochs=1,
        decode="none" if task.mode == "read" else task.decode or "exact",  # type: ignore[arg-type]
    )


def count(batch: Batch) -> int:
    return sum(map(len, batch.samples))


def count_records(batch: Batch) -> int:
    """A sample of several records has a branch for each of them."""
    segments = batch.segment_ids.long()
    most = torch.zeros(len(segments), int(segments.max()) + 1, dtype=batch.branch_ids.dtype)
    most.scatter_reduce_(1, segments, batch.branch_ids, "amax")
    return int(sum(most[row, 1 : len(samples) + 1].clamp(min=1).sum() for row, samples in enumerate(batch.samples)))


if __name__ == "__main__":
    main()
