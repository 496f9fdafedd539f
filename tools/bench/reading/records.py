"""Drawn pages as LLaVA's files, and a blend over them: a conversation for each page, a round for each field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.bench.reading.pages import SIDE, Layout, Page, draw_page

TRAIN, HELD_OUT = "train", "held-out"
"""Datasets of the blend"""
IMAGE_TOKENS = 4
"""Of a tile: 4 x 4 patches, joined by pixel_shuffle"""


def write_records(folder: Path, layout: Layout, *, train: int, held_out: int) -> None:
    """Pages as PNG files in `images`, and their records in train.json and, if there are any, held-out.json."""
    images = folder / "images"
    images.mkdir(parents=True)
    for name, count in ((TRAIN, train), (HELD_OUT, held_out)):
        records = []
        for index in range(count):
            page = draw_page(seed_of(name, index), layout)
            file = f"{name}-{index}.png"
            page.image.save(images / file)
            records.append(record_of(page, file))
        if records:
            (folder / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")


def seed_of(name: str, index: int) -> str:
    return f"{name} {index}"


def record_of(page: Page, file: str) -> dict[str, Any]:
    """LLaVA's record of a page."""
    rounds: list[dict[str, str]] = []
    for colour, code in page.codes.items():
        marker = "" if rounds else "<image>\n"
        rounds.append({"from": "human", "value": f"{marker}What is in the {colour} field?"})
        rounds.append({"from": "gpt", "value": code})
    return {"id": file, "image": file, "conversations": rounds}


def blend_of(folder: Path, tokenizer: Path, tiles: int) -> dict[str, Any]:
    """A blend over the records in `folder`, whose images are squashed to a grid of at most `tiles` tiles."""
    sides = {TRAIN: {"split": "train", "samples": "all"}, HELD_OUT: {"split": "eval"}}
    return {
        "tokenizer": str(tokenizer),
        "template": "chatml",
        "image_tokens": IMAGE_TOKENS,
        "image": {"size": SIDE, "fit": "squash", "tiles": tiles},
        "limits": {"max_length": 512},
        "datasets": [
            {
                "name": name,
                "adapter": "llava",
                "root": str(folder),
                "annotations": path.name,
                "images": "images",
                **side,
            }
            for name, side in sides.items()
            if (path := folder / f"{name}.json").exists()
        ],
    }
