"""The official split: what a record states, and without that, what the name of its file says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.base import Adapter, Request
from preprocess.adapters.lookup import read_records
from preprocess.adapters.parsing.splits import split_of_file, split_of_image, stated_split, with_splits_of_files
from preprocess.conversation import Conversation, OfficialSplit, RecordSource, Reject, Turn
from preprocess.errors import RejectError
from tests.support.small_blends import chat_record, write_chat


def conversation(*files: str, split: OfficialSplit = "") -> Conversation:
    return Conversation(
        id="a",
        turns=(Turn(role="user", parts=("?",)), Turn(role="assistant", parts=("!",))),
        sources=tuple(RecordSource(file=file, record="0") for file in files),
        official_split=split,
    )


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/validation-00000-of-00003.parquet", "val"),
        ("val.jsonl", "val"),
        ("VAL.json", "val"),
        ("valid.jsonl", "val"),
        ("my_dev_set.json", "val"),
        ("chat-eval.json", "val"),
        ("captions_val2017.json", "val"),
        ("llavaTest.json", "test"),
        ("refcoco_testA.json", "test"),
        ("v2_OpenEnded_mscoco_test-dev2015_questions.json", "test"),
        ("test/part-0.jsonl", "test"),
        ("validation/en/part-0.jsonl", "val"),
        ("val/train.jsonl", "train"),
        ("test/train_val.jsonl", "test"),
        ("train_val.jsonl", ""),
        ("train-test-split.json", ""),
        ("latest.jsonl", ""),
        ("contest.json", ""),
        ("evaluate_me.json", ""),
        ("trainval.json", ""),
        ("chat.jsonl", ""),
    ],
)
def test_the_name_of_a_file_says_its_split_and_then_its_folders_do(file: str, split: str) -> None:
    assert split_of_file(file) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [("COCO_val2014_000000000002.jpg", "val"), ("test2015", "test"), ("train_or_val.jpg", ""), ("dev_board.jpg", "")],
)
def test_the_name_of_an_image_says_a_split_only_in_the_words_of_coco(name: str, split: str) -> None:
    assert split_of_image(name) == split


@pytest.mark.parametrize(
    ("value", "split"),
    [(None, ""), ("", ""), ("train", "train"), ("Validation", "val"), ("dev", "val"), ("TEST", "test")],
)
def test_a_record_states_its_split_in_any_common_word(value: Any, split: str) -> None:
    assert stated_split(value) == split


@pytest.mark.parametrize(("value", "reason"), [("holdout", "bad_value"), (1, "wrong_type"), (["val"], "wrong_type")])
def test_a_split_that_nobody_knows_is_a_reject(value: Any, reason: str) -> None:
    with pytest.raises(RejectError, match="expected train, val or test") as caught:
        stated_split(value)
    assert caught.value.reason == reason


def test_a_record_without_a_split_gets_that_of_its_file_and_test_wins_in_a_join() -> None:
    reject = Reject(reason="bad_value", source=RecordSource(file="val.json", record="1"), detail="no")
    held_out: dict[str, OfficialSplit] = {"val.json": "val", "test.json": "test"}
    items: list[Conversation | Reject] = [
        conversation("a.json"),
        conversation("val.json"),
        conversation("val.json", split="train"),
        conversation("a.json", "val.json", "test.json"),
        reject,
    ]
    made = list(with_splits_of_files(iter(items), held_out))
    assert [item.official_split for item in made if isinstance(item, Conversation)] == ["", "val", "train", "test"]
    assert made[-1] == reject


def test_every_adapter_reads_the_split_from_the_names_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(request: Request) -> Iterator[Conversation]:
        yield from (conversation(request.source_file(path)) for path in request.annotations)

    adapter = Adapter(read=read, annotations=("*",), images=(), layout="", where="", licence="")
    monkeypatch.setattr("preprocess.adapters.lookup.find_adapter", lambda name: adapter)
    files = ("a.json", "val/a.json", "test-00000.parquet")
    request = Request(root=tmp_path, annotations=tuple(tmp_path / file for file in files), images=())
    splits = [item.official_split for item in read_records("theirs", request) if isinstance(item, Conversation)]
    assert splits == ["", "val", "test"]


def test_a_chat_record_keeps_the_split_that_it_states_in_a_file_named_val(tmp_path: Path) -> None:
    write_chat(tmp_path / "val", [chat_record(0), chat_record(1, split="train"), chat_record(2, split="test")])
    request = Request(root=tmp_path, annotations=(tmp_path / "val/chat.jsonl",), images=())
    made = [item for item in read_records("chat", request) if isinstance(item, Conversation)]
    assert [item.official_split for item in made] == ["val", "train", "test"]
