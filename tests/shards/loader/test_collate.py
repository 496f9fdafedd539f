"""Rows of samples as arrays: placeholders expanded, samples kept apart, the rest padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards import Sample, ShardError
from shards.loader.collate import collate
from shards.loader.fields import IGNORE, BatchFields
from tests.support import oracles_order

IMAGE_ID = 5
UNWRITTEN = 77
"""What arrays hold before: it must be gone everywhere."""

Arrays = BatchFields[npt.NDArray[Any]]
TEXT_TOKEN = st.integers(6, 1000)


def sequence_length(sequence: Sequence[Sample], image_tokens: int) -> int:
    return sum(len(sample.ids) + len(sample.images) * (image_tokens - 1) for sample in sequence)


def sample(ids: Sequence[int], *, labels: Sequence[int] | None = None, num_images: int | None = None) -> Sample:
    """Labels of text: the ids, if none are given."""
    chosen = [IGNORE if token == IMAGE_ID else token for token in ids] if labels is None else labels
    images = ids.count(IMAGE_ID) if num_images is None else num_images
    tokens = np.array([ids, chosen], np.int32).reshape(2, -1)
    return Sample("shard.tar", f"key-{len(ids)}", memoryview(b"{}"), tokens, [memoryview(b"picture")] * images)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    ids = draw(st.lists(TEXT_TOKEN | st.just(IMAGE_ID), min_size=1, max_size=12))
    trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    labels = [token if one and token != IMAGE_ID else IGNORE for token, one in zip(ids, trained, strict=True)]
    return sample(ids, labels=labels)


@st.composite
def branched_samples(draw: st.DrawFn) -> Sample:
    """A beginning of text and images, and two to four branches of text."""
    beginning = draw(st.lists(TEXT_TOKEN | st.just(IMAGE_ID), min_size=1, max_size=6))
    own = draw(st.lists(st.lists(TEXT_TOKEN, min_size=1, max_size=4), min_size=2, max_size=4))
    ids = [*beginning, *(token for branch in own for token in branch)]
    labels = [IGNORE] * len(beginning) + ids[len(beginning) :]
    numbers = [0] * len(beginning) + [number for number, branch in enumerate(own, start=1) for _ in branch]
    images = [memoryview(b"picture")] * ids.count(IMAGE_ID)
    return Sample("shard.tar", "key", memoryview(b"{}"), np.array([ids, labels, numbers], np.int32), images)


SEQUENCES = st.lists(st.lists(samples(), max_size=4), max_size=4)


def unwritten(num_rows: int, length: int, num_images: int, dtype: npt.DTypeLike = np.int64) -> Arrays:
    shape = (num_rows, length)
    return BatchFields(
        input_ids=np.full(shape, UNWRITTEN, dtype),
        labels=np.full(shape, UNWRITTEN, dtype),
        position_ids=np.full(shape, UNWRITTEN, dtype),
        segment_ids=np.full(shape, UNWRITTEN, np.int32),
        branch_ids=np.full(shape, UNWRITTEN, np.int32),
        images=np.zeros((num_images, 3, 1, 1), np.uint8),
        image_slots=np.full((num_images, 2), UNWRITTEN, dtype),
    )


def collated(
    sequences: Sequence[Sequence[Sample]],
    *,
    image_tokens: int,
    length: int | None = None,
    dtype: npt.DTypeLike = np.int64,
) -> Arrays:
    longest = max((sequence_length(sequence, image_tokens) for sequence in sequences), default=0)
    num_images = sum(len(one.images) for sequence in sequences for one in sequence)
    out = unwritten(len(sequences), longest if length is None else length, num_images, dtype)
    collate(sequences, out, image_id=IMAGE_ID, image_tokens=image_tokens)
    return out


@given(SEQUENCES, st.integers(1, 5), st.integers(0, 6), st.sampled_from([np.int32, np.int64]))
@example([[sample([IMAGE_ID])], [], [sample([9]), sample([IMAGE_ID, IMAGE_ID])]], 3, 0, np.int64)
def test_arrays_equal_those_written_position_by_position(
    sequences: list[list[Sample]], image_tokens: int, padding: int, dtype: type[np.signedinteger[npt.NBitBase]]
) -> None:
    length = max((sequence_length(sequence, image_tokens) for sequence in sequences), default=0) + padding
    out = collated(sequences, image_tokens=image_tokens, length=length, dtype=dtype)
    expected = [
        oracles_order.padded_sequence(
            [(one.ids.tolist(), one.labels.tolist(), len(one.images)) for one in sequence],
            length=length,
            image_id=IMAGE_ID,
            image_tokens=image_tokens,
        )
        for sequence in sequences
    ]
    assert out.input_ids.tolist() == [sequence.input_ids for sequence in expected]
    assert out.labels.tolist() == [sequence.labels for sequence in expected]
    assert out.position_ids.tolist() == [sequence.position_ids for sequence in expected]
    assert out.segment_ids.tolist() == [sequence.segment_ids for sequence in expected]
    assert out.image_slots.tolist() == [
        [number, first] for number, sequence in enumerate(expected) for first in sequence.first_positions
    ]


@given(branched_samples(), samples(), st.integers(1, 5))
def test_every_branch_has_the_arrays_of_its_record_alone(branched: Sample, other: Sample, image_tokens: int) -> None:
    joined = collated([[other, branched, other]], image_tokens=image_tokens)
    start = sequence_length([other], image_tokens)
    branch_ids = joined.branch_ids[0, start : start + sequence_length([branched], image_tokens)]
    for number, branch in enumerate(branched.branches, start=1):
        tokens = np.stack([branch.of(branched.ids), branch.of(branched.labels)])
        record = Sample("shard.tar", "key", memoryview(b"{}"), tokens, branched.images)
        alone = collated([[record]], image_tokens=image_tokens)
        places = start + np.flatnonzero((branch_ids == 0) | (branch_ids == number))
        for name in ("input_ids", "labels", "position_ids"):
            assert getattr(joined, name)[0, places].tolist() == getattr(alone, name)[0].tolist()
    assert joined.segment_ids.max() == 3
    assert not joined.branch_ids[0, :start].any()
    assert joined.image_slots[len(other.images) :][: len(branched.images)].tolist() == [
        [0, start + slot] for _, slot in collated([[branched]], image_tokens=image_tokens).image_slots.tolist()
    ]


def test_a_sequence_of_two_samples_looks_like_this() -> None:
    sequence = [sample([11, IMAGE_ID, 12, 13], labels=[11, IGNORE, 12, 13]), sample([21, 22])]
    out = collated([sequence], image_tokens=3, length=10)
    assert out.input_ids.tolist() == [[11, 5, 5, 5, 12, 13, 21, 22, 0, 0]]
    assert out.labels.tolist() == [[-100, -100, -100, -100, 12, 13, -100, 22, -100, -100]]
    assert out.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 0, 0]]
    assert out.segment_ids.tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 0, 0]]
    assert not out.branch_ids.any()
    assert out.image_slots.tolist() == [[0, 1]]


def test_no_sample_learns_its_first_position_from_the_sample_before() -> None:
    sequences = [[sample([11, 12]), sample([13]), sample([14, 15])], [sample([16, 17])]]
    out = collated(sequences, image_tokens=2)
    assert out.labels.tolist() == [[-100, 12, -100, -100, 15], [-100, 17, -100, -100, -100]]


def test_the_samples_own_arrays_are_not_written_to() -> None:
    text_sample = sample([11, IMAGE_ID, 12])
    ids, labels = text_sample.ids.tolist(), text_sample.labels.tolist()
    text_sample.ids.flags.writeable = text_sample.labels.flags.writeable = False
    collated([[text_sample, text_sample]], image_tokens=2)
    assert (text_sample.ids.tolist(), text_sample.labels.tolist()) == (ids, labels)


def test_slots_follow_sequences_then_samples_then_placeholders() -> None:
    sequences = [
        [sample([IMAGE_ID, 11, IMAGE_ID]), sample([IMAGE_ID])],
        [sample([12])],
        [sample([13, IMAGE_ID, IMAGE_ID])],
    ]
    assert collated(sequences, image_tokens=4).image_slots.tolist() == [[0, 0], [0, 5], [0, 9], [2, 1], [2, 5]]


def test_an_image_of_one_token_stays_one_position() -> None:
    out = collated([[sample([IMAGE_ID, 11, IMAGE_ID, 12])]], image_tokens=1)
    assert out.input_ids.tolist() == [[5, 11, 5, 12]]
    assert out.position_ids.tolist() == [[0, 1, 2, 3]]
    assert out.image_slots.tolist() == [[0, 0], [0, 2]]


@pytest.mark.parametrize("length", [0, 4])
def test_sequences_without_samples_are_all_padding(length: int) -> None:
    out = collated([[], []], image_tokens=4, length=length)
    assert out.input_ids.tolist() == out.position_ids.tolist() == out.segment_ids.tolist() == [[0] * length] * 2
    assert out.labels.tolist() == [[IGNORE] * length] * 2


def test_no_sequences_give_no_arrays() -> None:
    assert collated([], image_tokens=4, length=6).input_ids.shape == (0, 6)


@pytest.mark.parametrize(
    ("ids", "num_images"),
    [([IMAGE_ID, 11, IMAGE_ID], 1), ([IMAGE_ID, 11], 2), ([11, 12], 1), ([11, IMAGE_ID], 0)],
    ids=["a placeholder too many", "an image too many", "no placeholder", "no image"],
)
def test_a_sample_whose_placeholders_are_not_its_images_is_named(ids: list[int], num_images: int) -> None:
    out = unwritten(1, 40, num_images)
    message = f"sample key-{len(ids)} has {ids.count(IMAGE_ID)} placeholders and {num_images} images"
    with pytest.raises(ShardError, match=message):
        collate([[sample(ids, num_images=num_images)]], out, image_id=IMAGE_ID, image_tokens=4)


@given(st.lists(samples(), max_size=4), st.integers(1, 5))
def test_the_length_of_a_sequence_is_what_collating_fills(sequence: list[Sample], image_tokens: int) -> None:
    out = collated([sequence], image_tokens=image_tokens, length=300)
    assert np.count_nonzero(out.segment_ids) == sequence_length(sequence, image_tokens)
