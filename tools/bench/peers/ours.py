"""Our loader, with the same batches of padded single samples as the others; its images leave as uint8."""

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
    print(json.dumps(measure(lambda: loader(task), task, count)))


def loader(task: Task) -> Loader:
    return Loader(
        shards.open(task.folder / task.build),
        batch_size=task.batch_size,
        max_length=4096,
        packed=False,
        workers=task.workers,
        epochs=1,
        decode="none" if task.mode == "read" else task.decode or "exact",  # type: ignore[arg-type]
    )


def count(batch: Batch) -> int:
    return sum(map(len, batch.samples))


if __name__ == "__main__":
    main()
