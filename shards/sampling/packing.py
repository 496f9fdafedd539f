"""Pack samples into sequences: whole samples whose lengths sum to at most max_length.

Rule: a pure function of lengths and limits, so that every process that packs a window finds the same sequences.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(
    lengths: Sequence[int], images: Sequence[int], *, max_length: int, max_images: int | None = None
) -> list[list[int]]:
    """Sequences of sample numbers, by best fit: longest first, each into the fullest sequence that still takes it.

    lengths, images: tokens and images of each sample; a sequence takes at most `max_images` images. Its samples keep
    their order. Raises ValueError for a sample that no sequence can take. Source: best fit decreasing (Johnson, 1973),
    which needs at most 11/9 of the fewest sequences, plus a constant.
    """
    limit = sum(images) if max_images is None else max_images
    sequences: list[list[int]] = []
    image_room: list[int] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, sequence), sorted
    for sample in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length, num_images = lengths[sample], images[sample]
        if length > max_length or num_images > limit:
            raise ValueError(
                f"sample {sample} has length {length} and {num_images} images; a sequence takes {max_length} and "
                f"{limit}"
            )
        fullest = bisect_left(rooms, (length, -1))
        while fullest < len(rooms) and image_room[rooms[fullest][1]] < num_images:
            fullest += 1
        if fullest == len(rooms):
            room, sequence = max_length, len(sequences)
            sequences.append([])
            image_room.append(limit)
        else:
            room, sequence = rooms.pop(fullest)
        sequences[sequence].append(sample)
        image_room[sequence] -= num_images
        if room > length:
            insort(rooms, (room - length, sequence))
    return [sorted(sequence) for sequence in sequences]
