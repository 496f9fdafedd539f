"""Small datasets and blend files for tests: chat JSON lines with real little JPEGs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from preprocess.compiler.build import run_build
from preprocess.compiler.report import BuildReport
from tests.support.in_process import without_processes
from tests.support.paths import ROOT

TOKENIZER = ROOT / "examples/tokenizer"
SAMPLES = ROOT / "examples/data"


def jpeg(number: int, size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    """An image that differs from every other number's."""
    digest = hashlib.sha256(str(number).encode()).digest()
    image = Image.frombytes("RGB", (4, 2), digest[:24]).resize(size, Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90, **options)
    return data.getvalue()


def chat_record(number: int, *, images: Sequence[str] = (), rounds: int = 1, **more: Any) -> dict[str, Any]:
    """A record of `rounds` rounds; its images stand in the first."""
    messages = []
    for turn in range(rounds):
        marks = "<image>\n" * len(images) if turn == 0 else ""
        messages.append({"role": "user", "content": f"{marks}Question {turn} of record {number}?"})
        messages.append({"role": "assistant", "content": f"Answer {turn} of record {number}."})
    record: dict[str, Any] = {"id": f"r{number}", "messages": messages, **more}
    return {**record, "images": list(images)} if images else record


def write_chat(root: Path, records: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write chat.jsonl below `root`; a text is written as the line it is."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (root / "chat.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_images(root: Path, count: int) -> list[str]:
    root.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        (root / name).write_bytes(jpeg(number))
    return names


def write_blend(path: Path, datasets: Sequence[Mapping[str, Any]], **settings: Any) -> Path:
    """A blend file; a dataset gets `samples: all` unless it says otherwise."""
    amounts = {"samples", "epochs", "weight"}
    entries = [dict(entry) if amounts & entry.keys() else {**entry, "samples": "all"} for entry in datasets]
    tree = {"tokenizer": str(TOKENIZER), "image_tokens": 16, **settings, "datasets": entries}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def chat_blend(folder: Path, records: Iterable[Mapping[str, Any] | str], **settings: Any) -> Path:
    """A blend of one chat dataset named `mine`; keys of the dataset go into `dataset=`."""
    write_chat(folder / "mine", records)
    dataset = {"name": "mine", "adapter": "chat", "root": "mine", **settings.pop("dataset", {})}
    return write_blend(folder / "blend.yaml", [dataset], **settings)


def build(blend: Path, **options: Any) -> BuildReport:
    """Build into `build` next to the blend file. Only a build with a number of `workers` starts processes."""
    place = contextlib.nullcontext() if "workers" in options else without_processes()
    with place:
        return run_build(blend, out=options.pop("out", blend.parent / "build"), **options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a build, without the compiler's own cache."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".cache" not in path.parts
    }


def rejects_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


def image_blend(folder: Path, count: int = 12, **settings: object) -> Path:
    """One image and two rounds a record; shards of four."""
    names = write_images(folder / "mine", count)
    records = [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names)]
    return chat_blend(folder, records, **{"shard": {"max_samples": 4}, **settings})
