"""The sequences of a run: windows of the order, packed, and one number that says where to resume."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from shards import ShardError, SplitSamples
from shards.sampling.dataset_draws import Draws
from shards.sampling.order import Order, StoredOrder
from shards.sampling.packed_sequences import WINDOW, AnyOrder, PackedSequence, PackedSequences
from tests.support import handmade_builds, oracles_order
from tests.support.handmade_builds import draft

MAX_LENGTH = 30
IMAGE_TOKENS = 4


class Lengths:
    """Only what sequences ask of a split."""

    has_tiles = False

    def __init__(self, text: Sequence[int], images: Sequence[int]) -> None:
        self.text, self.images = np.array(text, np.int64), np.array(images, np.int64)

    def __len__(self) -> int:
        return len(self.text)

    def lengths(
        self, indices: npt.NDArray[np.int64], image_tokens: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return self.text[indices] + self.images[indices] * image_tokens, self.images[indices]

    def length(self, sample: int) -> int:
        return int(self.text[sample] + self.images[sample] * IMAGE_TOKENS)


def sequences_of(
    split: Lengths | SplitSamples,
    order: AnyOrder,
    *,
    window: int = 8,
    packed: bool = True,
    max_images: int | None = None,
    key: object = "key",
    max_length: int = MAX_LENGTH,
) -> PackedSequences:
    return PackedSequences(
        cast(SplitSamples, split),
        order,
        key=key,
        image_tokens=IMAGE_TOKENS,
        max_length=max_length,
        max_images=max_images,
        packed=packed,
        window=window,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What sequences depend on."""

    split: Lengths
    order: AnyOrder
    window: int
    packed: bool
    max_images: int | None

    def sequences(self) -> PackedSequences:
        """New ones, which remember nothing."""
        return sequences_of(self.split, self.order, window=self.window, packed=self.packed, max_images=self.max_images)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    samples = draw(st.lists(st.tuples(st.integers(1, 18), st.integers(0, 3)), min_size=1, max_size=40))
    split = Lengths([text for text, _ in samples], [images for _, images in samples])
    draws = draw(st.integers(1, 2 * len(samples)))
    shuffled = Order([Draws("one", (len(samples),), draws)], key="order")
    return Run(
        split=split,
        order=shuffled if draw(st.booleans()) else StoredOrder(len(samples)),
        window=draw(st.sampled_from([1, 3, 8, 1000])),
        packed=draw(st.booleans()),
        max_images=draw(st.sampled_from([None, 3, 4])),
    )


def windows_of(sequences: PackedSequences, length: int, epochs: int) -> list[PackedSequence]:
    """All sequences, window after window."""
    starts = range(0, length, sequences.size)
    return [sequence for epoch in range(epochs) for start in starts for sequence in sequences.window(epoch, start)]


