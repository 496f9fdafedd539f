"""Builds whose images are cut into tiles, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards import Build
from shards import open as open_build
from tests.support.small_blends import build, chat_blend, chat_record, jpeg

SIDE = 32
IMAGE_TOKENS = 4
SIZES = ((96, 64), (64, 200), (33, 31), (300, 20), (20, 300), (128, 128), (40, 64), (8, 9))
"""Width and height of images: ratios of all kinds, smaller and larger than a tile"""


def tiled_blend(
    folder: Path,
    *,
    images: Sequence[Sequence[tuple[int, int]]] | None = None,
    image: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A blend with a record for each list of sizes of its images; by default one image each, and one without."""
    sizes = [[size] for size in SIZES] + [[]] if images is None else images
    records, number = [], 0
    for record, shown in enumerate(sizes):
        names = []
        for size in shown:
            names.append(f"{number}.jpg")
            (folder / "mine").mkdir(parents=True, exist_ok=True)
            (folder / "mine" / names[-1]).write_bytes(jpeg(number, size))
            number += 1
        records.append(chat_record(record, images=names, rounds=1 + record % 2))
    return chat_blend(
        folder,
        records,
        **{
            "image_tokens": IMAGE_TOKENS,
            "image": {"size": SIDE, "fit": "squash", "tiles": 6, **(image or {})},
            "limits": {"max_length": 256},
            **settings,
        },
    )


def tiled(folder: Path, **settings: Any) -> Build:
    return open_build(build(tiled_blend(folder, **settings)).path)
