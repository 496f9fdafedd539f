"""Megatron-Energon over a build's tars, after its own `prepare`: a cooker, its shuffle, its batches and its loader."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from megatron import energon

import harness
from preprocessing import Preprocess


def prepare(task: harness.Task) -> None:
    command = [str(Path(sys.executable).with_name("energon")), "prepare", f"{task.data}/{task.build}/shards"]
    splits = ["--split-parts=train:.*/train-.*", "--sample-type=CrudeWebdataset"]
    subprocess.run([*command, *splits, "--non-interactive", "--force-overwrite", "--num-workers=1"], check=True)


def batches(task: harness.Task, preprocess: Preprocess) -> Iterable[Any]:
    def decoded(sample: dict[str, Any]) -> harness.Sample:
        return sample["tokens.npy"], [preprocess(sample[name]) for name in sample if name[0].isdigit()]

    def stored(sample: dict[str, Any]) -> harness.Sample:
        tokens = np.load(io.BytesIO(sample["tokens.npy"]))
        return tokens, [sample[name] for name in sample if name[0].isdigit()]

    encoder = energon.DefaultTaskEncoder()
    encoder.decoder = energon.SampleDecoder(image_decode="pilrgb") if task.mode == "full" else None
    encoder.cookers = [energon.Cooker(energon.stateless(decoded if task.mode == "full" else stored))]
    encoder.batch = energon.stateless(harness.collate)
    dataset = energon.get_train_dataset(
        f"{task.data}/{task.build}/shards",
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=task.workers),
        batch_size=task.batch_size,
        shuffle_buffer_size=100,
        max_samples_per_sequence=100,
        task_encoder=encoder,
        repeat=False,
    )
    loader: Iterable[Any] = energon.get_loader(dataset)
    return loader


if __name__ == "__main__":
    harness.main(batches, prepare)
