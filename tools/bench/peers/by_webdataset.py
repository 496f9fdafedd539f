"""webdataset over a build's tars: its shuffle, its decoders, its batches and its loader."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import webdataset as wds

import harness
from preprocessing import Preprocess


def batches(task: harness.Task, preprocess: Preprocess) -> Iterable[Any]:
    tars = sorted(str(path) for path in task.folder.glob(f"{task.build}/shards/*/train-*.tar"))

    def decoded(sample: dict[str, Any]) -> harness.Sample:
        return sample["tokens.npy"], [preprocess(sample[name]) for name in sample if name[0].isdigit()]

    def stored(sample: dict[str, Any]) -> harness.Sample:
        tokens = np.load(io.BytesIO(sample["tokens.npy"]))
        return tokens, [sample[name] for name in sample if name[0].isdigit()]

    dataset = wds.WebDataset(tars, shardshuffle=100, seed=0).shuffle(1000)
    dataset = dataset.decode("pilrgb").map(decoded) if task.mode == "full" else dataset.map(stored)
    dataset = dataset.batched(task.batch_size, collation_fn=harness.collate)
    loader: Iterable[Any] = wds.WebLoader(dataset, batch_size=None, num_workers=task.workers)
    return loader


if __name__ == "__main__":
    harness.main(batches)
