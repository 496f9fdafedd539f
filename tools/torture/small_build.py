"""The build that is tortured: several shards, both splits, and each kind of what a build keeps for the next one.

Its images are cut into tiles, and come from a tar, from a Parquet file, from records themselves, and as frames of
animations; one dataset shares images between records, and all are compared for duplicates.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.paths import ROOT
from tests.support.small_blends import build, chat_record, files_of, jpeg, write_blend, write_chat


class SmallBuild:
    """A blend file, and the files of its undisturbed build."""

    def __init__(self, folder: Path, records: int = 48) -> None:
        self.folder = folder
        datasets = [write(folder / name, records // 4) for name, write in _DATASETS.items()]
        self.blend = write_blend(
            folder / "blend.yaml",
            datasets,
            split={"eval": 0.2, "copies": "near"},
            shard={"max_samples": 6},
            image={"size": 32, "store": "resized", "fit": "squash", "tiles": 4, "check": "decode"},
            image_tokens=4,
            limits={"max_length": 512},
            dedupe="near",
        )
        self.whole = folder / "whole"
        build(self.blend, out=self.whole)
        self.files = files_of(self.whole)

    def command(self, out: Path, workers: int = 1) -> list[str]:
        return [
            *(sys.executable, "-m", "preprocess.cli", "build", "--blend", str(self.blend)),
            *("--out", str(out), "--workers", str(workers)),
        ]

    def start(self, out: Path, **options: object) -> subprocess.Popen[bytes]:
        """The command in a process group of its own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            self.command(out),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **options,
        )

    def difference(self, out: Path) -> str | None:
        """How a finished build differs from the undisturbed one; None if it does not."""
        actual = files_of(out)
        changed = sorted(
            name for name in {*actual, *self.files} if actual.get(name) != self.files.get(name) and name[:1] != "."
        )
        return f"files differ: {', '.join(changed[:5])}" if changed else None


def _archived(root: Path, records: int) -> dict[str, Any]:
    """Records of two rounds; every two show the same image of a tar."""
    root.mkdir(parents=True)
    with tarfile.open(root / "images.tar", "w") as archive:
        for number in range(records // 2):
            data = jpeg(number, (64, 48))
            entry = tarfile.TarInfo(f"{number}.jpg")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    write_chat(root, (chat_record(number, images=[f"{number // 2}.jpg"], rounds=2) for number in range(records)))
    return {"name": root.name, "adapter": "chat", "root": root.name, "images": "images.tar"}


def _shared(root: Path, records: int) -> dict[str, Any]:
    """Questions about the images of a Parquet file, which become branches."""
    root.mkdir(parents=True)
    images = [{"image": {"bytes": jpeg(100 + number, (40, 90)), "path": f"{number}.jpg"}} for number in range(records)]
    pq.write_table(pa.Table.from_pylist(images), root / "images.parquet")
    write_chat(root, (chat_record(number, images=[f"{number // 3}.jpg"]) for number in range(records)))
    files = {"images": "images.parquet", "annotations": "chat.jsonl"}
    return {"name": root.name, "adapter": "chat", "root": root.name, "share": 4, **files}


def _embedded(root: Path, records: int) -> dict[str, Any]:
    """Images inside the records."""
    texts = [base64.b64encode(jpeg(200 + number, (96, 32))).decode() for number in range(records)]
    write_chat(root, (chat_record(number, images=[text]) for number, text in enumerate(texts)))
    return {"name": root.name, "adapter": "chat", "root": root.name}


def _framed(root: Path, records: int) -> dict[str, Any]:
    """Two frames of an animation."""
    root.mkdir(parents=True)
    for number in range(records):
        frames = [Image.open(io.BytesIO(jpeg(1000 + 10 * number + frame))) for frame in range(3)]
        frames[0].save(root / f"{number}.gif", save_all=True, append_images=frames[1:])
    write_chat(root, (chat_record(number, images=[f"{number}.gif"]) for number in range(records)))
    return {"name": root.name, "adapter": "chat", "root": root.name, "frames": "even:2"}


_DATASETS: Mapping[str, Callable[[Path, int], dict[str, Any]]] = {
    "archived": _archived,
    "shared": _shared,
    "embedded": _embedded,
    "framed": _framed,
}
