"""Names of keys and roles in the blend file of `dsvl-prep init`: guessed and said, or left to the person."""

from __future__ import annotations

from pathlib import Path

from preprocess.blend.discover import discover
from tests.support.drafts import found_in, write_image, write_json
from tests.support.small_blends import chat_record, write_chat


def test_names_that_are_guessed_are_settings_and_said(tmp_path: Path) -> None:
    turns = [{"who": "patient", "says": "What?"}, {"who": "doctor", "says": "That."}]
    write_json(tmp_path / "data/log.json", [{"dialog": turns, "scan": "1.jpg"}] * 3)
    write_image(tmp_path / "data/1.jpg")
    (dataset,) = found_in(tmp_path / "data")
    assert dataset["fields"] == {"dialog": "messages", "who": "role", "says": "content", "scan": "image"}
    assert dataset["roles"] == {"patient": "user", "doctor": "assistant"}
    (found,) = discover(tmp_path / "data").datasets
    assert found.notes == (
        "form: messages",
        "guessed from its first 3 records, please check: dialog is messages, who is role, says is content, "
        "scan is image, patient is user, doctor is assistant",
    )


def test_who_speaks_is_left_to_the_person_as_a_comment(tmp_path: Path) -> None:
    turns = [{"role": "Kim", "content": "What?"}, {"role": "bot", "content": "That."}]
    write_json(tmp_path / "data/log.json", [{"messages": turns}])
    assert "roles" not in found_in(tmp_path / "data")[0]
    (comment,) = [line for line in (tmp_path / "data.yaml").read_text().splitlines() if "# roles:" in line]
    assert comment == '    # roles: {"Kim": user}  # correct who is who, and remove the first #'
    assert (
        "not guessed: who of Kim is user and who is assistant; fill in `roles`" in discover(tmp_path).datasets[0].notes
    )


def test_keys_of_images_are_found_in_records_that_are_read_without_them(tmp_path: Path) -> None:
    question = {"question": "What changed?", "answer": "Nothing.", "before": "a.jpg", "after": "b.jpg"}
    write_json(tmp_path / "data/pairs/x.json", [question])
    turn = {**chat_record(0)["messages"][0], "pic": "a.jpg"}
    write_json(tmp_path / "data/turns/y.json", [{"messages": [turn, chat_record(0)["messages"][1]]}])
    write_image(tmp_path / "data/a.jpg")
    write_image(tmp_path / "data/b.jpg")
    pairs, perturn = found_in(tmp_path / "data")
    assert pairs["fields"] == {"before": "image_1", "after": "image_2"}
    assert perturn["fields"] == {"pic": "image"}
    assert pairs["images"] == perturn["images"] == [".."]


def test_records_that_are_rejects_among_the_first_are_said(tmp_path: Path) -> None:
    write_chat(tmp_path, [chat_record(0), chat_record(1, video="a.mp4")])
    (found,) = discover(tmp_path).datasets
    assert found.notes[1].startswith('1 of its first 2 records are rejects: unknown_key: key "video" holds a video')
