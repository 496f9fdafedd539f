"""dsvl-prep with URLs, against a real S3 server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

import shards
from preprocess.compiler.build import build_and_publish, run_build
from preprocess.errors import DataError
from tests.support.commands import dsvl_prep
from tests.support.remote_builds import files_at, flip, remove_at, write_at
from tests.support.small_blends import build, chat_blend, chat_record, files_of, image_blend, write_images

pytestmark = pytest.mark.usefixtures("cache_home", "builds_in_this_process")


@pytest.fixture
def blend(tmp_path: Path) -> Path:
    return write_blend(tmp_path, 4)


def write_blend(folder: Path, count: int) -> Path:
    names = write_images(folder / "mine", count)
    return chat_blend(folder, [chat_record(number, images=[name]) for number, name in enumerate(names)])


def said(*arguments: str | int | Path) -> str:
    """What a command writes to stdout."""
    done = dsvl_prep(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_build_goes_to_s3_and_every_command_reads_it_there(bucket: str, blend: Path, cache_home: Path) -> None:
    url = f"{bucket}/{blend.parent.name}/build"
    done = dsvl_prep("build", "--blend", blend, "--out", url)
    assert done.returncode == 0, done.stderr
    assert f"published {url}: 7 files, " in done.stdout
    assert "uploading" in done.stderr
    run_build(blend, out=blend.parent / "local")
    assert files_at(url) == files_of(blend.parent / "local")

    done = dsvl_prep("verify", "--build", url)
    assert done.returncode == 0, done.stderr
    assert f"{url}: sound; 1 shards, 4 samples, 4 images" in done.stdout
    assert said("stats", "--build", url, "--json") == said("stats", "--build", blend.parent / "local", "--json")
    shown = said("inspect", "--build", url, "--json", "--limit", "9")
    assert len(shown.splitlines()) == 4
    assert shown == said("inspect", "--build", blend.parent / "local", "--json", "--limit", "9")

    report = json.loads(said("build", "--blend", blend, "--out", url, "--json"))
    assert (report["built_tasks"], report["published"]["uploaded_files"]) == (0, 0)
    assert report["published"]["location"] == url

    (shard,) = (path for path in files_at(url) if path.endswith(".tar"))
    files, root = fsspec.core.url_to_fs(url)
    data = bytearray(files.cat_file(f"{root}/{shard}"))
    data[700] ^= 1
    files.pipe_file(f"{root}/{shard}", bytes(data))
    done = dsvl_prep("verify", "--build", url)
    assert done.returncode == 1
    assert f"{url}/{shard}: sha256 is" in done.stderr
    files.rm_file(f"{root}/{shard}")
    assert f"published {url}: 1 files, " in said("build", "--blend", blend, "--out", url)
    assert "sound" in said("verify", "--build", url)
    assert {path.name for path in cache_home.iterdir()} == {"builds", "shards"}


def test_a_changed_build_sends_what_changed_and_removes_what_is_old(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/{tmp_path.name}"
    first = write_blend(tmp_path, 3)
    work = tmp_path / "work"
    said("build", "--blend", first, "--out", url, "--work", work)
    assert files_of(work) == {}
    done = said("build", "--blend", write_blend(tmp_path, 5), "--out", url, "--work", work, "--json", "--workers", 1)
    published = json.loads(done)["published"]
    assert (published["uploaded_files"], published["removed_files"]) == (3, 2)
    run_build(tmp_path / "blend.yaml", out=tmp_path / "local")
    assert files_at(url) == files_of(tmp_path / "local")
    assert len(shards.open(url)) == 5


def test_the_blend_can_name_the_url(bucket: str, blend: Path, tmp_path: Path) -> None:
    url = f"{bucket}/{tmp_path.name}"
    tree = yaml.safe_load(blend.read_text(encoding="utf-8"))
    blend.write_text(yaml.safe_dump(tree | {"out": url}), encoding="utf-8")
    run_build(blend)
    assert len(shards.open(url)) == 4
    blend.write_text(yaml.safe_dump(tree | {"out": f"file://{tmp_path}/there"}), encoding="utf-8")
    run_build(blend)
    assert files_of(tmp_path / "there") == files_at(url)
    blend.write_text(yaml.safe_dump(tree | {"out": "beside"}), encoding="utf-8")
    run_build(blend)
    assert files_of(tmp_path / "beside") == files_at(url)


def test_a_file_url_is_a_folder(blend: Path, tmp_path: Path) -> None:
    said("build", "--blend", blend, "--out", f"file://{tmp_path}/there", "--workers", 1)
    assert len(shards.open(tmp_path / "there")) == 4
    assert "sound" in said("verify", "--build", f"file://{tmp_path}/there")


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("s3://nobodys-bucket/build", "there is no such bucket"),
        ("s4://models/build", "unknown protocol s4; did you mean s3"),
        ("folder --work work", "--work is where a build for a URL is compiled, and this one goes to a folder: folder"),
    ],
)
def test_a_place_that_cannot_take_a_build_is_reported_before_the_work(
    bucket: str, blend: Path, cache_home: Path, out: str, expected: str
) -> None:
    done = dsvl_prep("build", "--blend", blend, "--out", *out.split(), cwd=blend.parent)
    assert done.returncode == 2
    assert expected in done.stderr
    assert not cache_home.exists()


def test_a_place_with_other_files_takes_no_build(blend: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/mine/thesis.tex", b"")
    with pytest.raises(shards.LocationError, match=r"memory://mine: holds other files, such as thesis\.tex"):
        run_build(blend, out="memory://mine")
    assert set(files.find("/mine")) == {"/mine/thesis.tex"}


def test_commands_report_in_one_line_that_there_is_no_build(bucket: str) -> None:
    done = dsvl_prep("verify", "--build", f"{bucket}/nowhere")
    assert done.returncode == 1
    problem = f"{bucket}/nowhere: no manifest.json there; it is not a finished build"
    assert [line.partition(" (")[0] for line in done.stderr.splitlines()] == [f"error: {problem}"]
    for command in ("stats", "inspect"):
        assert f"error: {problem}" in dsvl_prep(command, "--build", f"{bucket}/nowhere").stderr


def local_shards(work: Path) -> list[Path]:
    return [path for path in work.rglob("*") if path.suffix in (".tar", ".arrow") and "shards" in path.parts]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    yield f"memory://{tmp_path.name}/build"
    MemoryFileSystem.store.clear()


@contextlib.contextmanager
def counted_puts() -> Iterator[list[str]]:
    """The paths of the files that are sent."""
    sent: list[str] = []
    put_file = MemoryFileSystem.put_file

    def counted(self: MemoryFileSystem, local: str, path: str, **options: Any) -> None:
        put_file(self, local, path, **options)
        sent.append(path.rpartition("/build/")[2])

    with mock.patch.object(MemoryFileSystem, "put_file", counted):
        yield sent


@contextlib.contextmanager
def killed_after(sends: int) -> Iterator[None]:
    """The program ends when it has sent this many files."""
    put_file = MemoryFileSystem.put_file
    left = iter(range(sends))

    def limited(self: MemoryFileSystem, local: str, path: str, **options: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        put_file(self, local, path, **options)

    with mock.patch.object(MemoryFileSystem, "put_file", limited), pytest.raises(KeyboardInterrupt):
        yield


def test_each_task_sends_its_shard_and_keeps_no_copy(memory: str, tmp_path: Path) -> None:
    blend = image_blend(tmp_path, 12)
    work = tmp_path / "work"
    most = []
    put_file = MemoryFileSystem.put_file

    def watched(self: MemoryFileSystem, local: str, path: str, **options: Any) -> None:
        most.append(len([path for path in local_shards(work) if path.suffix == ".tar"]))
        put_file(self, local, path, **options)

    with mock.patch.object(MemoryFileSystem, "put_file", watched):
        report, published = build_and_publish(blend, out=memory, work=work)
    assert report.built_tasks > 3
    assert max(most) == 1
    assert local_shards(work) == []
    build(blend, out=tmp_path / "local")
    local = files_of(tmp_path / "local")
    assert files_at(memory) == local
    assert published is not None
    assert (published.uploaded_files, published.uploaded_bytes) == (len(local), sum(map(len, local.values())))


def test_a_build_that_is_killed_after_any_number_of_sends_sends_nothing_twice(memory: str, tmp_path: Path) -> None:
    blend = image_blend(tmp_path, 8)
    build(blend, out=tmp_path / "local")
    local = files_of(tmp_path / "local")
    for sends in range(len(local)):
        MemoryFileSystem.store.clear()
        work = tmp_path / f"work-{sends}"
        with killed_after(sends):
            run_build(blend, out=memory, work=work)
        there = set(files_at(memory)) if sends else set()
        assert "manifest.json" not in there
        with counted_puts() as sent:
            run_build(blend, out=memory, work=work)
        assert sorted(sent) == sorted(local.keys() - there)
        assert files_at(memory) == local


@pytest.mark.parametrize("damage", ["removed", "cut", "same size, written again"])
def test_a_shard_at_the_url_that_is_not_the_one_that_was_sent_is_made_again(
    memory: str, tmp_path: Path, damage: str
) -> None:
    blend = image_blend(tmp_path, 8)
    run_build(blend, out=memory, work=tmp_path / "work")
    sound = files_at(memory)
    shard = next(path for path in sound if path.endswith(".tar"))
    if damage == "removed":
        remove_at(f"{memory}/{shard}")
    else:
        write_at(f"{memory}/{shard}", sound[shard][:-1] if damage == "cut" else flip(sound[shard], 700))
    with counted_puts() as sent:
        report = run_build(blend, out=memory, work=tmp_path / "work")
    assert (report.built_tasks, sent) == (1, [shard])
    assert files_at(memory) == sound


def test_the_old_build_stays_whole_until_every_shard_of_the_new_one_was_sent(memory: str, tmp_path: Path) -> None:
    run_build(image_blend(tmp_path, 8), out=memory, work=tmp_path / "work")
    old = shards.open(memory).manifest.hash
    blend = image_blend(tmp_path, 20)
    new_files = 6  # three shards; the first two are those of the old build
    for sends in range(1, new_files):
        with killed_after(1):
            run_build(blend, out=memory, work=tmp_path / "new")
        assert shards.open(memory).manifest.hash == old
        problems = shards.verify(shards.open(memory)).problems
        assert len(problems) == sends
        assert all("not in the manifest" in problem for problem in problems)
    run_build(blend, out=memory, work=tmp_path / "new")
    assert len(shards.open(memory)) == 20


def test_a_work_folder_of_a_version_that_kept_the_whole_build_there_loses_its_shards(
    memory: str, tmp_path: Path
) -> None:
    blend = image_blend(tmp_path, 8)
    work = tmp_path / "work"
    build(blend, out=work)
    assert local_shards(work)
    run_build(blend, out=memory, work=work)
    assert files_of(work) == {}


def test_a_url_that_refuses_a_shard_ends_the_build_in_one_line(memory: str, tmp_path: Path) -> None:
    def refuse(self: MemoryFileSystem, local: str, path: str, **options: Any) -> None:
        raise PermissionError(13, "denied", path)

    with (
        mock.patch.object(MemoryFileSystem, "put_file", refuse),
        pytest.raises(DataError, match=rf"{memory}/shards/mine/\S+: cannot be written: access refused") as caught,
    ):
        run_build(image_blend(tmp_path, 4), out=memory, work=tmp_path / "work")
    assert "\n" not in str(caught.value)
