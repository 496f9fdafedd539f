"""What the benchmark scripts share: LLaVA-like records with photo-like images, and a line that says which machine."""

from __future__ import annotations

import io
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = "coco/train2017"
RECORDS = "llava/detail_23k.json"
_WORDS = (ROOT / "shards/FORMAT.md").read_text(encoding="utf-8").split()


SIZES = ((640, 480),)
MANY_SIZES = ((320, 240), (500, 375), (640, 480), (640, 427), (800, 600), (1024, 768))


def make_images(
    folder: Path, count: int, answer_words: int = 90, sizes: Sequence[tuple[int, int]] = SIZES, quality: int = 90
) -> None:
    """LLaVA's layout: one photo a record, 64 different ones; a question, and an answer of some sentences."""
    choose = random.Random(0)
    photos = folder / PHOTOS
    photos.mkdir(parents=True)
    encoded = photo_files(sizes, quality)
    records = []
    for index in range(count):
        name = f"{index:012d}.jpg"
        (photos / name).write_bytes(encoded[index % len(encoded)])
        question, answer = words(choose, 12), words(choose, answer_words)
        conversation = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        records.append({"id": f"{index:012d}", "image": name, "conversations": conversation})
    (folder / "llava").mkdir()
    (folder / RECORDS).write_text(json.dumps(records), encoding="utf-8")
    print(f"{count} records; a JPEG has {statistics.mean(map(len, encoded)):,.0f} bytes on average\n")


def photo_files(sizes: Sequence[tuple[int, int]] = SIZES, quality: int = 90) -> list[bytes]:
    """64 different photos as JPEG files: the sample data's, enlarged, with grain as a camera has it."""
    source = sorted((ROOT / "examples/data" / PHOTOS).glob("*.jpg"))
    encoded = []
    for index in range(64):
        width, height = sizes[index % len(sizes)]
        with Image.open(source[index % len(source)]) as image:
            photo = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        grain = np.random.default_rng(index).normal(0, 6, (height, width, 3))
        pixels = np.clip(np.asarray(photo, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=quality)
        encoded.append(data.getvalue())
    return encoded


def words(choose: random.Random, count: int) -> str:
    return " ".join(choose.choices(_WORDS, k=count))


def machine() -> str:
    return f"commit {_commit()}, Python {platform.python_version()}, {_cpu()}, {os.cpu_count()} cores"


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
