"""Slow, obvious twins of the order, packing and collating: lists, whole numbers, fractions, one element at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby

import xxhash

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 10
_LARGEST_TABLE = 4096


# Shuffles


def key_of(*parts: object) -> int:
    return int(xxhash.xxh3_64_hexdigest("\0".join(str(part) for part in parts).encode()), 16)


def mixed(value: int) -> int:
    """SplitMix64's finaliser (Steele et al., 2014)."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def table(size: int, key: int) -> list[int]:
    """The numbers sorted by a hash of each."""
    return sorted(range(size), key=lambda number: mixed(number * _GOLDEN + key))


def feistel(size: int, key: int, position: int) -> int:
    """Ten rounds over the bits of the largest element, again and again until the result is an element."""
    bits = max(2, len(f"{max(size - 1, 0):b}"))
    low_size, high_size = 1 << bits // 2, 1 << bits - bits // 2
    value = position
    while True:
        high, low = divmod(value, low_size)
        for number in range(_ROUNDS):
            round_key = mixed((number + 1) * _GOLDEN + key)
            if number % 2 == 0:
                high ^= mixed(low + round_key) % high_size
            else:
                low ^= mixed(high + round_key) % low_size
        value = high * low_size + low
        if value < size:
            return value


def permutation(size: int, key: int) -> list[int]:
    if size <= _LARGEST_TABLE:
        return table(size, key)
    return [feistel(size, key, position) for position in range(size)]


def block_permutation(blocks: Sequence[Sequence[int]], key: int, window: int) -> list[int]:
    """Blocks in random order, laid end to end, cut into windows, each window shuffled."""
    laid = [element for block in table(len(blocks), key_of(key, "blocks")) for element in blocks[block]]
    if window == 1:
        return laid
    actual = []
    for number, start in enumerate(range(0, len(laid), window)):
        part = laid[start : start + window]
        actual += [part[place] for place in permutation(len(part), key_of(key, number))]
    return actual


