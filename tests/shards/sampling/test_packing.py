"""Packing: whole samples into few sequences, the same sequences for everybody."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards.sampling.packing import best_fit
from tests.support import oracles_order

LIMIT = 20
SAMPLES = st.lists(st.tuples(st.integers(0, LIMIT), st.integers(0, 3)), max_size=60)
MAX_IMAGES = st.none() | st.integers(3, 6)


@given(SAMPLES, MAX_IMAGES)
def test_every_sample_is_in_one_sequence_and_no_sequence_is_over_its_limits(
    samples: list[tuple[int, int]], max_images: int | None
) -> None:
    lengths, images = [length for length, _ in samples], [count for _, count in samples]
    sequences = best_fit(lengths, images, max_length=LIMIT, max_images=max_images)
    assert sorted(sample for sequence in sequences for sample in sequence) == list(range(len(samples)))
    assert all(sequence for sequence in sequences)
    for sequence in sequences:
        assert sum(lengths[sample] for sample in sequence) <= LIMIT
        assert max_images is None or sum(images[sample] for sample in sequence) <= max_images


@given(SAMPLES, MAX_IMAGES)
@example([(10, 0), (10, 0), (10, 0), (0, 0)], None)
@example([(12, 3), (11, 0), (8, 1), (9, 1), (8, 0)], 3)
def test_packing_equals_its_slow_twin(samples: list[tuple[int, int]], max_images: int | None) -> None:
    lengths, images = [length for length, _ in samples], [count for _, count in samples]
    actual = best_fit(lengths, images, max_length=LIMIT, max_images=max_images)
    assert actual == oracles_order.best_fit_decreasing(lengths, images, max_length=LIMIT, max_images=max_images)


@given(st.lists(st.integers(1, LIMIT), max_size=8))
@example([12, 12, 8, 8])
@example([11, 9, 10, 10, 7, 6, 7])
@example([6, 6, 6, 5, 5, 5, 4, 3])
def test_packing_needs_at_most_eleven_ninths_of_the_fewest_sequences_and_one(lengths: list[int]) -> None:
    got = len(best_fit(lengths, [0] * len(lengths), max_length=LIMIT))
    fewest = oracles_order.fewest_sequences(lengths, LIMIT)
    assert fewest >= math.ceil(sum(lengths) / LIMIT)
    assert fewest <= got <= 11 / 9 * fewest + 1


@given(SAMPLES, MAX_IMAGES)
def test_no_two_sequences_could_be_one(samples: list[tuple[int, int]], max_images: int | None) -> None:
    lengths, images = [length for length, _ in samples], [count for _, count in samples]
    samples_with_length = [sample for sample, length in enumerate(lengths) if length]
    lengths = [lengths[sample] for sample in samples_with_length]
    images = [images[sample] for sample in samples_with_length]
    sequences = best_fit(lengths, images, max_length=LIMIT, max_images=max_images)
    for number, sequence in enumerate(sequences):
        for other in sequences[:number]:
            assert not oracles_order.fits([*sequence, *other], lengths, images, LIMIT, max_images)


def test_a_sequences_samples_keep_their_order() -> None:
    assert best_fit([2, 3, 9, 5, 1], [0] * 5, max_length=20) == [[0, 1, 2, 3, 4]]
    assert best_fit([2, 12, 8, 10], [0] * 4, max_length=20) == [[1, 2], [0, 3]]


def test_a_sample_goes_to_the_fullest_sequence_that_takes_it() -> None:
    lengths = [15, 12, 11, 5]
    assert best_fit(lengths, [0] * 4, max_length=20) == [[0, 3], [1], [2]]
    assert best_fit(lengths, [2, 2, 1, 1], max_length=20, max_images=2) == [[0], [1], [2, 3]]


def test_a_sequence_full_of_images_still_takes_text() -> None:
    assert best_fit([10, 4, 3], [2, 0, 2], max_length=20, max_images=2) == [[0, 1], [2]]


def test_no_samples_give_no_sequences() -> None:
    assert best_fit([], [], max_length=20) == []
    assert best_fit([], [], max_length=20, max_images=0) == []


def test_samples_without_length_are_packed_too() -> None:
    assert best_fit([0, 0], [0, 0], max_length=20) == [[0, 1]]
    assert best_fit([0, 20], [1, 0], max_length=20, max_images=1) == [[1], [0]]


@pytest.mark.parametrize(
    ("lengths", "images", "max_images", "message"),
    [
        ([3, 21, 5], [0, 1, 0], None, "sample 1 has length 21 and 1 images; a sequence takes 20 and 1"),
        ([3, 4, 5], [0, 0, 4], 3, "sample 2 has length 5 and 4 images; a sequence takes 20 and 3"),
    ],
)
def test_a_sample_that_no_sequence_takes_is_named(
    lengths: list[int], images: list[int], max_images: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        best_fit(lengths, images, max_length=20, max_images=max_images)


def test_a_sample_that_just_fits_has_a_sequence_of_its_own() -> None:
    assert best_fit([20, 20], [3, 3], max_length=20, max_images=3) == [[0], [1]]
