"""Shards and manifests with tiles: golden bytes, versions, and what is not as the format says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards.errors import ShardError
from shards.format.manifest_file import manifest_hash, manifest_text
from shards.format.shard_info import ShardInfo, ShardList
from shards.format.writer import ShardWriter
from shards.typed_json import to_json
from tests.support.tiled_builds import tiled

TOKENS = np.array([[7, 5, 8, 9], [-100, -100, 8, 9]], np.int32)


def written(folder: Path, *, tiled: bool) -> ShardInfo:
    writer = ShardWriter(folder, "shards/d", "train-00000", tiled=tiled)
    grid = {"columns": 3, "rows": 2} if tiled else {}
    writer.add(
        "d-1",
        metadata={"id": "1", "images": [{"name": "a.jpg", "width": 96, "height": 64, **grid}]},
        tokens=TOKENS,
        images=[("jpg", b"\xff\xd8\xff not decoded here")],
        trained_tokens=2,
        groups=["a"],
        tiles=[7] if tiled else [],
    )
    info = writer.finish()
    assert info is not None
    return info


def test_a_shard_with_tiles_has_golden_bytes_and_counts_them(tmp_path: Path) -> None:
    info = written(tmp_path, tiled=True)
    assert info.tiles == 7
    assert hashlib.sha256((tmp_path / info.path).read_bytes()).hexdigest() == info.sha256
    assert info.sha256 == "659123f4c0fdc02f251660bcd97b019d5ddea85a00abadd75bf29e38351eabe4"
    assert written(tmp_path / "plain", tiled=False).tiles is None


def test_shards_with_tiles_are_listed_and_come_back(tmp_path: Path) -> None:
    infos = [replace(written(tmp_path, tiled=True), samples=count) for count in (1, 2)]
    read = ShardList.from_json(to_json(infos), "shards")
    assert list(read) == infos
    assert read.has_tiles
    mixed = ShardList.from_json(to_json([infos[0], written(tmp_path / "plain", tiled=False)]), "shards")
    assert [info.tiles for info in mixed] == [7, None]
    mixed = ShardList.from_json(to_json([written(tmp_path / "plain", tiled=False), infos[0]]), "shards")
    assert [info.tiles for info in mixed] == [None, 7]


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A sound manifest with other content: what a wrong program might write."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    document["hash"] = manifest_hash(document)
    path.write_bytes(manifest_text(document))
    return folder


def _without_tiles(document: dict[str, Any]) -> None:
    for info in document["datasets"]["mine"]["shards"]["train"]:
        del info["tiles"]
    document["version"] = 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tree: tree.update(version=1), "has images with tiles, but is of format version 1, which has none"),
        (lambda tree: tree.update(version=2), "has images with tiles, but is of format version 2, which has none"),
        (lambda tree: tree["config"]["image"].pop("tiles"), "config.image.tiles is missing; rebuild it"),
        (lambda tree: tree["config"]["image"].update(tiles=0), "config.image.tiles: got 0; expected"),
        (lambda tree: tree["config"]["image"].update(grid="best"), "config.image.grid: got 'best'; expected one of"),
        (lambda tree: tree.update(version=4), "the build is newer: format version 4, this program reads 1 to 3"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    change: Callable[[dict[str, Any]], None], problem: str, tmp_path: Path
) -> None:
    tiled(tmp_path, images=[[(96, 64)]])
    with pytest.raises(ShardError) as raised:
        shards.open(edited(tmp_path / "build", change))
    assert problem in str(raised.value)


def test_an_index_with_tiles_is_not_taken_for_one_without(tmp_path: Path) -> None:
    tiled(tmp_path, images=[[(96, 64)]])
    build = shards.open(edited(tmp_path / "build", _without_tiles))
    with pytest.raises(ShardError, match="has a column of tiles, the manifest says otherwise"):
        build["train"][0]
    (problem, *_) = shards.verify(build).problems
    assert "has a column of tiles, the manifest says otherwise" in problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tree: tree["config"]["limits"].update(max_tiles=6), "it has more tiles than limits.max_tiles"),
        (lambda tree: tree["config"]["image"].update(size=16), "a stored image is not the canvas of its grid"),
        (lambda tree: tree["config"].update(image_tokens=40), "is over limits.max_length"),
        (
            lambda tree: tree["datasets"]["mine"]["shards"]["train"][0].update(tiles=8),
            "its index counts 7 tiles, the manifest 8",
        ),
    ],
)
def test_verify_finds_tiles_that_are_not_as_the_manifest_says(
    change: Callable[[dict[str, Any]], None], problem: str, tmp_path: Path
) -> None:
    tiled(tmp_path, images=[[(96, 64)]], image={"store": "resized"})
    problems = shards.verify(shards.open(edited(tmp_path / "build", change))).problems
    assert any(problem in line for line in problems), problems
