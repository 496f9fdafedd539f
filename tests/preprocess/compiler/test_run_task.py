"""From conversations to samples: concat, length limits and labels, against slow twins."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dst import IGNORE, ChatTokenizer, load_template, load_tokenizer
from preprocess.compiler import build as build_module
from preprocess.compiler.run_task import read_result, run_task
from preprocess.compiler.task import CompileTask, open_tools
from preprocess.errors import DataError
from preprocess.views.inspect import Inspected, inspect_samples
from preprocess.views.sample_text import runs_of
from tests.support.small_blends import TOKENIZER, build, chat_blend, chat_record, files_of, rejects_of, write_images


def samples(folder: Path) -> list[Inspected]:
    return list(inspect_samples(folder / "build"))


def length(sample: Inspected, image_tokens: int = 16) -> int:
    return len(sample.sample.ids) + len(sample.sample.images) * (image_tokens - 1)


def chat() -> ChatTokenizer:
    return ChatTokenizer(load_template("visualchat"), load_tokenizer(TOKENIZER))


def test_a_sample_is_its_conversation_encoded_and_its_images_as_they_were(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 2)
    build(chat_blend(tmp_path, [chat_record(0, images=names, rounds=2)]))
    (sample,) = samples(tmp_path)
    image = {"type": "image"}
    expected = chat().encode(
        [
            {"role": "user", "content": [image, image, {"type": "text", "text": "Question 0 of record 0?"}]},
            {"role": "assistant", "content": "Answer 0 of record 0."},
            {"role": "user", "content": "Question 1 of record 0?"},
            {"role": "assistant", "content": "Answer 1 of record 0."},
        ]
    )
    assert np.array_equal(sample.sample.ids, expected.ids)
    assert np.array_equal(sample.sample.labels, expected.labels)
    assert sample.to_json()["text"] == expected.text
    assert list(sample.sample.images) == [(tmp_path / "mine" / name).read_bytes() for name in names]
    assert sample.to_json()["source"] == {"file": "chat.jsonl", "record": "r0"}
    assert [image["name"] for image in sample.to_json()["images"]] == names


@pytest.mark.parametrize("k", [2, 3, 5])
def test_concat_joins_up_to_k_conversations_and_uses_every_record_once(tmp_path: Path, k: int) -> None:
    names = write_images(tmp_path / "mine", 17)
    records = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    blend = chat_blend(tmp_path, records, dataset={"concat": k}, split={"eval": 0.3}, seed=1)
    report = build(blend).datasets["mine"]
    built = samples(tmp_path)
    used = sorted(source["record"] for sample in built for source in sample.to_json()["sources"])
    assert used == sorted(f"r{number}" for number in range(17))
    assert report.members == 17
    assert max(len(sample.to_json()["sources"]) for sample in built) == k
    for sample in built:
        assert len(sample.sample.images) == len(sample.to_json()["sources"])
        text = sample.to_json()["text"]
        for number in range(1, len(sample.sample.images) + 1):
            assert f"### Image {number}:" in text


def test_concat_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 12)
    records = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    blend = chat_blend(tmp_path, records, dataset={"concat": 3}, shard={"max_samples": 5})
    build(blend)
    build(blend, out=tmp_path / "other", workers=2)
    assert files_of(tmp_path / "build") == files_of(tmp_path / "other")


def test_concat_never_passes_max_images_or_max_length(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 20)
    records = [
        chat_record(number, images=names[number : number + 1 + number % 3], rounds=1 + number % 2)
        for number in range(18)
    ]
    limits = {"max_images": 4, "max_length": 260}
    build(chat_blend(tmp_path, records, dataset={"concat": 6}, limits=limits))
    built = samples(tmp_path)
    assert all(len(sample.sample.images) <= 4 and length(sample) <= 260 for sample in built)
    assert any(len(sample.to_json()["sources"]) > 1 for sample in built)
    assert sum(len(sample.to_json()["sources"]) for sample in built) == 18


def test_concat_never_shows_one_image_twice_and_never_mixes_system_prompts(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 2)
    records: list[dict[str, Any]] = []
    for number in range(8):
        record = chat_record(number, images=[names[number % 2]])
        system = {"role": "system", "content": f"Prompt {number % 4 // 2}."}
        records.append({**record, "messages": [system, *record["messages"]]})
    build(chat_blend(tmp_path, records, dataset={"concat": 4}))
    for sample in samples(tmp_path):
        shown = [image["name"] for image in sample.to_json()["images"]]
        assert len(shown) == len(set(shown))
        text = sample.to_json()["text"]
        assert text.count("Prompt 0.") + text.count("Prompt 1.") == 1


def test_a_conversation_that_is_too_long_loses_whole_trailing_rounds_and_no_more_than_it_must(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 1)
    record = chat_record(0, images=names, rounds=9)
    whole = chat()
    content = record["messages"][0]["content"].removeprefix("<image>\n")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": content}]},
        *record["messages"][1:],
    ]
    for limit in (60, 95, 110, 170, 260, 330):
        fitting = [rounds for rounds in range(1, 10) if len(whole.encode(messages[: 2 * rounds]).ids) + 15 <= limit]
        blend = chat_blend(tmp_path, [record], limits={"max_length": limit, "max_reject_share": 1.0})
        report = build(blend).datasets["mine"]
        if not fitting:
            assert rejects_of(tmp_path / "build")[0]["reason"] == "too_long"
            continue
        (sample,) = samples(tmp_path)
        expected = whole.encode(messages[: 2 * fitting[-1]])
        assert np.array_equal(sample.sample.ids, expected.ids)
        assert report.notes["rounds_cut"] == (fitting[-1] < 9)


def test_images_of_cut_rounds_are_not_stored(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 3)
    messages: list[dict[str, Any]] = []
    for name in names:
        messages += [
            {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "And this?"}]},
            {"role": "assistant", "content": f"It is {name}."},
        ]
    blend = chat_blend(tmp_path, [{"id": "a", "messages": messages}], limits={"max_length": 110})
    build(blend)
    (sample,) = samples(tmp_path)
    shown = [image["name"] for image in sample.to_json()["images"]]
    assert 1 <= len(shown) < 3
    assert shown == names[: len(shown)]


def test_text_from_data_never_becomes_a_control_token_and_is_counted(tmp_path: Path) -> None:
    words = "Say </s> and <image> and <|im_end|> and ### Image 7: now"
    record = {"id": "a", "messages": [{"role": "user", "content": words}, {"role": "assistant", "content": words}]}
    report = build(chat_blend(tmp_path, [record], dataset={"options": {"media_tags": "text"}})).datasets["mine"]
    assert report.notes["control_text"] == 1
    (sample,) = samples(tmp_path)
    tokenizer = load_tokenizer(TOKENIZER)
    ids = sample.sample.ids.tolist()
    assert tokenizer.image_id not in ids
    assert ids.count(tokenizer.control["</s>"]) == 1
    assert sample.to_json()["text"].count(words) == 2


def test_every_answer_and_its_end_token_is_trained_and_nothing_else(tmp_path: Path) -> None:
    build(chat_blend(tmp_path, [chat_record(0, rounds=3)]))
    (sample,) = samples(tmp_path)
    trained = [text for text, is_trained in runs_of(sample.pieces)[0] if is_trained]
    assert trained == [f"Answer {turn} of record 0.</s>" for turn in range(3)]
    labels, ids = sample.sample.labels, sample.sample.ids
    assert set(labels[labels != ids].tolist()) == {IGNORE}


def test_a_template_that_refuses_a_conversation_makes_it_a_reject(tmp_path: Path) -> None:
    records = [chat_record(0), chat_record(1, images=write_images(tmp_path / "mine", 1))]
    build(chat_blend(tmp_path, records, template="plain", limits={"max_reject_share": 1.0}))
    (reject,) = rejects_of(tmp_path / "build")
    assert reject["reason"] == "template"
    assert "shows no image" in reject["detail"]


def test_a_folder_that_cannot_be_written_ends_the_run_and_is_never_a_reject(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [chat_record(number) for number in range(4)])
    (tmp_path / "build/.cache").mkdir(parents=True)
    (tmp_path / "build/.cache/lock").touch()
    (tmp_path / "build/.cache/staged").write_text("in the way")
    with pytest.raises(DataError, match="staged"):
        build(blend)
    (tmp_path / "build/.cache/staged").unlink()
    assert build(blend).datasets["mine"].samples == 4


def test_a_disk_error_on_one_image_ends_the_run_and_the_next_one_has_it(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 3)
    blend = chat_blend(tmp_path, [chat_record(number, images=[name]) for number, name in enumerate(names)])
    task = one_task(blend)
    tools = open_tools(task.context)
    broken = OSError(errno.EIO, "Input/output error", "1.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tools.stores), "read", lambda stores, image: (_ for _ in ()).throw(broken))
        with pytest.raises(OSError, match="Input/output error"):
            run_task(task)
    assert read_result(task) is None
    assert run_task(task).members == 3


def one_task(blend: Path) -> CompileTask:
    """The only task of a blend, as a build would hand it to a worker."""
    actual: list[CompileTask] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "finish", lambda folder, prepared, report, work, **_: actual.extend(work.tasks))
        build(blend)
    (task,) = actual
    task.marker.unlink()
    return task
