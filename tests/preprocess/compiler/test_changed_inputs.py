"""Inputs that are not what they were: reported at the end of a build, found by --check-inputs, never kept as done."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shards
from preprocess.compiler import build as build_module
from preprocess.compiler.run_task import run_task
from preprocess.compiler.task import CompileTask, TaskResult
from preprocess.errors import DataError
from preprocess.views.inspect import inspect_samples
from tests.support.frame_files import animation
from tests.support.small_blends import (
    build,
    chat_blend,
    chat_record,
    files_of,
    image_blend,
    jpeg,
    write_images,
)


def write_keeping_time(path: Path, data: bytes) -> None:
    """Other bytes, with the size and the time of the file."""
    status = path.stat()
    assert len(data) == status.st_size
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swapped(path: Path) -> bytes:
    """The image, with one bit of its comment or pixels changed in a way that decoders accept."""
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    return bytes(data)


def void(_: Any) -> None:
    """Of a call whose result is of no interest."""


def while_it_compiles(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Let something happen after a task read its images, once."""
    waiting = [change]

    def run(task: CompileTask) -> TaskResult:
        result = run_task(task)
        if waiting:
            waiting.pop()()
        return result

    monkeypatch.setattr(build_module, "run_task", run)


def stored(folder: Path) -> set[bytes]:
    return {bytes(image) for found in inspect_samples(folder) for image in found.sample.images}


def test_an_image_that_changes_during_the_build_is_told_and_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blend = image_blend(tmp_path)
    with monkeypatch.context() as patch:
        while_it_compiles(patch, lambda: void((tmp_path / "mine/5.jpg").write_bytes(jpeg(99, (40, 40)))))
        with pytest.raises(DataError, match=r"dataset mine: 1 images changed during the build: 5\.jpg\nrun the same"):
            build(blend)
    assert not (tmp_path / "build/manifest.json").exists()
    again = build(blend)
    assert (again.built_tasks, again.reused_tasks) == (1, 3)
    build(blend, out=tmp_path / "fresh")
    assert files_of(tmp_path / "build") == files_of(tmp_path / "fresh")


