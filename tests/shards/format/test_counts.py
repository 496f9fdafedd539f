"""Counts of a manifest that cannot be true are refused when a build is opened, in one line that names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shards
from shards import ShardError
from tests.support import handmade_builds
from tests.support.manifests import edit_manifest

FORGED: list[tuple[str, Any]] = [
    ("datasets.alpha.records", 10**6),
    ("datasets.alpha.members", 0),
    ("datasets.alpha.samples", 1),
    ("datasets.alpha.images", 10**9),
    ("datasets.alpha.tokens", 0),
    ("datasets.alpha.trained_tokens", 10**12),
    ("datasets.alpha.splits.train", 1),
    ("datasets.alpha.splits.eval", 10**15),
    ("datasets.alpha.draws", 2**53 + 1),
    ("datasets.alpha.share", 1.5),
    ("datasets.alpha.share", -0.1),
    ("datasets.alpha.rejects.no_answer", 2**53),
    ("datasets.alpha.shards.train.0.samples", 10**9),
    ("datasets.alpha.shards.train.0.images", 10**9),
    ("datasets.alpha.shards.train.0.text_tokens", 10**9),
    ("datasets.alpha.shards.train.0.trained_tokens", 10**5),
    ("datasets.alpha.shards.train.0.size", 10),
    ("datasets.alpha.shards.train.0.size", 2**60),
    ("datasets.alpha.shards.train.0.index_size", -(2**60)),
    ("datasets.alpha.shards.eval.0.samples", -5),
    ("tokenizer.vocabulary_size", 2**31),
    ("tokenizer.image_id", 2**31),
    ("tokenizer.image_id", -1),
    ("config.image_tokens", 2**60),
    ("config.limits.max_length", 10**30),
    ("config.limits.max_images", -1),
]


@pytest.mark.parametrize(("path", "value"), FORGED, ids=[f"{path}={value!s:.20}" for path, value in FORGED])
def test_a_forged_count_is_refused_when_the_build_is_opened(tmp_path: Path, path: str, value: Any) -> None:
    build = handmade_builds.make(tmp_path).finish()

    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            document = document[int(key) if isinstance(document, list) else key]
        document[last] = value

    edit_manifest(build, change)
    with pytest.raises(ShardError) as error:
        shards.open(build)
    text = str(error.value)
    assert text.count("\n") == 0
    assert path.rpartition(".")[0] in text or path.split(".")[1] in text
    assert "expected" in text


def test_a_shard_with_more_samples_than_its_file_has_bytes_is_refused_although_all_sums_agree(tmp_path: Path) -> None:
    build = handmade_builds.make(tmp_path).finish()

    def change(document: Any) -> None:
        alpha = document["datasets"]["alpha"]
        alpha["shards"]["train"][0]["samples"] += 10**6
        for field in ("records", "members", "samples"):
            alpha[field] += 10**6
        alpha["splits"]["train"] += 10**6

    edit_manifest(build, change)
    with pytest.raises(ShardError, match=r"datasets\.alpha\.shards\.train\.0\.size: got \d+; expected at least"):
        shards.open(build)