def shard_windows(
    blocks: Sequence[tuple[int, Sequence[int]]], *, width: int, order_key: int, key: int
) -> list[list[int]]:
    """The elements of each turn. blocks: numbers and elements. Each block is shuffled and cut, its parts dealt out."""
    width = min(width, max(1, len(blocks)))
    ordered = sorted(blocks, key=lambda block: mixed(block[0] * _GOLDEN + order_key))
    turns: list[list[int]] = [[] for _ in range(len(blocks) + width - 1)]
    for opened in range(len(ordered) - 1, -1, -1):
        number, elements = ordered[opened]
        shuffle = permutation(len(elements), key_of(key, "block", number))
        for part in range(width):
            start, stop = (border * len(elements) // width for border in (part, part + 1))
            turns[opened + part][:0] = [elements[place] for place in shuffle[start:stop]]
    return [
        [turn[place] for place in permutation(len(turn), key_of(key, "turn", number))]
        for number, turn in enumerate(turns)
    ]


# The order


def epochs_of(
    sources: Sequence[tuple[str, Sequence[int], int]], *, key: object, window: int | None, count: int, stripe: int
) -> list[list[int]]:
    """The first `count` epochs, each a list of samples. sources: name, samples of each shard, draws of an epoch."""
    turns = spread([draws for _, _, draws in sources])
    streams, offset = [], 0
    for name, blocks, draws in sources:
        drawn = dataset_epochs(blocks, draws, key=key_of(key, name), window=window, count=count)
        streams.append([[sample + offset for sample in epoch] for epoch in drawn])
        offset += sum(blocks)
    actual = []
    for epoch in range(count):
        waiting = [list(reversed(stream[epoch])) for stream in streams]
        samples: list[int] = []
        for number, start in enumerate(range(0, len(turns), stripe)):
            part = sorted(turns[start : start + stripe])
            shuffled = [part[place] for place in table(len(part), key_of(key, epoch, number))]
            samples += [waiting[dataset].pop() for dataset in shuffled]
        actual.append(samples)
    return actual


def spread(draws: Sequence[int]) -> list[int]:
    """Whose turn it is in an epoch before stripes are shuffled: draw k of n is at (2k + 1) / 2n."""
    marks = [(Fraction(2 * k + 1, 2 * n), dataset) for dataset, n in enumerate(draws) for k in range(n)]
    return [dataset for _, dataset in sorted(marks)]


def dataset_epochs(blocks: Sequence[int], draws: int, *, key: int, window: int | None, count: int) -> list[list[int]]:
    """What each epoch draws of one dataset: endless cycles of one shuffle, cut where an epoch ends.

    The shuffle is another one when an epoch and a cycle begin together again. Each piece within one cycle and
    one epoch is shuffled once more.
    """
    if not draws:
        return [[] for _ in range(count)]
    size = sum(blocks)
    shard_of = [shard for shard, samples in enumerate(blocks) for _ in range(samples)]
    stored = [[sample for sample in range(size) if shard_of[sample] == shard] for shard in range(len(blocks))]
    together_again = math.lcm(size, draws)
    actual = []
    for epoch in range(count):
        numbers = range(epoch * draws, (epoch + 1) * draws)
        samples: list[int] = []
        for _, together in groupby(numbers, key=lambda number: number // size):
            piece = list(together)
            base_key = key_of(key, "round", piece[0] // together_again)
            cycle = permutation(size, base_key) if window is None else block_permutation(stored, base_key, 1)
            shown = [cycle[number % size] for number in piece]
            piece_key = key_of(key, piece[0])
            if window is None:
                samples += [shown[place] for place in permutation(len(shown), piece_key)]
            else:
                parts = [list(part) for _, part in groupby(shown, key=lambda sample: shard_of[sample])]
                samples += block_permutation(parts, piece_key, window)
        actual.append(samples)
    return actual


# Packing


def best_fit_decreasing(
    lengths: Sequence[int], images: Sequence[int], *, max_length: int, max_images: int | None
) -> list[list[int]]:
    """Longest first; every sequence is looked at, and the fullest that has room is taken, the oldest of equals."""
    sequences: list[list[int]] = []

    def left(sequence: list[int]) -> int:
        return max_length - sum(lengths[sample] for sample in sequence)

    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        fitting = [
            sequence for sequence in sequences if fits([*sequence, sample], lengths, images, max_length, max_images)
        ]
        # A sequence without room is not looked at again, not even for a sample without length.
        fitting = [sequence for sequence in fitting if left(sequence) > 0]
        if fitting:
            min(fitting, key=left).append(sample)
        else:
            sequences.append([sample])
    return [sorted(sequence) for sequence in sequences]


def fits(
    sequence: Sequence[int], lengths: Sequence[int], images: Sequence[int], max_length: int, max_images: int | None
) -> bool:
    long = sum(lengths[sample] for sample in sequence)
    shown = sum(images[sample] for sample in sequence)
    return long <= max_length and (max_images is None or shown <= max_images)


def fewest_sequences(lengths: Sequence[int], max_length: int) -> int:
    """By trying every way to distribute the samples."""

    def least(sample: int, sequences: tuple[int, ...]) -> int:
        if sample == len(lengths):
            return len(sequences)
        actual = least(sample + 1, (*sequences, lengths[sample]))
        for number, used in enumerate(sequences):
            if used + lengths[sample] <= max_length:
                actual = min(
                    actual, least(sample + 1, (*sequences[:number], used + lengths[sample], *sequences[number + 1 :]))
                )
        return actual

    return least(0, ())


# Collating


@dataclass
class PaddedSequence:
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)
    first_positions: list[int] = field(default_factory=list)
    """Of each image"""


def padded_sequence(
    samples: Sequence[tuple[Sequence[int], Sequence[int], int]], *, length: int, image_id: int, image_tokens: int
) -> PaddedSequence:
    """samples: ids, labels and number of images of each. Written token by token."""
    sequence = PaddedSequence()
    for segment, (ids, labels, images) in enumerate(samples, start=1):
        position = 0
        for index, (token, label) in enumerate(zip(ids, labels, strict=True)):
            is_image = images > 0 and token == image_id
            if is_image:
                sequence.first_positions.append(len(sequence.input_ids))
            for _ in range(image_tokens if is_image else 1):
                sequence.input_ids.append(token)
                sequence.labels.append(-100 if position == 0 else label)
                sequence.position_ids.append(position)
                sequence.segment_ids.append(segment)
                position += 1
            assert position > index
    while len(sequence.input_ids) < length:
        sequence.input_ids.append(0)
        sequence.labels.append(-100)
        sequence.position_ids.append(0)
        sequence.segment_ids.append(0)
    return sequence