def test_an_image_that_changes_back_after_the_build_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is that of the plan, and the shard has other bytes."""
    blend, image = image_blend(tmp_path), tmp_path / "mine/5.jpg"
    shutil.copy2(image, tmp_path / "kept")

    def run(task: CompileTask) -> TaskResult:
        image.write_bytes(jpeg(99, (40, 40)))
        return run_task(task)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "run_task", run)
        with pytest.raises(DataError, match="changed during the build"):
            build(blend)
    shutil.copy2(tmp_path / "kept", image)
    build(blend)
    assert (tmp_path / "kept").read_bytes() in stored(tmp_path / "build")


def test_an_image_that_appears_during_the_build_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_images(tmp_path / "mine", 4)
    data = (tmp_path / "mine" / names[0]).read_bytes()
    blend = chat_blend(
        tmp_path,
        [chat_record(number, images=[name]) for number, name in enumerate(names)],
        limits={"max_reject_share": 1.0},
    )
    (tmp_path / "mine" / names[0]).unlink()
    while_it_compiles(monkeypatch, lambda: void((tmp_path / "mine" / names[0]).write_bytes(data)))
    with pytest.raises(DataError, match=names[0]):
        build(blend)
    assert build(blend).datasets["mine"].rejects == {}


def test_a_build_that_compiles_nothing_does_not_look_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    monkeypatch.setattr(build_module, "check_unchanged", lambda *_: pytest.fail("looked again"))
    assert build(blend).built_tasks == 0


def test_other_bytes_with_the_same_size_and_time_are_found_when_asked_for(tmp_path: Path) -> None:
    blend, image = image_blend(tmp_path), tmp_path / "mine/5.jpg"
    build(blend)
    write_keeping_time(image, swapped(image))
    assert build(blend).built_tasks == 0  # as documented: size and time are the same
    assert image.read_bytes() not in stored(tmp_path / "build")
    report = build(blend, check_inputs=True)
    assert report.changed == ("dataset mine: other bytes with the same size and time: 5.jpg",)
    assert report.built_tasks == 1
    assert image.read_bytes() in stored(tmp_path / "build")
    build(blend, out=tmp_path / "fresh")
    assert files_of(tmp_path / "build") == files_of(tmp_path / "fresh")
    assert shards.verify(shards.open(tmp_path / "build")).problems == []


def test_a_check_of_unchanged_inputs_builds_nothing(tmp_path: Path) -> None:
    blend = image_blend(tmp_path, split={"eval": 0.5})
    build(blend)
    before = files_of(tmp_path / "build")
    report = build(blend, check_inputs=True)
    assert (report.changed, report.built_tasks) == ((), 0)
    assert files_of(tmp_path / "build") == before


def test_a_first_build_may_check_its_inputs(tmp_path: Path) -> None:
    report = build(image_blend(tmp_path), check_inputs=True)
    assert report.changed == ()
    assert shards.verify(shards.open(tmp_path / "build")).problems == []


def test_annotations_with_other_bytes_and_the_same_time_are_read_again(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 4)
    blend = chat_blend(tmp_path, [chat_record(number, images=[name]) for number, name in enumerate(names)])
    build(blend)
    (path,) = [file for file in (tmp_path / "mine").iterdir() if file.suffix == ".jsonl"]
    write_keeping_time(path, path.read_bytes().replace(b"of record 2", b"of record X"))
    assert build(blend).built_tasks == 0
    report = build(blend, check_inputs=True)
    assert report.changed == (f"dataset mine: other bytes with the same size and time: {path.name}",)
    build(blend, out=tmp_path / "fresh")
    assert files_of(tmp_path / "build") == files_of(tmp_path / "fresh")


def test_an_image_that_decides_what_is_a_copy_is_compared_again(tmp_path: Path) -> None:
    """A record repeats another until one of its images gets other bytes."""
    (tmp_path / "mine").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "mine" / name).write_bytes(jpeg(1))
    records = [chat_record(number, images=[name]) for number, name in enumerate(("a.jpg", "b.jpg"))]
    for record in records:
        record["messages"] = [*records[0]["messages"]]
    blend = chat_blend(tmp_path, records, dataset={"dedupe": "exact"})
    assert build(blend).datasets["mine"].rejects == {"duplicate": 1}
    write_keeping_time(tmp_path / "mine/a.jpg", swapped(tmp_path / "mine/a.jpg"))
    assert build(blend, check_inputs=True).datasets["mine"].rejects == {}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_with_other_bytes_and_the_same_time_is_indexed_again(kind: str, tmp_path: Path) -> None:
    names = write_images(tmp_path / "pictures", 4)
    records = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    blend = chat_blend(tmp_path, records, dataset={"images": f"i.{kind}"})
    shutil.make_archive(str(tmp_path / "mine/i"), kind, tmp_path / "pictures")
    build(blend)
    picture = tmp_path / "pictures" / names[2]
    write_keeping_time(picture, swapped(picture))
    archive = tmp_path / f"mine/i.{kind}"
    status = archive.stat()
    shutil.make_archive(str(tmp_path / "mine/i"), kind, tmp_path / "pictures")
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert archive.stat().st_size == status.st_size
    report = build(blend, check_inputs=True)
    assert report.changed == (f"dataset mine: other bytes with the same size and time: {names[2]}",)
    assert picture.read_bytes() in stored(tmp_path / "build")


def test_a_damaged_copy_of_an_image_inside_a_record_is_made_again(tmp_path: Path) -> None:
    texts = [f"data:image/jpeg;base64,{base64.b64encode(jpeg(number)).decode()}" for number in range(3)]
    blend = chat_blend(tmp_path, [chat_record(number, images=[text]) for number, text in enumerate(texts)])
    build(blend)
    whole = files_of(tmp_path / "build")
    (copy,) = (tmp_path / "build/.cache/ingest").glob("*/embedded.blob")
    write_keeping_time(copy, swapped(copy))
    assert "other bytes" in build(blend, check_inputs=True).changed[0]
    assert files_of(tmp_path / "build") == whole
    assert copy.read_bytes() == b"".join(jpeg(number) for number in range(3))
    assert build(blend, check_inputs=True).changed == ()


def test_a_video_with_other_bytes_is_cut_into_frames_again(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    video = tmp_path / "mine/a.gif"
    video.write_bytes(animation("GIF", 6))
    blend = chat_blend(tmp_path, [chat_record(0, images=["a.gif"])], image={"frames": "even:3"})
    build(blend)
    assert build(blend, check_inputs=True).changed == ()
    data = bytearray(video.read_bytes())
    data[13] ^= 64  # the first colour
    write_keeping_time(video, bytes(data))
    report = build(blend, check_inputs=True)
    assert report.changed == ("dataset mine: other bytes with the same size and time: a.gif",)
    build(blend, out=tmp_path / "fresh")
    assert files_of(tmp_path / "build") == files_of(tmp_path / "fresh")


def test_shards_of_a_version_without_digests_are_compiled_again(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    for path in (tmp_path / "build/.cache/tasks").glob("*.images.npy"):
        path.unlink()
    assert build(blend).built_tasks == 0
    report = build(blend, check_inputs=True)
    assert report.built_tasks == 3
    assert "3 shards are of a version that kept no digests of images" in report.changed[0]
    assert build(blend, check_inputs=True).changed == ()


def test_files_of_tasks_are_removed_with_them(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    build(blend, settings=["template=vicuna"])
    assert len(list((tmp_path / "build/.cache/tasks").glob("*.images.npy"))) == 3
    assert len(list((tmp_path / "build/.cache/tasks").glob("*.json"))) == 3
