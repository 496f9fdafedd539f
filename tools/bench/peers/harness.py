"""What every runner of tools/bench/loader.py shares: its task, padded batches, and the clock.

A runner is one library's way to read the samples, run in that library's own environment:

    python tools/bench/peers/by_webdataset.py '{"data": "...", "mode": "full", "workers": 0, ...}'

Its last line is JSON: samples and seconds, between a tenth and nine tenths of an epoch, where buffers neither fill nor
drain; first_batch_s, from after the imports; and if the task asks for memory, memory_mb (a worker's own) and rss_mb
(resident), both the peaks of one worker in the first and in the last quarter.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from preprocessing import PREPROCESS, Preprocess

IGNORE = -100

Sample = tuple[npt.NDArray[np.int32], Sequence[Any]]
"""Tokens int32 [2, T], and images: tensors in mode full, stored bytes in mode read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    data: str
    """Folder of the driver: coco/ and llava/ as downloaded, builds original/ and resized/, and what peers prepared."""
    mode: str
    """prepare: write what the library needs first. full: decode and preprocess. read: images stay bytes."""
    samples: int
    """Of an epoch; what a batch counts as, if the runner says so"""
    workers: int = 0
    batch_size: int = 16
    packed: bool = False
    """Ours alone: sequences of several samples. Then records count, of which a sample may have several."""
    preprocess: str = ""
    build: str = "original"
    decode: str = ""
    memory: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.data)


def main(batches: Callable[[Task, Preprocess], Iterable[Any]], prepare: Callable[[Task], None] | None = None) -> None:
    """Run the task in argv. `batches(task, preprocess)` gives an epoch's batches, each as collate() makes them."""
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    if task.mode != "prepare":
        preprocess = PREPROCESS[task.preprocess]()
        print(json.dumps(measure(lambda: batches(task, preprocess), task)))
    elif prepare is not None:
        prepare(task)


def measure(
    batches: Callable[[], Iterable[Any]],
    task: Task,
    count: Callable[[Any], int] = lambda batch: len(batch["input_ids"]),
) -> dict[str, Any]:
    """Read one epoch. Raises SystemExit if it has another number of samples, since rates would not compare."""
    peaks = [(0.0, 0.0)] * 4  # of each quarter
    marks: list[tuple[int, float]] = []  # (samples seen, seconds since the start) after each batch
    seen = 0
    start = time.perf_counter()
    for batch in batches():
        seen += count(batch)
        marks.append((seen, time.perf_counter() - start))
        if task.memory:
            own, resident = _worker_memory()
            quarter = min(4 * (seen - 1) // task.samples, 3)
            peaks[quarter] = (max(peaks[quarter][0], own), max(peaks[quarter][1], resident))
    if seen != task.samples:
        raise SystemExit(f"got {seen} samples in an epoch, expected {task.samples}")
    steady = [mark for mark in marks if task.samples // 10 <= mark[0] <= task.samples * 9 // 10]
    (first_seen, begin), (last_seen, end) = steady[0], steady[-1]
    result: dict[str, Any] = {"samples": last_seen - first_seen, "seconds": end - begin, "first_batch_s": marks[0][1]}
    if task.memory:
        result |= {name: [peaks[0][at], peaks[3][at]] for at, name in enumerate(("memory_mb", "rss_mb"))}
    return result


def collate(samples: Sequence[Sample]) -> Mapping[str, Any]:
    """Pad on the right. input_ids, labels, attention_mask: int64 [B, T]; images: [N, 3, 336, 336], or bytes."""
    width = max(tokens.shape[1] for tokens, _ in samples)
    ids = torch.zeros((len(samples), width), dtype=torch.int64)
    labels = torch.full((len(samples), width), IGNORE, dtype=torch.int64)
    mask = torch.zeros((len(samples), width), dtype=torch.int64)
    for row, (tokens, _) in enumerate(samples):
        length = tokens.shape[1]
        ids[row, :length], labels[row, :length] = torch.from_numpy(tokens.astype(np.int64))
        mask[row, :length] = 1
    images: Any = [image for _, images in samples for image in images]
    if images and isinstance(images[0], torch.Tensor):
        images = torch.stack(images)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "images": images}


def _worker_memory() -> tuple[float, float]:
    """(USS, RSS) in MB of the biggest worker, or of this process if it has none."""
    workers = [str(child.pid) for child in multiprocessing.active_children()] or ["self"]
    sizes = [(0.0, 0.0)]
    for worker in workers:
        try:
            text = Path(f"/proc/{worker}/smaps_rollup").read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        kilobytes = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
        own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        sizes.append((own * 1024 / 1e6, kilobytes["Rss"] * 1024 / 1e6))
    return max(own for own, _ in sizes), max(rss for _, rss in sizes)
