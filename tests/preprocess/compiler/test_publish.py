"""dsvl-prep with URLs, against a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import yaml

import shards
from preprocess.compiler.build import run_build
from tests.support.commands import dsvl_prep
from tests.support.small_blends import chat_blend, chat_record, files_of, write_images

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


def files_at(url: str) -> dict[str, bytes]:
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return {path.removeprefix(root).strip("/"): files.cat_file(path) for path in files.find(root)}


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
    assert (work / "manifest.json").exists()
    done = said("build", "--blend", write_blend(tmp_path, 5), "--out", url, "--work", work, "--json", "--workers", 1)
    published = json.loads(done)["published"]
    assert (published["uploaded_files"], published["removed_files"]) == (3, 2)
    assert files_at(url) == files_of(work)
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
