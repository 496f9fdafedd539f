"""`verify` takes a sound build, and no other: every damaged byte is found and named."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

import shards
from shards import ShardError
from tests.support import handmade_builds
from tests.support.handmade_builds import (
    problems,
)
from tests.support.manifests import edit_manifest


@pytest.fixture
def build(tmp_path: Path) -> Path:
    return handmade_builds.make(tmp_path / "build").folder


def files(build: Path) -> list[Path]:
    return sorted(path for path in build.rglob("*") if path.is_file())


def test_a_sound_build_passes_and_is_counted(build: Path) -> None:
    seen: list[int] = []
    verification = shards.verify(shards.open(build), progress=seen.append)
    assert verification.problems == []
    assert (verification.shards, verification.samples, verification.images) == (4, 13, 14)
    assert (
        verification.size_bytes
        == sum(seen)
        == sum(path.stat().st_size for path in files(build) if path.suffix != "")
        - ((build / "manifest.json").stat().st_size)
    )


def test_every_single_flipped_bit_is_found(build: Path) -> None:
    chosen = random.Random(1)
    paths = files(build)
    assert {path.suffix for path in paths} == {".tar", ".arrow", ".json", ".jsonl", ".jinja"}
    for turn in range(240):
        path = paths[turn % len(paths)]
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        assert problems(build), (path, [at for at in range(len(data)) if data[at] != damaged[at]])
        path.write_bytes(data)
    assert problems(build) == []


@pytest.mark.slow
def test_a_flipped_bit_in_any_byte_of_the_manifest_is_found(build: Path) -> None:
    path = build / "manifest.json"
    data = path.read_bytes()
    chosen = random.Random(3)
    for offset in range(len(data)):
        for bit in range(8) if offset % 8 == 0 else (chosen.randrange(8),):
            damaged = bytearray(data)
            damaged[offset] ^= 1 << bit
            path.write_bytes(damaged)
            assert problems(build), (offset, bit)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"1e-05", b"1E-05"), (b"1e-05", b"10e-6"), (b" ", b"\t"), ("ö".encode(), b"\\u00f6"), (b"{", b"\xef\xbb\xbf{")],
)
def test_a_manifest_that_says_the_same_in_other_bytes_is_found(build: Path, old: bytes, new: bytes) -> None:
    path = build / "manifest.json"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    (problem,) = problems(build)
    assert "manifest.json: " in problem


def test_random_bytes_anywhere_are_found(build: Path) -> None:
    chosen = random.Random(2)
    paths = files(build)
    for turn in range(80):
        path = paths[turn % len(paths)]
        data = path.read_bytes()
        start = chosen.randrange(len(data))
        path.write_bytes(
            data[:start] + chosen.randbytes(chosen.randrange(1, 900)) + data[start:][chosen.randrange(3) :]
        )
        assert problems(build), path
        path.write_bytes(data)


def test_every_missing_emptied_cut_or_lengthened_file_is_named(build: Path) -> None:
    for path in files(build):
        data = path.read_bytes()
        for content in (None, b"", data[:-1], data + b"\0"):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            lines = problems(build)
            assert len(lines) == 1, lines
            assert str(path) in lines[0] or (path.name == "manifest.json" and str(build) in lines[0])
            path.write_bytes(data)


def test_a_folder_where_a_file_should_be_is_a_problem(build: Path) -> None:
    (build / "rejects.jsonl").unlink()
    (build / "rejects.jsonl").mkdir()
    (problem,) = problems(build)
    assert "rejects.jsonl: cannot be read" in problem


@pytest.mark.parametrize("suffix", [".tar", ".arrow"])
def test_exchanged_shards_and_indexes_are_found(build: Path, suffix: str) -> None:
    first, second = [path for path in files(build) if path.suffix == suffix and "alpha/train" in str(path)]
    third = build / "third"
    first.rename(third)
    second.rename(first)
    third.rename(second)
    lines = problems(build)
    assert len(lines) == 2
    assert str(first) in lines[0]
    assert str(second) in lines[1]


@pytest.mark.parametrize("name", ["shards/alpha/train-00009-0123abcd.tar", "shards/x/y", "tokenizer/added_tokens.json"])
def test_a_file_too_many_is_named(build: Path, name: str) -> None:
    (build / name).parent.mkdir(exist_ok=True)
    (build / name).write_bytes(b"{}")
    assert problems(build) == [f"{build / name}: is in the build but not in the manifest; remove it"]


def test_what_is_not_of_the_build_is_left_alone(build: Path) -> None:
    for name in ("notes.txt", ".cache/tasks/1.json"):
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).write_bytes(b"mine")
    assert problems(build) == []


def test_all_problems_are_reported_at_once(build: Path) -> None:
    for path in files(build):
        if path.name != "manifest.json":
            path.write_bytes(b"?")
    # A shard and its index are two files, so four shards are eight.
    assert len(problems(build)) == 3 + 8


def test_a_shard_pinned_with_the_index_of_another_is_found(build: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        first, second = content["datasets"]["alpha"]["shards"]["train"]
        for key in ("index", "index_size", "index_sha256"):
            first[key], second[key] = second[key], first[key]

    edit_manifest(build, change)
    lines = problems(build)
    assert len(lines) == 2
    assert all("is damaged: its bytes do not match the index's checksum" in problem for problem in lines)


@pytest.mark.parametrize("name", ["samples", "images", "text_tokens", "trained_tokens"])
def test_counts_that_are_not_those_of_the_index_are_found(build: Path, name: str) -> None:
    def change(content: dict[str, Any]) -> None:
        beta = content["datasets"]["beta"]
        beta["shards"]["train"][0][name] += 1
        sums = {"samples": ["samples"], "images": ["images", "tokens"], "text_tokens": ["tokens"]}
        for total in sums.get(name, [name]):  # of which opening the build knows
            beta[total] += 1
        if name == "samples":
            beta["splits"]["train"] += 1

    edit_manifest(build, change)
    (problem,) = problems(build)
    assert "beta/train-00000" in problem
    assert "the manifest" in problem


@pytest.mark.parametrize("path", ["files", "tokenizer", "config", "tokenizer.image_id", "config.limits.max_length"])
def test_a_manifest_without_what_verify_needs_is_a_shard_error_with_the_missing_key(build: Path, path: str) -> None:
    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            content = content[parent]
        del content[last]

    edit_manifest(build, change)
    with pytest.raises(ShardError, match=rf"manifest\.json: {re.escape(path)}: missing; expected .*; rebuild"):
        shards.verify(shards.open(build))


@pytest.mark.parametrize(("version", "side"), [(4, "newer"), (0, "older")])
def test_a_build_of_another_version_is_refused_and_the_older_side_named(build: Path, version: int, side: str) -> None:
    edit_manifest(build, lambda document: document.update(version=version))
    with pytest.raises(ShardError, match=f"the build is {side}"):
        shards.verify(shards.open(build))


def test_verify_changes_nothing(build: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(build)}
    shards.verify(shards.open(build))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(build)} == before


def test_what_energon_adds_is_not_a_problem_unless_its_tar_is_gone(build: Path) -> None:
    shard = shards.open(build).manifest.datasets["alpha"].shards["train"][0]
    for name in ("shards/.nv-meta/split.yaml", "shards/alpha/.nv-meta/index.sqlite", f"{shard.path}.idx"):
        (build / name).parent.mkdir(exist_ok=True)
        (build / name).write_bytes(b"x")
    assert problems(build) == []
    (build / "shards/alpha/gone.tar.idx").write_bytes(b"x")
    assert problems(build) == [f"{build}/shards/alpha/gone.tar.idx: is in the build but not in the manifest; remove it"]
