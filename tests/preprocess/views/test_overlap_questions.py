"""`overlap` lists the questions that two builds, folders or files share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import DataError
from preprocess.views.overlap import Overlap, find_overlap, print_overlap
from preprocess.views.question_sources import find_questions
from tests.support.in_process import in_this_process
from tests.support.small_blends import build, chat_blend, chat_record, jpeg

LONG = "How many of the red boats in the harbour have a white sail that is torn?"
OTHER = "Which of the two trains on the bridge over the river is older than the bridge itself?"


def overlap(first: Path, second: Path, **options: Any) -> Overlap:
    return find_overlap(first, second, engine=in_this_process, **options)


def written(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def talk(*questions: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for one in questions for role, text in said(one)]}


def said(question: str) -> tuple[tuple[str, str], ...]:
    return ("user", question), ("assistant", "Two.")


def test_questions_of_conversations_and_of_a_benchmark_match_by_words_in_a_row(tmp_path: Path) -> None:
    first = written(tmp_path / "talks.jsonl", [talk("Hello?", f"Look: {LONG.upper()} Count them."), talk(OTHER)])
    second = written(tmp_path / "bench.jsonl", [{"question": "Why?"}, {"question": LONG}])
    found = overlap(first, second)
    assert found.images == (0, 0)
    assert found.questions.questions == (3, 2)
    assert found.questions.too_short == (1, 1)
    assert found.questions.pairs == (("talks.jsonl 0", "bench.jsonl 1", f"Look: {LONG.upper()} Count them."),)
    assert found.to_json()["questions"]["pairs"][0]["second"] == "bench.jsonl 1"


def test_the_key_and_the_number_of_words_can_be_set(tmp_path: Path) -> None:
    first = written(tmp_path / "a.jsonl", [{"query": "Is it raining?"}])
    (tmp_path / "b.txt").write_text("And: is it RAINING\n", encoding="utf-8")
    assert not overlap(first, tmp_path / "b.txt", question_key="query").questions.pairs
    assert overlap(first, tmp_path / "b.txt", question_key="query", ngram=3).questions.pairs


def test_a_folder_is_compared_by_its_images_and_its_record_files(tmp_path: Path) -> None:
    for name, number in (("one", 1), ("two", 1)):
        written(tmp_path / name / f"{name}.jsonl", [{"question": LONG}])
        (tmp_path / name / "a.jpg").write_bytes(jpeg(number))
    (tmp_path / "two/settings.json").write_text('{"size": 3}', encoding="utf-8")
    found = overlap(tmp_path / "one", tmp_path / "two", match="bytes")
    assert found.pairs == (("a.jpg", "a.jpg", "bytes"),)
    assert found.questions.pairs == (("one.jsonl 0", "two.jsonl 0", LONG),)
    assert len(found.questions.unread) == 1
    assert "settings.json: expected a list of objects" in found.questions.unread[0]


def test_records_without_a_question_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(tmp_path / "a.jsonl", [talk(LONG), {"messages": []}])
    second = written(tmp_path / "b.jsonl", [{"question": LONG}, {"question": "Why?"}])
    found = overlap(first, second)
    assert found.questions.without == (1, 0)
    print_overlap(found)
    text = " ".join(capsys.readouterr().out.split())
    assert "1 and 2 questions; 1 of the first share 13 words in a row with one of the second" in text
    assert "0 and 1 have fewer words and match nothing" in text
    assert "records without a question: 1 and 0" in text


def test_a_file_without_questions_says_which_key_was_looked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"query": "Why?"}])
    with pytest.raises(DataError, match=r"no record has a text under 'question'.*set --question-key"):
        overlap(path, path)


@pytest.mark.usefixtures("builds_in_this_process")
@pytest.mark.parametrize("template", ["vicuna", "chatml", "visualchat"])
def test_the_questions_of_a_build_have_no_words_of_its_template(tmp_path: Path, template: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.jpg").write_bytes(jpeg(1))
    records = [{**chat_record(1, images=["a.jpg"], rounds=2)}, talk(LONG)]
    build(chat_blend(tmp_path, records, template=template))
    found = find_questions(tmp_path / "build", "question")
    expected = ["question 0 of record 1", "question 1 of record 1", LONG.lower().rstrip("?")]
    assert found.texts == expected
    assert found.names[2] == "mine: chat.jsonl 1"
    bench = written(tmp_path / "bench.jsonl", [{"question": LONG}])
    assert len(overlap(tmp_path / "build", bench).questions.pairs) == 1
