"""A damaged result of an earlier run is as none, so its task runs again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from preprocess.compiler.sealed_json import read_sealed, write_sealed
from preprocess.compiler.spool import Spool
from preprocess.errors import DataError
from tests.support.small_blends import build, chat_record, files_of, image_blend, jpeg, write_blend, write_chat


def test_every_flipped_bit_of_a_sealed_value_or_its_files_is_found(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "value.json"
    other.write_bytes(b"content")
    write_sealed(path, {"a": [1, 2]}, [other])
    assert read_sealed(path, [other]) == {"a": [1, 2]}
    for file in (path, other):
        whole = file.read_bytes()
        for bit in range(len(whole) * 8):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="is damaged"):
                read_sealed(path, [other])
        file.write_bytes(whole)


def test_a_value_of_another_owner_is_damaged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sealed(tmp_path / f"{name}.json", name)
        write_sealed(tmp_path / f"{name}-done.json", name, owner=name)
    shutil.copyfile(tmp_path / "b.json", tmp_path / "a.json")
    with pytest.raises(ValueError, match="is damaged"):
        read_sealed(tmp_path / "a.json")
    assert read_sealed(tmp_path / "b-done.json", owner="b") == "b"
    with pytest.raises(ValueError, match="is damaged"):
        read_sealed(tmp_path / "b-done.json", owner="a")


@pytest.mark.parametrize("kept", ["tasks/*.json", "fingerprints/*.npy"])
def test_results_that_were_exchanged_are_made_again(tmp_path: Path, kept: str) -> None:
    for name, first in (("mine", 0), ("other", 8)):
        write_chat(tmp_path / name, [chat_record(first + number, images=[f"{number}.jpg"]) for number in range(8)])
        for number in range(8):
            (tmp_path / name / f"{number}.jpg").write_bytes(jpeg(first + number))
    datasets = [{"name": name, "adapter": "chat", "root": name} for name in ("mine", "other")]
    blend = write_blend(tmp_path / "blend.yaml", datasets, dedupe="near", split={"eval": 0.3, "copies": "near"})
    build(blend)
    whole = files_of(tmp_path / "build")
    paths = sorted((tmp_path / "build/.cache").glob(kept))
    contents = [path.read_bytes() for path in paths]
    assert len(paths) > 2
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    build(blend)
    assert files_of(tmp_path / "build") == whole


@pytest.mark.parametrize(
    "damaged",
    [
        "tasks/*.json",
        "tasks/*.rejects.jsonl",
        "ingest/*/table.arrow",
        "ingest/*/done.json",
        "tokenizer/*/tokenizer.json",
    ],
)
def test_a_build_whose_cache_is_damaged_gives_the_same_bytes(tmp_path: Path, damaged: str) -> None:
    blend = image_blend(tmp_path, limits={"max_reject_share": 0.5})
    (tmp_path / "mine/3.jpg").write_bytes(b"no image")
    build(blend)
    whole = files_of(tmp_path / "build")
    for path in (tmp_path / "build/.cache").glob(damaged):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    build(blend)
    assert files_of(tmp_path / "build") == whole


def test_a_damaged_conversation_is_an_error_that_says_what_to_remove(tmp_path: Path) -> None:
    build(image_blend(tmp_path, count=2))
    (folder,) = (tmp_path / "build/.cache/ingest").iterdir()
    lines = bytearray((folder / "records.jsonl").read_bytes())
    lines[-3] ^= 1
    (folder / "records.jsonl").write_bytes(lines)
    spool = Spool(folder)
    assert spool[0].id == "chat/r0"
    with pytest.raises(DataError, match=rf"conversation 1 is damaged; remove {folder}"):
        spool[1]
