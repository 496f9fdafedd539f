"""Image stores of every kind, made from the sample photos."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.conversation import REASONS
from preprocess.errors import RejectError
from preprocess.images.stores import ImageStore, open_store, prepare_store
from tests.support.paths import EXAMPLES

PHOTOS = EXAMPLES / "coco" / "train2017"


def as_folder(path: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def as_json(path: Path, files: dict[str, bytes]) -> None:
    path.write_text(json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()}, indent=1))


def as_php_json(path: Path, files: dict[str, bytes]) -> None:
    """With \\/ for each slash, as PHP writes it, a byte order mark, and data URLs."""
    texts = {name: "data:image/jpeg;base64," + base64.b64encode(data).decode() for name, data in files.items()}
    path.write_text(json.dumps(texts, ensure_ascii=False).replace("/", "\\/"), encoding="utf-8-sig")


def as_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("below")
        for name, data in files.items():
            archive.writestr(name, data)


def as_deflated_zip(path: Path, files: dict[str, bytes]) -> None:
    as_zip(path, files, zipfile.ZIP_DEFLATED)


def as_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo("./" + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def as_mimicit_parquet(path: Path, files: dict[str, bytes]) -> None:
    texts = [base64.b64encode(data).decode() for data in files.values()]
    pq.write_table(pa.table({"base64": texts, "__index_level_0__": list(files)}), path)


def as_hugging_face_parquet(path: Path, files: dict[str, bytes]) -> None:
    cells = [{"bytes": data, "path": name} for name, data in files.items()]
    pq.write_table(pa.table({"text": ["t"] * len(cells), "image": cells}), path, row_group_size=5)


def as_arrow_stream(path: Path, files: dict[str, bytes]) -> None:
    """As save_to_disk of `datasets` writes data-00000-of-00001.arrow."""
    table = pa.table({"image": [{"bytes": data, "path": name} for name, data in files.items()]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


KINDS: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "folder": as_folder,
    "base64.json": as_json,
    "php.json": as_php_json,
    "stored.zip": as_zip,
    "deflated.zip": as_deflated_zip,
    "plain.tar": as_tar,
    "mimicit.parquet": as_mimicit_parquet,
    "hf.parquet": as_hugging_face_parquet,
    "hf.arrow": as_arrow_stream,
}


def opened(path: Path) -> ImageStore:
    prepare_store(path, path.parent / "cache")
    return open_store(path, path.parent / "cache")


def reason(store: ImageStore, name: str) -> str:
    with pytest.raises(RejectError) as caught:
        store.read(name)
    assert caught.value.reason in REASONS
    return caught.value.reason


def failing(code: int, *filename: str) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code), *filename)

    return fail


def kept(cache: Path) -> set[Path]:
    return {path for path in cache.rglob("*") if path.is_file()}
