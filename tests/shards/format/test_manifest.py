"""manifest.json, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

from shards.format.manifest import BuildConfig, DatasetInfo, InputFile, Manifest, TokenizerInfo
from shards.format.manifest_file import manifest_hash, read_manifest, write_manifest
from shards.format.shard_info import ShardInfo, ShardList
from shards.storage.store import LocalStore
from shards.typed_json import from_json, to_json
from tests.support.handmade_builds import CONFIG
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests/golden/shards"


def shard(number: int) -> ShardInfo:
    stem = f"shards/words/train-{number:05d}-0123abcd"
    return ShardInfo(
        path=f"{stem}.tar",
        size=10240,
        sha256="1" * 64,
        index=f"{stem}.arrow",
        index_size=1024,
        index_sha256="2" * 64,
        samples=3 + number,
        images=4,
        text_tokens=50,
        trained_tokens=20,
    )


def dataset(infos: list[ShardInfo]) -> DatasetInfo:
    samples = sum(info.samples for info in infos)
    return DatasetInfo(
        adapter="chat",
        template="{{ messages }}",
        records=samples + 2,
        members=samples,
        samples=samples,
        splits={"train": samples, "eval": 0},
        images=4 * len(infos),
        tokens=54 * len(infos),
        trained_tokens=20 * len(infos),
        share=0.5,
        draws=14,
        rejects={"no_answer": 2},
        notes={"größer": 1},
        absent=("*.jsonl",),
        inputs=(InputFile(file="chat.json", size=99, sha256="3" * 64),),
        shards={"train": ShardList(infos), "eval": ShardList()},
    )


def manifest() -> Manifest:
    return Manifest(
        dsvl="0.1.0",
        compiler=1,
        libraries={"jinja2": "3.1.6"},
        config=from_json(BuildConfig, {**CONFIG, "datasets": [{"name": "words"}, {"name": "none"}]}, "config"),
        template="{{ messages }}",
        tokenizer=TokenizerInfo(fingerprint="4" * 64, vocabulary_size=99, image_id=5, bos_token="", eos_token="</s>"),
        datasets={"words": dataset([shard(0), shard(1)]), "none": dataset([])},
        files={"rejects.jsonl": "5" * 64, "tokenizer/tokenizer.json": "6" * 64},
    )


def test_the_bytes_of_a_manifest_are_golden(tmp_path: Path) -> None:
    written = write_manifest(tmp_path, manifest())
    assert (tmp_path / "manifest.json").read_bytes() == (GOLDEN / "manifest.json").read_bytes()
    assert written.hash == manifest_hash(json.loads((GOLDEN / "manifest.json").read_bytes()))


def test_a_manifest_is_read_as_it_was_written() -> None:
    actual = read_manifest(LocalStore(GOLDEN))
    assert to_json(actual) == {**to_json(manifest()), "hash": actual.hash}
    assert list(actual.datasets) == ["words", "none"]
    assert list(actual.shards()) == [("words", "train", shard(0)), ("words", "train", shard(1))]
    assert (actual.has_samples("train"), actual.has_samples("eval")) == (True, False)
    assert actual.config.image.size == 32


def test_what_goes_with_a_model_names_no_shard_and_no_path() -> None:
    facts = read_manifest(LocalStore(GOLDEN)).facts()
    text = json.dumps(to_json(facts))
    assert from_json(type(facts), json.loads(text)) == facts
    assert "shards" not in text
    assert "chat.json" not in text


def test_a_list_of_shards_gives_them_one_by_one_or_as_a_slice() -> None:
    shards = ShardList([shard(0), shard(1), shard(2)])
    assert (len(shards), shards[-1], list(shards[1:])) == (3, shard(2), [shard(1), shard(2)])
    assert shards.samples == [3, 4, 5]
    assert {*shards.paths} == {path for info in shards for path in (info.path, info.index)}
