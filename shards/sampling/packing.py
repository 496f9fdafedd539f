"""Pack samples into rows: whole samples whose lengths sum to at most max_length.

Rule: a pure function of lengths and limits, so that every process that packs a window finds the same rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(
    lengths: Sequence[int], images: Sequence[int], *, max_length: int, max_images: int | None = None
) -> list[list[int]]:
    """Rows of sample numbers, by best fit: longest first, each into the fullest row that still takes it.

    images: pictures of each sample; a row takes at most `max_images` of them. A row's samples keep their order.
    Raises ValueError for a sample that no row can take. Source: best fit decreasing (Johnson, 1973), which needs at
    most 11/9 of the fewest rows, plus a constant.
    """
    limit = sum(images) if max_images is None else max_images
    rows: list[list[int]] = []
    picture_room: list[int] = []
    rooms: list[tuple[int, int]] = []  # (positions left, row), sorted
    for sample in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length, pictures = lengths[sample], images[sample]
        if length > max_length or pictures > limit:
            raise ValueError(
                f"sample {sample} has length {length} and {pictures} images; a row takes {max_length} and {limit}"
            )
        place = bisect_left(rooms, (length, -1))
        while place < len(rooms) and picture_room[rooms[place][1]] < pictures:
            place += 1
        if place == len(rooms):
            room, row = max_length, len(rows)
            rows.append([])
            picture_room.append(limit)
        else:
            room, row = rooms.pop(place)
        rows[row].append(sample)
        picture_room[row] -= pictures
        if room > length:
            insort(rooms, (room - length, row))
    return [sorted(row) for row in rows]
