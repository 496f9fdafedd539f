"""A build from the outside: what comes out, what is refused, and that nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import webdataset

import shards
from preprocess.compiler.build import run_build
from preprocess.compiler.report import BuildReport
from preprocess.errors import ConfigError, DataError
from preprocess.views.inspect import inspect_samples
from tests.support.paths import ROOT
from tests.support.small_blends import (
    TOKENIZER,
    build,
    chat_blend,
    chat_record,
    files_of,
    image_blend,
    rejects_of,
    write_blend,
    write_chat,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    out = tmp_path_factory.mktemp("demo") / "build"
    return run_build(ROOT / "examples/blend.yaml", out=out, workers=2)


def test_the_demo_blend_gives_a_sound_build_of_every_adapter(demo: BuildReport) -> None:
    assert len(demo.datasets) == 14
    assert all(dataset.samples for dataset in demo.datasets.values())
    verification = shards.verify(shards.open(demo.path))
    assert verification.problems == []
    assert verification.samples == sum(dataset.samples for dataset in demo.datasets.values())


def test_records_read_are_members_written_plus_rejects(demo: BuildReport) -> None:
    for dataset in demo.datasets.values():
        assert dataset.records == dataset.members + sum(dataset.rejects.values())
    assert len(rejects_of(demo.path)) == sum(sum(dataset.rejects.values()) for dataset in demo.datasets.values())


def test_no_image_is_on_both_sides_of_the_split_over_the_whole_blend(demo: BuildReport) -> None:
    groups: dict[str, set[str]] = {"train": set(), "eval": set()}
    for _, split, shard in shards.open(demo.path).shards():
        groups[split].update(*shard.index.table.column("groups").to_pylist())
    assert groups["eval"]
    assert not groups["train"] & groups["eval"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the tar for the garbage collector to close
def test_a_plain_webdataset_reader_yields_tokens_and_images_in_order(demo: BuildReport) -> None:
    for _, _, shard in shards.open(demo.path).shards():
        plain = list(webdataset.WebDataset(str(shard.path), shardshuffle=False).decode())
        assert [sample["__key__"] for sample in plain] == shard.sample_keys()
        for row, sample in enumerate(plain):
            ours = shard[row]
            assert (sample["tokens.npy"] == [ours.ids, ours.labels]).all()
            images = [sample[name] for name in sample if name[0].isdigit()]
            assert images == list(ours.images)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path, workers: int) -> None:
    blend = image_blend(tmp_path, split={"eval": 0.3}, seed=3)
    build(blend, out=tmp_path / "one")
    build(blend, out=tmp_path / "many", workers=workers)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")


def test_too_many_rejects_fail_the_build_and_keep_the_finished_one(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    sound = files_of(tmp_path / "build")
    for number in range(6):
        (tmp_path / f"mine/{number}.jpg").unlink()
    with pytest.raises(DataError, match=r"6 of 12 records are rejects \(image_missing 6\)") as caught:
        build(blend)
    assert "failed-rejects.jsonl" in str(caught.value)
    after = files_of(tmp_path / "build")
    del after["failed-rejects.jsonl"]
    assert after == sound
    assert shards.verify(shards.open(tmp_path / "build")).problems == []


def test_a_first_build_that_fails_writes_its_rejects_and_no_manifest(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [chat_record(0), "{broken", "[]"])
    with pytest.raises(DataError, match="2 of 3 records are rejects"):
        build(blend)
    assert not (tmp_path / "build/manifest.json").exists()
    assert [reject["reason"] for reject in rejects_of(tmp_path / "build")] == ["broken_json", "wrong_type"]
    assert build(blend, settings=["limits.max_reject_share=1"]).datasets["mine"].samples == 1


def test_two_builds_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    with (tmp_path / "build/.cache/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is running there"):
            build(blend)


def test_the_manifest_holds_no_time_and_no_path_of_this_machine(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend)
    os.utime(tmp_path / "mine/0.jpg", (1, 1))
    text = (tmp_path / "build/manifest.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["config"].pop("tokenizer").startswith("/")  # the blend itself says so
    assert str(tmp_path) not in json.dumps(content)
    build(blend)
    assert (tmp_path / "build/manifest.json").read_text(encoding="utf-8") == text


def test_every_kind_of_amount_gives_exact_draws(tmp_path: Path) -> None:
    for name in "abcde":
        write_chat(tmp_path / name, [chat_record(number) for number in range(10)])
    amounts: list[dict[str, object]] = [
        {"samples": "all"},
        {"samples": 3},
        {"epochs": 2.5},
        {"weight": 1.0},
        {"weight": 2.0},
    ]
    entries = [{"name": n, "adapter": "chat", "root": n, **a} for n, a in zip("abcde", amounts, strict=True)]
    report = build(write_blend(tmp_path / "blend.yaml", entries, total=100))
    assert [dataset.draws for dataset in report.datasets.values()] == [10, 3, 25, 33, 67]
    assert sum(dataset.share for dataset in report.datasets.values()) == pytest.approx(1)


def test_weights_on_a_dataset_without_train_samples_are_refused(tmp_path: Path) -> None:
    for name, split in (("mine", "val"), ("other", "train")):
        write_chat(tmp_path / name, [chat_record(number, split=split) for number in range(4)])
    entries: list[dict[str, Any]] = [
        {"name": "mine", "adapter": "chat", "root": "mine", "weight": 1.0},
        {"name": "other", "adapter": "chat", "root": "other"},
    ]
    with pytest.raises(DataError, match="mine: the blend draws 10 samples from it, but it has no train samples"):
        build(write_blend(tmp_path / "blend.yaml", entries, total=10))


def test_official_splits_are_honoured_unless_the_blend_says_otherwise(tmp_path: Path) -> None:
    records = [chat_record(number, split="val" if number < 3 else "train") for number in range(8)]
    blend = chat_blend(tmp_path, records)
    assert build(blend).datasets["mine"].splits == {"train": 5, "eval": 3}
    assert build(blend, settings=["split.official=ignore"]).datasets["mine"].splits == {"train": 8, "eval": 0}


def test_a_dataset_may_have_a_template_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_chat(tmp_path / name, [chat_record(0)])
    entries = [
        {"name": "a", "adapter": "chat", "root": "a"},
        {"name": "b", "adapter": "chat", "root": "b", "template": "chatml"},
    ]
    build(write_blend(tmp_path / "blend.yaml", entries, variables={"system_prompt": "Be brief."}))
    texts = {
        found.dataset: "".join(piece.text for piece in found.pieces) for found in inspect_samples(tmp_path / "build")
    }
    assert texts["a"].startswith("<s>Be brief.")
    assert texts["b"].startswith("<|im_start|>user")


def test_all_problems_of_a_blend_are_reported_before_work_starts(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"name": "Bad Name", "adapter": "lava", "root": "."},
        {"name": "b", "adapter": "chat", "root": "nowhere", "epochs": 1.0, "weight": 2.0},
        {"name": "b", "adapter": "llava", "root": ".", "options": {"duplicate_idz": "keep"}},
    ]
    blend = write_blend(tmp_path / "blend.yaml", entries)
    with pytest.raises(ConfigError) as caught:
        build(blend)
    text = "\n".join(caught.value.problems)
    for expected in (
        "Bad Name",
        "did you mean llava",
        "exactly one of",
        "b twice",
        "did you mean duplicate_ids",
        "total: missing",
    ):
        assert expected in text
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["template=vicunja"], "did you mean vicuna?"),
        (["variables.system_promt=x"], "did you mean system_prompt?"),
        (["tokenizer=/nowhere/at/all"], "tokenizer /nowhere/at/all: no such folder"),
        (["template=broken.jinja"], "template broken.jinja"),
        (["datasets.mine.root=nowhere"], "no folder"),
        (["datasets.mine.annotations=none.jsonl"], "matches none.jsonl"),
        (["datasets.mine.images=[pictures]"], "matches pictures"),
        (["datasets.our.root=x"], "no entry 'our'; there are mine"),
        (["limit.max_length=5"], "did you mean limits?"),
        (["image.check=heder"], "did you mean header?"),
    ],
)
def test_a_mistake_in_the_settings_names_its_place_and_the_nearest_match(
    tmp_path: Path, settings: list[str], expected: str
) -> None:
    blend = chat_blend(tmp_path, [chat_record(0)])
    with pytest.raises(ConfigError) as caught:
        build(blend, settings=settings)
    assert expected in "\n".join(caught.value.problems)


def test_first_reads_only_so_many_records(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [chat_record(number) for number in range(9)], dataset={"first": 4})
    assert build(blend).datasets["mine"].records == 4


def test_an_output_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [chat_record(0)])
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        build(blend, out=tmp_path / "taken")


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(ConfigError, match="holds other files"):
        build(blend, out=tmp_path)
    assert files_of(tmp_path) == before


def test_a_folder_with_a_manifest_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build/manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(ConfigError, match="holds other files, which a build would mix with its own"):
        build(chat_blend(tmp_path, [chat_record(1)]))
    assert (tmp_path / "build/manifest.json").read_text() == '{"name": "a web page"}'


def test_a_home_folder_is_written_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    write_chat(tmp_path / "mine", [chat_record(number) for number in range(3)])
    datasets = [{"name": "mine", "adapter": "chat", "root": "~/mine"}]
    (tmp_path / "here").mkdir()
    blend = write_blend(tmp_path / "here/blend.yaml", datasets, tokenizer="~/tokenizer", out="~/there")
    assert build(blend, out=None).path == tmp_path / "there"
    assert len(shards.open("~/there")) == 3
