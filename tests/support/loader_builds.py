"""A build for tests of the loader, loaders over it, and what their batches say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import shards
from shards import Build
from shards.loader import Batch, Loader
from tests.support.small_blends import build as compile_blend
from tests.support.small_blends import chat_record, write_blend, write_chat, write_images

IMAGE_TOKENS = 4
SIDE = 32
LENGTH = 128
BATCH = 24  # divisible by 1, 2, 3, 4 and 8 ranks

CONFIG = {
    "image_tokens": 4,
    "limits": {"max_length": 64, "max_images": 3},
    "image": {"size": 32, "fit": "crop", "pad_colour": "clip", "interpolation": "bicubic", "max_pixels": 10**6},
}


def compiled(folder: Path, **image: Any) -> Build:
    """Two datasets, one drawn 2.5 times an epoch: text alone, and with up to two images; some held out."""
    names = write_images(folder / "seen", 30)
    write_chat(
        folder / "seen",
        [
            chat_record(number, images=names[number : number + number % 3], rounds=1 + number % 2)
            for number in range(30)
        ],
    )
    write_chat(folder / "text", [chat_record(number, rounds=1 + number % 4) for number in range(20)])
    blend = write_blend(
        folder / "blend.yaml",
        [
            {"name": "seen", "adapter": "chat", "root": "seen", "samples": "all"},
            {"name": "text", "adapter": "chat", "root": "text", "epochs": 2.5},
        ],
        image_tokens=IMAGE_TOKENS,
        limits={"max_length": LENGTH},
        image={"size": SIDE, **image},
        split={"eval": 0.25},
        shard={"max_samples": 8},
    )
    return shards.open(compile_blend(blend).path)


def loader(build: Build, **settings: Any) -> Loader:
    return Loader(build, **{"batch_size": BATCH, "max_length": LENGTH, **settings})


def some(build: Build, count: int, **settings: Any) -> list[Batch]:
    batches = iter(loader(build, **settings))
    return [next(batches) for _ in range(count)]


def said(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """All sequences of a global batch, whichever ranks hold them, as plain values; images with their sequence."""
    sequences = []
    for batch in batches:
        for sequence in range(len(batch.input_ids)):
            mine = batch.image_slots[:, 0] == sequence
            tensors = (batch.input_ids, batch.labels, batch.position_ids, batch.segment_ids)
            sequences.append(
                (
                    batch.samples[sequence],
                    *(tensor[sequence].tolist() for tensor in tensors),
                    batch.image_slots[mine, 1].tolist(),
                    batch.images[mine].tolist(),
                )
            )
    return sequences
