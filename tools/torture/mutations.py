"""Inputs with bytes changed, cut, doubled or added: annotation files, images and archives of images."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.adapters.base import Request
from preprocess.adapters.lookup import find_adapter, read_records
from preprocess.conversation import REASONS, Image, Reject
from preprocess.errors import RejectError
from preprocess.images.prepare import ImagePolicy, prepare_image
from preprocess.images.stores import open_stores, prepare_store
from tests.support.fuzzed_datasets import FORMS
from tests.support.small_blends import chat_record, jpeg
from tools.torture.outcomes import Outcomes, loss_of

RECORDS = 8

Read = Callable[[Path], str | None]
"""Reads a mutated file as a build does. What is lost, or None."""


def mutations(folder: Path, count: int, rng: random.Random) -> list[Outcomes]:
    """The same number of tries for each kind of file."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [*_annotations(folder), *_images(), *_archives(folder)]
    return [
        _mutated(kind, name, content, read, count // len(kinds) + (number < count % len(kinds)), folder, rng)
        for number, (kind, name, content, read) in enumerate(kinds)
    ]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 4, 16, 300)))
        match rng.randrange(6):
            case 0:
                data[start:end] = rng.randbytes(end - start)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end] * rng.randint(1, 3)
            case 3:
                data[start:start] = rng.choice(
                    (b"\0", b"\xff", b'"', b"{", b"]", b"\n", b"\\u", b"-1", b"1e999", b"null")
                )
            case 4:
                del data[start:]
            case 5 if start < len(data):
                data[start] ^= 1 << rng.randrange(8)
    return bytes(data)


def _mutated(
    kind: str, name: str, content: bytes, read: Read, count: int, folder: Path, rng: random.Random
) -> Outcomes:
    outcomes = Outcomes(f"mutations of {kind}")
    for number in range(count):
        path = folder / f"{number}-{name}"
        path.write_bytes(mutate(content, rng))
        outcomes.count(path.name, loss_of(lambda path=path: read(path)))  # type: ignore[misc]
        path.unlink()
    return outcomes


def _annotations(folder: Path) -> Iterator[tuple[str, str, bytes, Read]]:
    records = [chat_record(number, images=[f"{number}.jpg"], rounds=2) for number in range(RECORDS)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), table)

    def of(adapter: str) -> Read:
        options = {name: option.default for name, option in find_adapter(adapter).options.items()}

        def read(path: Path) -> str | None:
            request = Request(root=folder, annotations=(path,), images=(folder,), options=options)
            rejects = (item for item in read_records(adapter, request) if isinstance(item, Reject))
            return next((f"{each.reason}: {each.detail}" for each in rejects if each.reason not in _FORESEEN), None)

        return read

    yield "JSON lines", "chat.jsonl", lines, of("chat")
    yield "JSON arrays", "chat.json", json.dumps(records).encode(), of("chat")
    yield "Parquet records", "chat.parquet", table.getvalue(), of("chat")
    for adapter in ("llava", "coco_caption", "minigpt4", "ocr_vqa"):
        form = FORMS[adapter]
        files: Mapping[str, str] = form.files([(str(number), form.record(number)) for number in range(RECORDS)])
        ((name, text),) = files.items()
        yield f"{adapter} files", Path(name).name, text.encode(), of(adapter)


def _images() -> Iterator[tuple[str, str, bytes, Read]]:
    from PIL import Image as Pillow

    def read(path: Path) -> str | None:
        for store in ("original", "resized"):
            try:
                prepare_image(path.read_bytes(), ImagePolicy(store=store))
            except RejectError as error:
                if error.reason not in _FORESEEN:
                    return f"{error.reason}: {error.detail}"
        return None

    picture = Pillow.open(io.BytesIO(jpeg(1, (64, 48))))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        data = io.BytesIO()
        picture.save(data, kind)
        yield f"{kind} images", f"image.{kind.lower()}", data.getvalue(), read


def _archives(folder: Path) -> Iterator[tuple[str, str, bytes, Read]]:
    names = [f"{number}.jpg" for number in range(RECORDS)]
    images = {name: jpeg(number) for number, name in enumerate(names)}

    def read(path: Path) -> str | None:
        cache = folder / "cache"
        prepare_store(path, cache)
        stores = open_stores((path,), cache)
        for name in names:
            try:
                stores.read(Image(name=name))
            except RejectError as error:
                if error.reason not in _FORESEEN:
                    return f"{error.reason}: {error.detail}"
        return None

    tar, zipped, table = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in images.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive_file:
        for name, data in images.items():
            archive_file.writestr(name, data)
    rows = [{"image": {"bytes": data, "path": name}} for name, data in images.items()]
    pq.write_table(pa.Table.from_pylist(rows), table)
    yield "tar archives", "images.tar", tar.getvalue(), read
    yield "zip archives", "images.zip", zipped.getvalue(), read
    yield "Parquet images", "images.parquet", table.getvalue(), read


_FORESEEN = frozenset(REASONS) - {"internal_error"}
