"""What a blend holds out as a whole: annotation files named val or test, and datasets of one side."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shards
from preprocess.compiler.report import print_report
from preprocess.errors import ConfigError, DataError
from tests.support.small_blends import build, chat_record, jpeg, rejects_of, write_blend, write_images


def write_files(root: Path, **files: list[dict[str, Any]]) -> Path:
    """`root` with a file of JSON lines for each keyword."""
    root.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return root


def blend_of(folder: Path, *datasets: dict[str, Any], **settings: Any) -> Path:
    entries = [{"adapter": "chat", "root": dataset["name"], **dataset} for dataset in datasets]
    return write_blend(folder / "blend.yaml", entries, **settings)


def three_files(folder: Path) -> None:
    write_files(
        folder / "mine",
        train=[chat_record(number) for number in range(4)],
        val=[chat_record(4), chat_record(5, split="train")],
        test=[chat_record(6)],
    )


def test_records_of_files_named_val_and_test_are_held_out_and_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three_files(tmp_path)
    report = build(blend_of(tmp_path, {"name": "mine"}))
    assert report.datasets["mine"].splits == {"train": 5, "eval": 2}
    assert report.to_json()["datasets"]["mine"]["official_files"] == {"test.jsonl": 1, "val.jsonl": 1}
    print_report(report)
    line = (
        "mine: val or test by name: test.jsonl, val.jsonl: 2 records held out; to train on them, set split: train on "
        "the dataset"
    )
    assert line in " ".join(capsys.readouterr().out.split())
    held_out = {sample.metadata["sources"][0]["file"] for sample in shards.open(tmp_path / "build")["eval"]}
    assert held_out == {"val.jsonl", "test.jsonl"}


@pytest.mark.parametrize(
    ("settings", "splits", "said"),
    [
        (["datasets.mine.split=train"], {"train": 7, "eval": 0}, "2 records trained, as split: train says"),
        (["datasets.mine.split=eval"], {"train": 0, "eval": 7}, "2 records held out, like the whole dataset"),
        (["split.official=ignore"], {"train": 7, "eval": 0}, "2 records not held out for that"),
    ],
)
def test_the_blend_may_say_otherwise_and_the_report_says_what_became_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], splits: dict[str, int], said: str
) -> None:
    three_files(tmp_path)
    report = build(blend_of(tmp_path, {"name": "mine"}), settings=settings)
    assert report.datasets["mine"].splits == splits
    print_report(report)
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_build_without_train_samples_is_refused_unless_every_dataset_is_for_evaluation(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_files(tmp_path / name, test=[chat_record(0), chat_record(1)])
    blend = blend_of(tmp_path, {"name": "a", "split": "eval"}, {"name": "b", "annotations": "test.jsonl"})
    with pytest.raises(DataError, match=r"dataset b: all records of the build are held out.*set split: eval on every"):
        build(blend)
    assert build(blend, settings=["datasets.b.split=train"]).datasets["b"].splits == {"train": 2, "eval": 0}
    report = build(blend, settings=["datasets.b.split=eval"])
    assert [dataset.splits["eval"] for dataset in report.datasets.values()] == [2, 2]
    assert [(dataset.draws, dataset.share) for dataset in report.datasets.values()] == [(0, 0.0), (0, 0.0)]
    assert not shards.open(report.path).manifest.has_samples("train")


def test_a_dataset_of_one_side_keeps_its_images_from_the_other_side(tmp_path: Path) -> None:
    for name in ("measure", "learn", "rest"):
        write_images(tmp_path / name / "photos", 4)
    write_files(tmp_path / "measure", a=[chat_record(number, images=[f"photos/{number}.jpg"]) for number in (0, 1)])
    write_files(tmp_path / "learn", a=[chat_record(number, images=[f"photos/{number}.jpg"]) for number in (1, 2)])
    write_files(tmp_path / "rest", a=[chat_record(number, images=[f"photos/{number}.jpg"]) for number in (0, 2, 3)])
    blend = blend_of(
        tmp_path,
        {"name": "measure", "split": "eval"},
        {"name": "learn", "split": "train"},
        {"name": "rest"},
        limits={"max_reject_share": 0.5},
    )
    report = build(blend, settings=["split.eval=0.99"])
    splits = {name: dataset.splits for name, dataset in report.datasets.items()}
    assert splits["measure"] == {"train": 0, "eval": 2}
    assert splits["learn"] == {"train": 1, "eval": 0}
    assert splits["rest"]["eval"] == 2  # 0 with its image in measure, 3 by chance; 2 stays with its image in learn
    (reject,) = rejects_of(tmp_path / "build")
    assert (reject["dataset"], reject["record"], reject["reason"]) == ("learn", "r1", "split_conflict")
    assert "the blend puts this dataset on the train side (split: train)" in reject["detail"]


@pytest.mark.parametrize(
    "amount", [{"samples": 5}, {"epochs": 1.0}, {"weight": 2.0}, {"samples": "all", "epochs": 1.0}]
)
def test_an_amount_of_a_dataset_that_is_not_trained_is_a_mistake(tmp_path: Path, amount: dict[str, Any]) -> None:
    write_files(tmp_path / "mine", a=[chat_record(0)])
    blend = blend_of(tmp_path, {"name": "mine", "split": "eval", **amount}, total=10)
    with pytest.raises(ConfigError, match=r"expected no amount, or samples: all, since split: eval keeps"):
        build(blend)


def test_a_dataset_that_is_not_trained_needs_no_amount(tmp_path: Path) -> None:
    write_files(tmp_path / "measure", a=[chat_record(0)])
    write_files(tmp_path / "learn", a=[chat_record(1)])
    blend = tmp_path / "blend.yaml"
    blend_of(tmp_path, {"name": "measure", "split": "eval"}, {"name": "learn", "weight": 1.0}, total=3)
    blend.write_text(blend.read_text().replace("samples: all\n", "concat: 1\n"))
    report = build(blend)
    assert {name: dataset.draws for name, dataset in report.datasets.items()} == {"measure": 0, "learn": 3}


def test_an_image_in_a_table_and_in_a_text_is_on_one_side(tmp_path: Path) -> None:
    """The ids of their groups differ, since one is named by its row and the other by its bytes."""
    images = [jpeg(number) for number in range(12)]
    (tmp_path / "rows").mkdir()
    messages = chat_record(0, images=["x"])["messages"]
    table = pa.table({"messages": [messages] * len(images), "image": pa.array(images, pa.binary())})
    pq.write_table(table, tmp_path / "rows/chat.parquet")
    texts = [base64.b64encode(image).decode() for image in images]
    write_files(tmp_path / "texts", a=[chat_record(number, images=[text]) for number, text in enumerate(texts)])
    build(blend_of(tmp_path, {"name": "rows"}, {"name": "texts"}, split={"eval": 0.5, "official": "ignore"}))
    sides: dict[str, set[tuple[str, str]]] = {}
    for dataset, split, shard in shards.open(tmp_path / "build").shards():
        for row in range(len(shard)):
            (image,) = shard[row].images
            sides.setdefault(hashlib.sha256(image).hexdigest(), set()).add((dataset, split))
    assert {len(seen) for seen in sides.values()} == {2}
    assert all(len({split for _, split in seen}) == 1 for seen in sides.values())
    assert {split for seen in sides.values() for _, split in seen} == {"train", "eval"}
