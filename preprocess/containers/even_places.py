"""Which of many frames are shown: evenly spaced ones, with the first and the last.

Rule: place i of N in T frames is floor(i (T - 1) / (N - 1)), which is numpy.linspace(0, T - 1, N, dtype=int) without
its rounding errors: what LLaVA-Video and LLaVA-NeXT train on (`process_video_with_decord` in llava/utils.py).

    even_places(100, 8)    [0, 14, 28, 42, 56, 70, 84, 99]
"""

from __future__ import annotations


def even_places(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, ascending; all of them if there are not more. One is the first."""
    if total <= count:
        return list(range(total))
    if count == 1:
        return [0]
    return [place * (total - 1) // (count - 1) for place in range(count)]
