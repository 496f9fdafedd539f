"""Samples with branches and the separate samples that they stand for, as batches of a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st

from shards import Sample
from shards.format.branches import join_branches
from shards.loader.collate import collate
from shards.loader.fields import FIELDS, IGNORE, BatchFields
from tests.support.model_batches import IMAGE, IMAGE_TOKENS, SIDE, random_images

Tokens = npt.NDArray[np.int32]


def sample_of(tokens: Tokens) -> Sample:
    """A sample with an image for each placeholder. tokens: int32 [2 or 3, S]."""
    images = [memoryview(b"") for _ in range(int((tokens[0] == IMAGE).sum()))]
    return Sample("shard.tar", "key", memoryview(b"{}"), tokens, images)


def separate(sample: Sample) -> list[Sample]:
    """Each branch as a sample of its own."""
    return [sample_of(np.stack([branch.of(sample.ids), branch.of(sample.labels)])) for branch in sample.branches]


@st.composite
def shared_samples(draw: st.DrawFn, *, most_branches: int = 4) -> Sample:
    """A beginning of text and up to two images, and branches whose last tokens are trained."""
    text = st.lists(st.integers(1, 90), max_size=3)
    beginning = draw(text)
    for _ in range(draw(st.integers(0, 2))):
        beginning += [IMAGE, *draw(text)]
    beginning = beginning or [7]
    records = []
    for _ in range(draw(st.integers(1, most_branches))):
        own = draw(st.lists(st.integers(1, 90), min_size=1, max_size=5))
        first_trained = draw(st.integers(0, len(own) - 1))
        labels = [IGNORE] * (len(beginning) + first_trained) + own[first_trained:]
        records.append(np.array([beginning + own, labels], np.int32))
    return sample_of(records[0] if len(records) == 1 else join_branches(records, len(beginning)))


def batch_of(sequences: Sequence[Sequence[Sample]], *, image_numbers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The tensors of packed sequences. image_numbers: which of some random images each image slot shows."""
    length = max(
        sum(len(sample.ids) + len(sample.images) * (IMAGE_TOKENS - 1) for sample in sequence) for sequence in sequences
    )
    sizes = {"B": len(sequences), "T": length, "N": len(image_numbers), "P": 0, "S": SIDE}
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.zeros([sizes[size] if isinstance(size, str) else size for size in field.shape], field.dtype)
        for name, field in FIELDS.items()
    }
    collate(sequences, BatchFields(**arrays), image_id=IMAGE, image_tokens=IMAGE_TOKENS)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    images = random_images(max(image_numbers, default=0) + 1)
    return {**tensors, "images": images[list(image_numbers)]}


def shared_and_separate(samples: Sequence[Sample]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One sequence of these samples, and the same records apart, two in a sequence."""
    shared_images, separate_images, records, start = [], [], list[Sample](), 0
    for sample in samples:
        numbers = list(range(start, start + len(sample.images)))
        start += len(numbers)
        shared_images += numbers
        for record in separate(sample):
            separate_images += numbers
            records.append(record)
    pairs = [records[number : number + 2] for number in range(0, len(records), 2)]
    return (
        batch_of([list(samples)], image_numbers=shared_images),
        batch_of(pairs, image_numbers=separate_images),
    )