@given(runs(), st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_sequences_taken_in_any_portions_are_the_windows_end_to_end(run: Run, portions: list[int]) -> None:
    expected = windows_of(run.sequences(), len(run.order), 3)
    sequences, position, got = run.sequences(), 0, list[PackedSequence]()
    while len(got) < len(expected):
        for portion in (*portions, 1):
            taken, position = sequences.take(position, portion, epochs=3)
            assert len(taken) == min(portion, len(expected) - len(got))
            got += taken
    assert got == expected
    assert position == 3 * len(run.order)
    assert sequences.take(position, 5, epochs=3) == ([], position)


@given(runs(), st.data())
def test_a_run_resumes_exactly_where_its_cursor_says(run: Run, data: st.DataObject) -> None:
    expected = windows_of(run.sequences(), len(run.order), 2)
    portion = data.draw(st.integers(0, len(expected)))
    first, position = run.sequences().take(0, portion)
    rest, _ = run.sequences().take(position, len(expected) - portion)
    assert first + rest == expected


@given(runs())
def test_positions_only_rise_and_the_end_of_an_epoch_is_the_start_of_the_next(
    run: Run,
) -> None:
    sequences, length = run.sequences(), len(run.order)
    in_epoch = len(windows_of(sequences, length, 1))
    positions = [0]
    for _ in range(in_epoch):
        positions.append(sequences.take(positions[-1], 1)[1])
    assert all(one < other for one, other in pairwise(positions))
    assert positions[-1] == length
    assert sequences.take(0, in_epoch)[1] == length


@given(runs())
def test_an_epoch_is_whole_sequences_that_hold_every_drawn_sample_once(
    run: Run,
) -> None:
    sequences = run.sequences()
    position = 0
    for epoch in range(3):
        taken, position = sequences.take(position, 10**6, epochs=epoch + 1)
        assert position == (epoch + 1) * len(run.order)
        drawn = Counter(run.order.samples(epoch, 0, len(run.order)).tolist())
        assert Counter(sample for sequence in taken for sample in sequence) == drawn
        for sequence in taken:
            assert sequence
            assert sum(run.split.length(sample) for sample in sequence) <= MAX_LENGTH
            assert run.max_images is None or sum(run.split.images[list(sequence)]) <= run.max_images
            assert run.packed or len(sequence) == 1


@given(runs(), st.data())
def test_a_window_is_the_same_in_whatever_order_windows_are_asked_for(run: Run, data: st.DataObject) -> None:
    sequences, length = run.sequences(), len(run.order)
    asked = [(epoch, start) for epoch in range(3) for start in range(0, length, sequences.size)][:20]
    once = {window: list(sequences.window(*window)) for window in asked}
    other = run.sequences()
    for window in data.draw(st.permutations(asked)):
        assert other.window(*window) == once[window]
    for window in asked:
        assert sequences.window(*window) == once[window]


def test_taking_sequences_does_not_change_the_window_they_come_from() -> None:
    sequences = sequences_of(Lengths([10] * 20, [0] * 20), StoredOrder(20))
    before = list(sequences.window(0, 0))
    taken, _ = sequences.take(0, 100, epochs=1)
    taken[0] = (99,)
    taken.append((98,))
    assert sequences.window(0, 0) == before


@given(runs())
def test_packed_windows_hold_the_sequences_of_best_fit(run: Run) -> None:
    split, order = run.split, run.order
    sequences = replace(run, packed=True).sequences()
    for start in range(0, len(order), sequences.size):
        numbers = order.samples(1, start, min(start + sequences.size, len(order))).tolist()
        best = oracles_order.best_fit_decreasing(
            [split.length(sample) for sample in numbers],
            [int(split.images[sample]) for sample in numbers],
            max_length=MAX_LENGTH,
            max_images=run.max_images,
        )
        expected = [tuple(numbers[place] for place in sequence) for sequence in best]
        assert sorted(sequences.window(1, start)) == sorted(expected)


def test_the_sequences_of_a_window_are_shuffled_so_that_long_samples_do_not_come_first() -> None:
    lengths = list(range(1, 31)) * 8
    split = Lengths(lengths, [0] * len(lengths))
    actual = {
        tuple(sequences_of(split, StoredOrder(len(lengths)), window=240, key=key).window(epoch, 0))
        for key in ("one", "two")
        for epoch in range(3)
    }
    assert len(actual) == 6, "another key or epoch is another order of the sequences"
    assert len({tuple(sorted(sequences)) for sequences in actual}) == 1
    for sequences in actual:
        longest = [max(lengths[sample] for sample in sequence) for sequence in sequences]
        assert abs(np.corrcoef(np.arange(len(sequences)), longest)[0, 1]) < 0.4


def test_unpacked_sequences_are_the_samples_in_the_orders_order() -> None:
    split = Lengths([5, 6, 7, 8, 9], [0, 1, 2, 3, 0])
    order = Order([Draws("one", (5,), 12)], key=0)
    sequences, position = sequences_of(split, order, packed=False, window=4).take(0, 24)
    drawn = [*order.samples(0, 0, 12).tolist(), *order.samples(1, 0, 12).tolist()]
    assert [sample for (sample,) in sequences] == drawn
    assert position == 24


def test_sequences_run_on_for_ever_unless_epochs_end_them() -> None:
    sequences = sequences_of(Lengths([20] * 3, [0] * 3), StoredOrder(3))
    endless, position = sequences.take(0, 10)
    assert len(endless) == 10
    assert position == 10
    assert len(sequences.take(0, 10, epochs=2)[0]) == 6
    assert sequences.take(0, 10, epochs=0) == ([], 0)
    assert sequences.take(4, 0) == ([], 4)


def test_a_split_without_samples_has_no_sequences() -> None:
    assert sequences_of(Lengths([], []), StoredOrder(0)).take(0, 4, epochs=1) == ([], 0)


def test_wide_windows_fill_sequences() -> None:
    """What packing is for: at the default window hardly a position is padding."""
    text = np.random.default_rng(0).integers(20, 1000, 2 * WINDOW)
    split = Lengths(text.tolist(), [0] * len(text))
    sequences = sequences_of(split, StoredOrder(len(text)), window=WINDOW, max_length=2048).take(0, 10**6, epochs=1)[0]
    assert int(text.sum()) / (len(sequences) * 2048) > 0.99


# Over a build: samples of 12 text tokens and one image, one of them larger


@pytest.fixture
def split(tmp_path: Path) -> SplitSamples:
    made = handmade_builds.Handmade(tmp_path)
    made.add([draft(number) for number in range(5)])
    made.add([draft(5), draft(6, text=25), draft(7, num_images=3)])
    return shards.open(made.finish())["train"]


def test_sequences_count_a_placeholder_as_its_image(split: SplitSamples) -> None:
    sequences, _ = sequences_of(split, StoredOrder(8), max_length=32, max_images=3).take(0, 100, epochs=1)
    assert sorted(len(sequence) for sequence in sequences) == [1, 1, 2, 2, 2], (
        "12 + 4 positions a sample, two to a sequence"
    )
    assert sorted(sample for sequence in sequences for sample in sequence) == list(range(8))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("max_length", "max_images", "key", "problem"),
    [
        (28, None, "alpha-train-00006", "29 tokens, a sequence takes 28"),
        (29, 2, "alpha-train-00007", "3 images, a sequence takes 2"),
    ],
)
def test_a_sample_that_no_sequence_takes_is_named_with_its_shard(
    split: SplitSamples, packed: bool, max_length: int, max_images: int | None, key: str, problem: str
) -> None:
    sequences = sequences_of(split, StoredOrder(8), packed=packed, max_length=max_length, max_images=max_images)
    message = re.escape(f"{split.shard(1).name}: sample {key} has {problem}; raise the loader's limit, or set")
    with pytest.raises(ShardError, match=message):
        sequences.take(0, 4)


def test_samples_that_just_fit_are_taken(split: SplitSamples) -> None:
    sequences, _ = sequences_of(split, StoredOrder(8), max_length=29, max_images=3).take(0, 100, epochs=1)
    assert len(sequences) == 8
