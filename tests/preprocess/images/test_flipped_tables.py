"""Parquet files with a flipped bit: an error, a reject or, where nothing guards the byte, other bytes of one cell."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.parsing.record_tables import table_records
from preprocess.errors import DataError, RejectError
from preprocess.images.stores import open_store, prepare_store
from tests.support.small_blends import jpeg

FILES = {f"{number}.jpg": jpeg(number) for number in range(6)}
TEXTS = [f"text {number}" for number in range(6)]

Outcome = Literal["same", "refused", "other bytes"]


def write_table(path: Path, *, checksums: bool, compression: str = "none") -> bytes:
    cells = [{"bytes": data, "path": name} for name, data in FILES.items()]
    table = pa.table({"text": TEXTS, "image": cells})
    pq.write_table(table, path, row_group_size=3, write_page_checksum=checksums, compression=compression)
    return path.read_bytes()


def outcome_of_images(path: Path, cache: Path) -> Outcome:
    try:
        prepare_store(path, cache)
    except DataError:
        return "refused"
    store, refused = open_store(path, cache), False
    for name, data in FILES.items():
        try:
            if store.read(name) != data:
                return "other bytes"
        except RejectError:
            refused = True
    return "refused" if refused else "same"


def outcome_of_records(path: Path) -> Outcome:
    try:
        records = list(table_records(path, "Parquet", {"text", "image"}))
    except DataError:
        return "refused"
    texts = [record.get("text") if isinstance(record, dict) else None for record in records]
    return "same" if texts == TEXTS else "refused" if None in texts else "other bytes"


def outcomes(folder: Path, data: bytes, places: list[int]) -> dict[int, tuple[Outcome, Outcome]]:
    """Place of the flipped bit -> what became of the images and of the records. Anything else fails the test."""
    chance = random.Random(1)
    found = {}
    for place in places:
        path = folder / f"{place}.parquet"
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
        found[place] = outcome_of_images(path, folder / "cache"), outcome_of_records(path)
        path.unlink()
    return found


def test_a_flip_in_a_page_with_a_checksum_is_refused(tmp_path: Path) -> None:
    data = write_table(tmp_path / "a.parquet", checksums=True)
    inside = [data.index(image) + offset for image in FILES.values() for offset in range(0, len(image), 12)]
    assert len(inside) > 200
    assert {images for images, _ in outcomes(tmp_path, data, inside).values()} == {"refused"}


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("checksums", [False, True])
def test_a_flip_anywhere_never_ends_in_anything_but_an_error_or_a_reject(
    tmp_path: Path, compression: str, checksums: bool
) -> None:
    data = write_table(tmp_path / "a.parquet", checksums=checksums, compression=compression)
    chance = random.Random(2)
    places = sorted(chance.sample(range(len(data)), 120))
    found = outcomes(tmp_path, data, places)
    assert any("refused" in outcome for outcome in found.values())


def test_the_first_and_last_bytes_of_a_file_are_refused_when_flipped(tmp_path: Path) -> None:
    data = write_table(tmp_path / "a.parquet", checksums=False)
    ends = [*range(4), *range(len(data) - 8, len(data))]
    assert {images for images, _ in outcomes(tmp_path, data, ends).values()} == {"refused"}
