"""What `render` shows of the changes that a template or a prompt makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from preprocess.cli import cli
from preprocess.errors import ConfigError
from preprocess.views.preview import print_blend, print_rendered
from tests.support.small_blends import chat_blend, chat_record, write_blend, write_chat

RECORD = {
    "id": "a",
    "images": ["0.jpg", "1.jpg"],
    "messages": [
        {"role": "user", "content": "Is <image> older than <image>?"},
        {"role": "assistant", "content": "Yes."},
    ],
}


@pytest.mark.parametrize(
    ("template", "settings", "is_noted"),
    [("vicuna", [], True), ("vicuna", ["variables.references=true"], False), ("chatml", [], False)],
)
def test_images_that_a_template_moves_are_noted(
    template: str, settings: list[str], is_noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_rendered("chat", write_chat(tmp_path, [RECORD]), limit=1, template=template, settings=settings)
    shown = capsys.readouterr().out
    assert ("  notes: images_moved\n" in shown) == is_noted
    assert ("Image 2" in shown) == bool(settings)


def test_the_prompt_of_a_dataset_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_chat(tmp_path, [chat_record(0)])
    print_rendered("chat", root, limit=1, template="chatml", settings=["prompt=One word."])
    assert "Question 0 of record 0?\nOne word.<|im_end|>" in capsys.readouterr().out


def test_a_dataset_that_shares_images_says_how_many_different_ones_its_records_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [chat_record(number, images=["0.jpg", "1.jpg"][: 1 + number % 2]) for number in range(5)]
    root = write_chat(tmp_path, [*records, chat_record(5)])
    print_rendered("chat", root, limit=1, template="chatml", settings=["share=4"])
    expected = (
        "share: up to 4 conversations with the same images become one sample; 5 with images show 2 different sets"
    )
    assert expected in capsys.readouterr().out


def test_the_datasets_of_a_blend_are_shown_with_their_settings_and_what_becomes_of_their_first_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = [{"role": "patient", "content": "Where?"}, {"role": "bot", "content": "There."}]
    records = [{"log": talk, "score": number, "video": "", "page": 1, "split": "val"} for number in range(5)]
    filter_ = {"answer_chars": {"max": 100}, "aspect_ratio": {"max": 4}, "fields": {"score": {"min": 2}}}
    mine = {
        "fields": {"log": "messages"},
        "roles": {"patient": "user", "nurse": "assistant"},
        "keys": {"video": "ignore"},
        "filter": filter_,
        "prompt": "One word.",
    }
    write_chat(tmp_path / "mine", [*records, chat_record(0, video="a.mp4")])
    write_chat(tmp_path / "other", [chat_record(number) for number in range(3)])
    blend = write_blend(
        tmp_path / "blend.yaml",
        [
            {"name": "mine", "adapter": "chat", "root": "mine", **mine},
            {"name": "other", "adapter": "chat", "root": "other", "split": "eval", "template": "chatml"},
        ],
    )
    print_blend(blend, only=None, limit=1, template=None, settings=["tokenizer=none"])
    first, second = capsys.readouterr().out.split("other: chat in other\n")
    assert first.splitlines()[:2] == [
        "mine: chat in mine",
        "reject chat.jsonl 0: filtered: fields.score: got 0; expected at least 2",
    ]
    assert first.strip().split("of the first 6 records:\n")[1].splitlines() == [
        "forms: messages 6",
        "keys: log is messages",
        "keys left out: video",
        "roles: nurse is assistant, patient is user",
        "in none of these records: roles.nurse",
        "ignored keys: page 5",
        "rejects: filtered 3 of 6 records",
        "filter: answer_chars at most 100; fields.score at least 2; aspect_ratio at most 4 (decided in a build)",
        "filter drops 3 of 6 records: fields.score 3",
        "official split: val 3; val and test go to eval",
        "prompt after each question: One word.",
    ]
    assert "<|im_start|>user\nQuestion 0 of record 0?" in second
    assert second.strip().endswith("of the first 3 records:\nforms: messages 3\nsplit: eval, for all records")


def test_a_field_of_a_filter_that_none_of_the_first_records_has_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_chat(tmp_path, [chat_record(0, score=3)])
    print_rendered("chat", root, limit=1, template="chatml", settings=["filter.fields.scor.min=2"])
    assert (
        "of these records: filter.fields.scor: no record has the key scor; did you mean score?"
        in capsys.readouterr().out
    )


def test_render_names_a_dataset_that_the_blend_lacks(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [chat_record(0)])
    with pytest.raises(ConfigError, match=r"--dataset x: blend.yaml has no such dataset; it has mine"):
        print_blend(blend, only="x", limit=1, template=None, settings=[])
    done = CliRunner().invoke(cli, ["render", "--blend", str(blend), "--root", str(tmp_path)])
    assert "expected either --blend, with --dataset or without, or --adapter and --root" in done.output
