"""The same command again: what is reused, what is built again, and what is removed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import shards
from preprocess.adapters.base import Request
from preprocess.adapters.registry import ADAPTERS
from preprocess.compiler import ingest, plan
from preprocess.compiler.ingest import finished, ingest_task, run_ingest
from preprocess.compiler.spool import write_spool
from preprocess.compiler_version import COMPILER
from preprocess.errors import DataError
from preprocess.views.inspect import inspect_samples
from shards.files import partial_path
from tests.support.small_blends import (
    build,
    chat_blend,
    chat_record,
    files_of,
    image_blend,
    jpeg,
    write_blend,
    write_chat,
    write_images,
)


def test_a_second_build_reuses_everything_and_touches_nothing(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    assert build(blend).built_tasks > 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "build").rglob("*") if path.suffix != ""}
    again = build(blend)
    assert again.built_tasks == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_change_of_weights_alone_builds_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_chat(tmp_path / name, [chat_record(number) for number in range(8)])

    def blend(weight: float) -> Path:
        entries = [{"name": name, "adapter": "chat", "root": name} for name in ("a", "b")]
        return write_blend(
            tmp_path / "blend.yaml", [{**entries[0], "weight": weight}, {**entries[1], "weight": 1.0}], total=100
        )

    build(blend(1.0))
    again = build(blend(3.0))
    assert again.built_tasks == 0
    assert [again.datasets[name].draws for name in ("a", "b")] == [75, 25]
    assert shards.verify(shards.open(tmp_path / "build")).problems == []


def test_a_changed_image_rebuilds_only_its_shard(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    (tmp_path / "mine/5.jpg").write_bytes(jpeg(99, (40, 40)))
    again = build(blend)
    assert (again.built_tasks, again.reused_tasks) == (1, 3)  # one shard of three; the annotations are reused
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
    assert build(blend, out=tmp_path / "fresh").built_tasks == 4
    assert files_of(tmp_path / "build") == files_of(tmp_path / "fresh")


def test_a_changed_record_rebuilds_the_annotations_and_its_shard(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 12)
    records = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    blend = chat_blend(tmp_path, records, shard={"max_samples": 4})
    build(blend)
    records[11]["messages"][1]["content"] = "Another answer."
    chat_blend(tmp_path, records, shard={"max_samples": 4})
    again = build(blend)
    assert (again.built_tasks, again.reused_tasks) == (2, 2)


def test_files_of_an_older_build_are_removed_once_the_new_manifest_is_there(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    old = set(files_of(tmp_path / "build"))
    build(blend, settings=["template=vicuna"])
    new = set(files_of(tmp_path / "build"))
    assert not {name for name in old & new if name.endswith(".tar")}
    assert shards.verify(shards.open(tmp_path / "build")).problems == []


def test_a_deleted_shard_is_built_again(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    whole = files_of(tmp_path / "build")
    next((tmp_path / "build").glob("shards/*/*.tar")).unlink()
    assert build(blend).built_tasks == 1
    assert files_of(tmp_path / "build") == whole


def test_a_deleted_cache_costs_time_but_no_byte(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    whole = files_of(tmp_path / "build")
    shutil.rmtree(tmp_path / "build/.cache")
    assert build(blend).built_tasks == 4
    assert files_of(tmp_path / "build") == whole


def test_files_of_others_below_shards_are_never_removed(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    (tmp_path / "build/shards/other").mkdir()
    (tmp_path / "build/shards/other/precious.tar").write_text("x")
    build(blend, settings=["template=vicuna"])
    assert (tmp_path / "build/shards/other/precious.tar").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_images_that_changes_is_indexed_again(tmp_path: Path, kind: str) -> None:
    names = write_images(tmp_path / "pictures", 4)
    records = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    blend = chat_blend(tmp_path, records, dataset={"images": f"i.{kind}"})

    def pack() -> None:
        shutil.make_archive(str(tmp_path / "mine/i"), kind, tmp_path / "pictures")

    pack()
    build(blend)
    os.utime(tmp_path / f"mine/i.{kind}", (1, 1))
    build(blend)
    (tmp_path / "pictures/2.jpg").write_bytes(jpeg(77))
    pack()
    build(blend)
    stored = [image for found in inspect_samples(tmp_path / "build") for image in found.sample.images]
    assert stored == [(tmp_path / "pictures" / name).read_bytes() for name in names]
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
    assert len(list((tmp_path / "build/.cache/stores").iterdir())) == 1


def test_a_group_that_changes_alone_never_damages_the_finished_build(tmp_path: Path) -> None:
    """Groups stand in the index and not in the tar, so the names of both must tell the two builds apart."""
    for name in ("a", "b"):
        write_chat(tmp_path / name, [chat_record(number, group=f"g{number}") for number in range(4)])
    entries = [{"name": name, "adapter": "chat", "root": name} for name in ("a", "b")]
    blend = write_blend(tmp_path / "blend.yaml", entries)
    build(blend)
    whole = files_of(tmp_path / "build")
    write_chat(tmp_path / "a", [chat_record(number, group=f"other{number}") for number in range(4)])
    write_chat(tmp_path / "b", [chat_record(0), "{", "{"])
    with pytest.raises(DataError):
        build(blend)
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
    for name in ("a", "b"):
        write_chat(tmp_path / name, [chat_record(number, group=f"g{number}") for number in range(4)])
    build(blend)
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
    assert files_of(tmp_path / "build") == whole


def test_a_damaged_shard_is_found_and_rebuilt(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    whole = files_of(tmp_path / "build")
    shard = next((tmp_path / "build").glob("shards/*/*.tar"))
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    assert shards.verify(shards.open(tmp_path / "build")).problems
    assert build(blend).built_tasks == 1
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
    assert files_of(tmp_path / "build") == whole


def test_annotations_that_change_while_they_are_read_are_not_kept_under_the_wrong_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_blend(tmp_path, [chat_record(number) for number in range(3)])
    path = tmp_path / "mine/chat.jsonl"
    request = Request(
        root=tmp_path / "mine",
        annotations=(path,),
        images=(),
        options={name: option.default for name, option in ADAPTERS["chat"].options.items()},
    )
    task = ingest_task("mine", "chat", request, tmp_path / "cache", None)

    def slow(folder: Path, dataset: str, stream: Iterable[Any]) -> dict[str, Any]:
        actual = write_spool(folder, dataset, stream)
        write_chat(tmp_path / "mine", [chat_record(9)])
        return actual

    monkeypatch.setattr(ingest, "write_spool", slow)
    assert "changed while it was read" in str(run_ingest(task).error)
    assert finished(task) is None


def test_another_release_of_a_library_that_makes_bytes_reuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    monkeypatch.setattr(plan, "libraries", lambda: {"pillow": "0"})
    assert build(blend).built_tasks == 3


def test_shards_are_those_of_this_compiler_number(tmp_path: Path) -> None:
    """If this fails, shards have changed: raise COMPILER in preprocess/compiler_version.py, then renew the digest."""
    records = [chat_record(number, rounds=2, split="val" if number == 2 else "train") for number in range(4)]
    build(chat_blend(tmp_path, records))
    tars = sorted((tmp_path / "build").glob("shards/*/*.tar"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in tars)).hexdigest()
    assert (COMPILER, digest[:16]) == (7, "788b0cd7fcffaf4b")


def test_what_a_killed_run_left_half_written_is_swept(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    whole = {path.relative_to(tmp_path) for path in (tmp_path / "build").rglob("*")}
    left = [
        partial_path(tmp_path / "build" / name) for name in (".cache/stores/x.blob", "manifest.json", ".cache/finish")
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    build(blend)
    assert {path.relative_to(tmp_path) for path in (tmp_path / "build").rglob("*")} - whole <= {
        Path("build/.cache/stores")
    }
