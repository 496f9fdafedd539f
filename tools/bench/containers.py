"""Measure builds of the same records and images from files, from Parquet and from a WebDataset tar.

    python -m tools.bench.containers [--records 6000] [--repeats 5]

The forms take turns, so that a slower minute of the machine meets all of them. Each build is
a first one, so it includes the index of the images. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tools.bench.compile import run_build
from tools.bench.data import PHOTOS, RECORDS, ROOT, machine, make_images

ALLOWED = 1.10
"""Seconds of a container against those of files"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=6000, help="records with a 640x480 JPEG each")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each form; the median counts")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        print(f"{machine()}\n")
        make_images(folder, arguments.records)
        records = json.loads((folder / RECORDS).read_text(encoding="utf-8"))
        for name, write in FORMS.items():
            (folder / name).mkdir()
            write(folder / name, records, folder / PHOTOS)
        seconds: dict[str, list[float]] = {name: [] for name in FORMS}
        for _ in range(arguments.repeats):
            for name in FORMS:
                seconds[name].append(build_seconds(folder / name, arguments.records))
    print("| records from | seconds | against files | expected |\n|---|---|---|---|")
    for name, runs in seconds.items():
        ratio = statistics.median(one / files for one, files in zip(runs, seconds["files"], strict=True))
        print(f"| {name} | {statistics.median(runs):.2f} | {ratio:.2f}x | at most {ALLOWED:.2f}x |")


def build_seconds(root: Path, count: int) -> float:
    """Seconds of a first build with one worker."""
    dataset = {"name": "bench", "adapter": "chat", "root": str(root), "samples": "all"}
    blend = root.parent / f"{root.name}.yaml"
    blend.write_text(yaml.safe_dump({"tokenizer": str(ROOT / "examples/tokenizer"), "datasets": [dataset]}))
    out = root.parent / f"{root.name}-build"
    seconds, _, report = run_build(root, blend, out, workers=1)
    assert report["datasets"]["bench"]["samples"] == count, report
    shutil.rmtree(out)
    return seconds


def write_files(root: Path, records: list[dict[str, Any]], photos: Path) -> None:
    (root / "images").symlink_to(photos)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (root / "chat.jsonl").write_text(text, encoding="utf-8")


def write_parquet(root: Path, records: list[dict[str, Any]], photos: Path) -> None:
    """As the hub has them: data/train-*.parquet with the images inside, 100 rows in a row group."""
    rows = [
        {**record, "image": {"bytes": (photos / record["image"]).read_bytes(), "path": record["image"]}}
        for record in records
    ]
    (root / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "data/train-00000-of-00001.parquet", row_group_size=100)


def write_tar(root: Path, records: list[dict[str, Any]], photos: Path) -> None:
    with tarfile.open(root / "00000.tar", "w") as tar:
        for record in records:
            image = (photos / record["image"]).read_bytes()
            for extension, data in (("jpg", image), ("json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"{record['id']}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


FORMS: dict[str, Callable[[Path, list[dict[str, Any]], Path], None]] = {
    "files": write_files,
    "Parquet": write_parquet,
    "WebDataset tar": write_tar,
}


if __name__ == "__main__":
    main()
