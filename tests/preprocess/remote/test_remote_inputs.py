"""Datasets in object storage: builds from URLs compared with those of the same files in a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

import shards
import shards.storage.retries
from preprocess.compiler.carried import Carrier, run_carried
from preprocess.compiler.commit import CACHE
from preprocess.compiler.engines import ENGINES
from preprocess.containers import remote_requests
from preprocess.errors import ConfigError, DataError
from tests.support.commands import dsvl_prep
from tests.support.image_archives import KINDS
from tests.support.paths import ROOT
from tests.support.remote_builds import Flaky, remove_at, write_at
from tests.support.remote_inputs import blend_of, build_of, counted, dataset, put, without_root
from tests.support.small_blends import build, files_of, jpeg, write_blend

pytestmark = pytest.mark.usefixtures("builds_in_this_process")


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_from_a_url_has_the_bytes_of_a_build_from_a_folder(tmp_path: Path, memory: str, kind: str) -> None:
    local = dataset(tmp_path / "mine", kind)
    _, expected = build_of(tmp_path, str(local), "local", annotations="chat.jsonl", images=kind)
    report, got = build_of(tmp_path, put(local, memory), "remote", annotations="chat.jsonl", images=kind)
    assert got == expected
    assert report.datasets["mine"].records == 6


def test_a_build_from_s3_has_the_bytes_of_a_build_from_a_folder(tmp_path: Path, bucket: str) -> None:
    kinds = ["folder", "stored.zip", "plain.tar", "hf.parquet"]
    results = []
    for place in ("local", "remote"):
        entries = []
        for number, kind in enumerate(kinds):
            folder = tmp_path / f"data {number}"
            if place == "local":
                dataset(folder, kind)
            root = str(folder) if place == "local" else put(folder, f"{bucket}/{tmp_path.name}/data {number}")
            entries.append({"name": f"d{number}", "adapter": "chat", "root": root, "images": kind})
            entries[-1]["annotations"] = "chat.jsonl"
        blend = write_blend(tmp_path / f"{place}.yaml", entries)
        build(blend, out=tmp_path / place)
        results.append({name: data for name, data in files_of(tmp_path / place).items() if name != "manifest.json"})
    assert results[0] == results[1]


def test_urls_of_annotations_and_images_may_be_below_a_local_root(tmp_path: Path, memory: str) -> None:
    local = dataset(tmp_path / "mine", "plain.tar")
    _, expected = build_of(tmp_path, str(local), "local", annotations="chat.jsonl", images="plain.tar")
    put(local, memory)
    places = {"annotations": f"{memory}/*.jsonl", "images": f"{memory}/plain.tar"}
    _, got = build_of(tmp_path, str(tmp_path), "remote", **places)
    samples = {name: data for name, data in expected.items() if name.startswith("shards/")}
    assert {name: data for name, data in got.items() if name.startswith("shards/")} == samples


def test_a_rebuild_of_unchanged_data_lists_and_reads_no_image(tmp_path: Path, memory: str) -> None:
    root = put(dataset(tmp_path / "mine", "folder", 40), memory)
    with counted() as first:
        build_of(tmp_path, root, "out", images="folder")
    assert first.names["whole"] == 40  # each image once
    with counted() as again:
        report, _ = build_of(tmp_path, root, "out", images="folder")
    assert report.built_tasks == 0
    assert again.names["whole"] == 0
    assert again.names.total() < 20


def test_a_changed_image_in_object_storage_is_compiled_again(tmp_path: Path, memory: str) -> None:
    root = put(dataset(tmp_path / "mine", "folder"), memory)
    build_of(tmp_path, root, "out", images="folder", settings={"shard": {"max_samples": 2}})
    write_at(f"{root}/folder/photos/3 é.jpg", jpeg(99))
    report, got = build_of(tmp_path, root, "out", images="folder", settings={"shard": {"max_samples": 2}})
    assert report.built_tasks == 1
    _, expected = build_of(tmp_path, root, "fresh", images="folder", settings={"shard": {"max_samples": 2}})
    assert got == expected


def test_an_image_that_changes_while_a_build_reads_it_is_an_error(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(dataset(tmp_path / "mine", "folder"), memory)
    read = remote_requests.read_whole

    def swapping(url: str, size: int | None) -> bytes:
        if "3 é" in url:
            write_at(url, jpeg(7) + b"grown")
        return read(url, size)

    monkeypatch.setattr("preprocess.images.remote_folders.read_whole", swapping)
    with pytest.raises(
        DataError, match=r"3 é\.jpg: .*was written again since the build looked at it; run the same comm"
    ):
        build_of(tmp_path, root, "out", images="folder")


def test_an_image_that_is_swapped_for_one_of_equal_size_is_noticed_at_the_end(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(dataset(tmp_path / "mine", "folder"), memory)
    read = remote_requests.read_whole

    def swapping(url: str, size: int | None) -> bytes:
        data = read(url, size)
        if "3 é" in url:
            write_at(url, data[:-1] + b"\0")
        return data

    monkeypatch.setattr("preprocess.images.remote_folders.read_whole", swapping)
    with pytest.raises(DataError, match=r"1 images changed during the build: photos/3 é\.jpg"):
        build_of(tmp_path, root, "out", images="folder")


def test_a_missing_image_in_object_storage_is_a_reject_like_a_local_one(tmp_path: Path, memory: str) -> None:
    root = put(dataset(tmp_path / "mine", "folder"), memory)
    remove_at(f"{root}/folder/photos/2 é.jpg")
    report, got = build_of(tmp_path, root, "out", images="folder")
    assert report.datasets["mine"].rejects == {"image_missing": 1}
    assert b"has no 'photos/2" in got["rejects.jsonl"]


def test_a_network_that_fails_now_and_then_changes_no_byte(tmp_path: Path, flaky: str) -> None:
    local = dataset(tmp_path / "mine", "stored.zip")
    _, expected = build_of(tmp_path, str(local), "local", images="stored.zip")
    root = put(local, flaky)
    Flaky.failures = 3
    _, got = build_of(tmp_path, root, "remote", images="stored.zip")
    assert Flaky.failures == 0
    assert got == expected


def test_a_network_that_stays_down_ends_the_build_with_the_url(tmp_path: Path, flaky: str) -> None:
    root = put(dataset(tmp_path / "mine", "stored.zip"), flaky)
    Flaky.failures = 10**6
    with pytest.raises(ConfigError, match=r"flaky://bucket/build.*gave up after 5 tries.*reduce your request rate"):
        build_of(tmp_path, root, "remote", images="stored.zip")


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("memory://bucket/nothing", "nothing is below memory://bucket/nothing"),
        ("s4://bucket/a", "unknown protocol s4; did you mean s3"),
        ("s3:/bucket/a", "one slash is missing: s3://bucket/a"),
        ("s3://", "names no bucket or host"),
        ("zip://a.zip::s3://bucket/b.zip", "chained URLs are not read"),
    ],
)
def test_a_url_that_cannot_be_a_root_is_refused_before_work_starts(tmp_path: Path, root: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build(blend_of(tmp_path, root))


def test_a_file_url_is_the_folder_itself(tmp_path: Path) -> None:
    local = dataset(tmp_path / "mine", "folder")
    _, expected = build_of(tmp_path, str(local), "local", images="folder")
    assert build_of(tmp_path, f"file://{local}", "remote", images="folder")[1] == expected


def test_a_missing_bucket_and_refused_access_are_named(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.storage.retries, "FIRST_WAIT_S", 0.0)
    with pytest.raises(ConfigError, match="nothing is below s3://no-such-bucket/mine"):
        build(blend_of(tmp_path, "s3://no-such-bucket/mine"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    remote_requests._store.cache_clear()
    with pytest.raises(ConfigError, match=r"s3://models/mine: access refused .*check the credentials"):
        build(blend_of(tmp_path, "s3://models/mine"))
    remote_requests._store.cache_clear()


@pytest.mark.slow
def test_worker_processes_read_from_s3(tmp_path: Path, bucket: str) -> None:
    local = dataset(tmp_path / "mine", "folder")
    _, expected = build_of(tmp_path, str(local), "local", images="folder")
    root = put(local, f"{bucket}/{tmp_path.name}")
    blend = blend_of(tmp_path, root, images="folder")
    done = dsvl_prep("build", "--blend", blend, "--out", tmp_path / "remote", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert without_root(files_of(tmp_path / "remote")) == expected
    done = dsvl_prep("render", "--blend", blend, "--limit", 1)
    assert "photos/0 é.jpg: 32x24" in done.stdout


@pytest.mark.slow
def test_the_example_datasets_are_read_from_object_storage(tmp_path: Path, memory: str) -> None:
    example = yaml.safe_load((ROOT / "examples/blend.yaml").read_text())
    put(ROOT / "examples/data", memory)
    example["tokenizer"] = str(ROOT / "examples/tokenizer")
    for entry in example["datasets"]:
        entry["root"] = str((ROOT / "examples" / entry["root"]).resolve())
    results = []
    for name in ("local", "remote"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(example))
        build(tmp_path / f"{name}.yaml", out=tmp_path / name)
        results.append({k: v for k, v in files_of(tmp_path / name).items() if k != "manifest.json"})
        for entry in example["datasets"]:
            entry["root"] = entry["root"].replace(str(ROOT / "examples/data"), memory)
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["folder", "stored.zip", "hf.parquet"])
def test_nodes_without_the_build_folder_get_listings_and_indexes_with_their_tasks(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("DSVL_CACHE", str(tmp_path / "node"))
    local = dataset(tmp_path / "mine", kind)
    settings = {"annotations": "chat.jsonl", "images": kind}
    _, expected = build_of(tmp_path, str(local), "local", **settings)
    out, sent = tmp_path / "remote", dict[int, bytes]()

    def put_piece(piece: bytes) -> int:
        sent[len(sent)] = piece
        return len(sent) - 1

    def carried(function: Any, tasks: Any, *_: object) -> Iterator[tuple[int, Any]]:
        carrier = Carrier(out, out / CACHE, put_piece)
        for index, task in enumerate(tasks):
            yield index, carrier.unpack(run_carried(function, carrier.pack(task), sent.__getitem__))

    with mock.patch.dict(ENGINES, {"process": carried}):
        _, got = build_of(tmp_path, put(local, memory), "remote", **settings)
    assert got == expected


def test_evaluation_sets_at_a_url_are_refused_in_one_line(tmp_path: Path) -> None:
    local = dataset(tmp_path / "mine", "folder")
    blend = blend_of(tmp_path, str(local), settings={"decontaminate": [{"images": "s3://bucket/images"}]})
    with pytest.raises(ConfigError, match=r"decontaminate\.0: s3://bucket/images is a URL; expected a local file"):
        build(blend)


@pytest.mark.parametrize("kind", ["folder", "plain.tar", "hf.parquet"])
def test_a_check_of_all_inputs_reads_them_and_finds_nothing_changed(tmp_path: Path, memory: str, kind: str) -> None:
    root = put(dataset(tmp_path / "mine", kind), memory)
    blend = blend_of(tmp_path, root, annotations="chat.jsonl", images=kind)
    build(blend)
    with counted() as requests:
        report = build(blend, check_inputs=True)
    assert not report.changed
    assert report.built_tasks == 0
    assert requests.bytes > sum(len(jpeg(number)) for number in range(6))
