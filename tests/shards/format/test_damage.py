"""Whatever happens to a build's files, reading gives the right samples or an error that names file and key."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import shards
from shards import Sample, ShardError, ShardInfo
from tests.support import handmade_builds

FLIPS = 500


@pytest.fixture
def build(tmp_path: Path) -> Path:
    return handmade_builds.make(tmp_path / "build").folder


def said(sample: Sample) -> tuple[object, ...]:
    images = tuple(map(bytes, sample.images))
    return sample.key, sample.metadata, sample.ids.tolist(), sample.labels.tolist(), images


def read_all(build: Path) -> list[tuple[object, ...]]:
    """Every sample of every split, as training reads them."""
    opened = shards.open(build)
    return [said(sample) for split in opened.splits for sample in opened[split]]


def infos(build: Path) -> list[ShardInfo]:
    return [info for _, _, info in shards.open(build).manifest.shards()]


def test_single_flipped_bits_in_shards_and_indexes_are_all_detected(build: Path) -> None:
    chosen = random.Random(7)
    paths = [build / name for info in infos(build) for name in (info.path, info.index)]
    sizes = [path.stat().st_size for path in paths]
    for _ in range(FLIPS):
        (path,) = chosen.choices(paths, sizes)
        data = path.read_bytes()
        offset, bit = chosen.randrange(len(data)), chosen.randrange(8)
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :])
        with pytest.raises(ShardError) as caught:
            read_all(build)
        assert str(path) in str(caught.value), (path, offset, bit)
        path.write_bytes(data)
    assert len(read_all(build)) == 13


def test_a_flipped_bit_in_one_sample_is_reported_with_its_key_and_leaves_the_others_readable(build: Path) -> None:
    expected = read_all(build)
    opened = shards.open(build)
    number, in_shard = opened["train"].locate(5)
    shard = opened["train"].shard(number)
    entry = shard.index.entry(in_shard)
    data = bytearray(shard.path.read_bytes())
    data[entry.offset + entry.size // 2] ^= 16
    shard.path.write_bytes(data)
    again = shards.open(build)["train"]
    for index in range(len(again)):
        if index == 5:
            with pytest.raises(
                ShardError, match=rf"{shard.path}: sample {entry.key} is damaged: its bytes do not match"
            ):
                again[index]
        else:
            assert said(again[index]) == expected[index]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, grow, empty, Path.unlink, replace_by_folder], ids=lambda call: call.__name__)
@pytest.mark.parametrize("part", ["path", "index"])
def test_a_file_that_is_missing_or_has_another_size_is_named(
    build: Path, part: str, damage: Callable[[Path], None]
) -> None:
    path = build / getattr(infos(build)[1], part)
    damage(path)
    with pytest.raises(ShardError, match=rf"{path}: (cannot be read|has \d+ bytes, the manifest says \d+; it was cut)"):
        read_all(build)


def test_two_shards_that_changed_places_are_reported(build: Path) -> None:
    left, right = infos(build)[:2]
    for part in ("path", "index"):
        first, second = build / getattr(left, part), build / getattr(right, part)
        kept = first.read_bytes()
        shutil.copyfile(second, first)
        second.write_bytes(kept)
        with pytest.raises(ShardError, match=r"was cut or swapped|index of another shard|is damaged"):
            read_all(build)
        second.write_bytes(first.read_bytes())
        first.write_bytes(kept)
    assert len(read_all(build)) == 13


def test_a_shard_of_equal_size_and_other_content_is_reported(tmp_path: Path) -> None:
    """Swapped with both its files: only the digests can tell."""
    mine, theirs = (handmade_builds.Handmade(tmp_path / name) for name in ("mine", "theirs"))
    ours = mine.add([handmade_builds.draft(1)])
    other = theirs.add([handmade_builds.draft(2)])
    assert (ours.size, ours.index_size) == (other.size, other.index_size)
    build = mine.finish()
    for part in ("path", "index"):
        shutil.copyfile(tmp_path / "theirs" / getattr(other, part), build / getattr(ours, part))
    with pytest.raises(ShardError, match=r"\.arrow: sha256 is .*it was damaged, or is the index of another shard"):
        read_all(build)


def test_reading_again_after_the_damage_is_fixed_gives_the_same_samples(build: Path) -> None:
    expected = read_all(build)
    path = build / infos(build)[0].path
    data = path.read_bytes()
    cut(path)
    with pytest.raises(ShardError):
        read_all(build)
    path.write_bytes(data)
    assert read_all(build) == expected


def test_a_build_that_is_replaced_while_it_is_read_is_reported_as_such(build: Path) -> None:
    reader = shards.open(build)
    assert said(reader["train"][0])
    for path in build.rglob("*"):
        if path.is_file():
            path.unlink()
    other = handmade_builds.Handmade(build)
    other.add([handmade_builds.draft(77)])
    other.finish()
    with pytest.raises(ShardError, match=r"the build was replaced while it was read .*; open it again"):
        reader["train"][7]


def test_a_relative_path_stays_right_when_the_program_changes_its_folder(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(build.parent)
    reader = shards.open(build.name)
    expected = read_all(build)
    monkeypatch.chdir("/")
    assert [said(sample) for split in reader.splits for sample in reader[split]] == expected


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (5, "5 is not a build; expected a folder or a URL"),
        ("S3:/bucket/build", "one slash is missing: S3://bucket/build"),
        ("manifest.json", "is a file; expected the folder of a build"),
    ],
)
def test_a_location_that_cannot_be_one_says_what_is_wrong(
    build: Path, monkeypatch: pytest.MonkeyPatch, location: str, words: str
) -> None:
    monkeypatch.chdir(build)
    with pytest.raises(ShardError, match=words):
        shards.open(location)


def test_a_disk_that_gives_little_at_once_gives_the_same(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_all(build)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 7), offset))
    assert read_all(build) == expected


def test_a_disk_that_fails_is_reported_with_the_shard(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = shards.open(build)["train"]
    assert train[0].key

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    for split in (train, shards.open(build)["train"]):
        with pytest.raises(ShardError, match=r"\.tar: the shard cannot be read \(.*Input/output error\)"):
            split[0]


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1, 2**40])
def test_a_place_far_outside_the_shard_is_damage(build: Path, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    shard = shards.open(build)["train"].shard(0)
    entry = shard.index.entry(0)
    monkeypatch.setattr(shard.index, "entry", lambda _: entry._replace(offset=offset))
    with pytest.raises(ShardError, match=rf"sample {entry.key} is damaged: its bytes do not match"):
        shard[0]
