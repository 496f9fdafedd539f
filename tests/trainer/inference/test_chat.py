"""A conversation in the terminal survives all that one types, and what it saves can be compiled."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import dst
import shards
from tests.support import model_batches, small_blends
from tests.support.talks import FEW, PHOTOS, Script, Talk
from tests.support.tiny_models import IMAGE_TOKENS, SIDE, Loaded, loaded
from trainer.inference.cached_decoder import Prompt
from trainer.inference.chat import COMMANDS, Chat
from trainer.inference.conversation import Exchange, prompt_of
from trainer.inference.generate import Generator, Sampling, Session

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image missing.jpg", "missing.jpg: cannot be read: No such file or directory"),
        ("/image .", ".: is not a file"),
        ("/image notes.txt", "notes.txt: cannot be decoded: no image"),
        (f"/image '{PHOTOS[0]}' missing.jpg", "none of these images is added"),
        ("/image 'open", "No closing quotation"),
        ("/image \0", "null"),
        ("/imag x", "no such command; did you mean /image?"),
        ("/xyzzy", "there are /image, /clear, /save, /help, /quit"),
        ("/save", "expected one file whose name ends in .jsonl"),
        ("/save talk.json", "expected one file whose name ends in .jsonl"),
        ("/save talk.jsonl", "there is no answer yet"),
        ("half a \ud83d character", "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_done_is_reported_and_the_conversation_continues(
    line: str, message: str, record: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("a shopping list", encoding="utf-8")
    talk = Talk(record)
    assert message in talk(line)
    assert not talk.chat.exchanges
    assert not talk.chat.waiting
    talk("And now?")
    assert len(talk.chat.exchanges) == 1


def test_paths_with_spaces_are_quoted_and_waiting_images_can_be_put_away(record: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "a name with spaces.jpg"
    path.write_bytes(PHOTOS[0].read_bytes())
    talk = Talk(record)
    assert "next question: 2" in talk(f"/image '{path}' {PHOTOS[1]}")
    assert "images removed: 2" in talk("/image")
    talk(f'/image "{path}"', "What is it?")
    assert [image.path for image in talk.chat.exchanges[0].images] == [path]


def test_a_history_that_is_too_long_is_reported_and_a_new_conversation_starts_with_clear() -> None:
    small = loaded(max_position_embeddings=96)
    talk = Talk(small)
    output = ""
    for _ in range(9):
        output += talk("What is there, on the left of the house, and what is behind the house?")
    assert "positions with its images, and the model reads at most 96" in output
    assert "/clear" in output
    rounds = len(talk.chat.exchanges)
    assert 0 < rounds < 9
    assert "a new conversation" in talk("/clear")
    talk("Why?")
    assert len(talk.chat.exchanges) == 1
    fresh = Talk(small)
    fresh("Why?")
    assert fresh.chat.exchanges == talk.chat.exchanges


def test_a_question_that_the_gpu_has_no_memory_for_is_reported_and_forgotten(
    record: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **options: object) -> Iterator[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield 0

    talk = Talk(record)
    talk(f"/image {PHOTOS[0]}")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "answer", full)
        assert "the GPU's memory ran out" in talk("What is it?")
    assert not talk.chat.exchanges
    assert len(talk.chat.waiting) == 1
    talk("What is it?")
    assert len(talk.chat.exchanges) == 1


def test_an_answer_that_is_cut_off_says_why(record: Loaded) -> None:
    assert "cut off after 6 tokens: --max-new-tokens allows no more" in Talk(record)("Why?")
    tight = loaded(max_position_embeddings=len(_prompt(record, "Why?").ids) + 3)
    assert "cut off after 3 tokens: the model reads" in Talk(tight)("Why?")


def _prompt(record: Loaded, question: str) -> Prompt:
    return prompt_of([Exchange(question=question)], record, end_id=1)


def test_two_slashes_send_a_question_that_begins_with_one(record: Loaded) -> None:
    talk = Talk(record)
    talk("//usr/bin is what?", "   ", "")
    assert [exchange.question for exchange in talk.chat.exchanges] == ["/usr/bin is what?"]


def test_help_lists_every_command(record: Loaded) -> None:
    talk = Talk(record)
    output = talk("/help")
    assert all(name in output and command.text in output for name, command in COMMANDS.items())
    assert not talk.chat.refused
    talk("/image none.jpg")
    assert talk.chat.refused


def test_a_saved_conversation_compiles_to_what_was_said(
    record: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for photo in PHOTOS[:3]:
        (tmp_path / "mine" / photo.name).parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / photo.name).write_bytes(photo.read_bytes())
    Script(monkeypatch, record, ["The first.", "A bus: <image>."])
    talk = Talk(record, Sampling())
    mine = tmp_path / "mine"
    talk(
        f"/image {mine / PHOTOS[0].name} {mine / PHOTOS[1].name}",
        "Which is older?",
        "/save " + str(mine / "chat.jsonl"),
    )
    assert "dsvl-prep" not in talk.err.getvalue()
    talk(f"/image {mine / PHOTOS[2].name}", "What is this?", f"/save '{mine}/chat.jsonl'")
    lines = [json.loads(line) for line in (mine / "chat.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(line["messages"]) for line in lines] == [2, 4]
    assert lines[1]["messages"][2]["content"] == [
        {"type": "image", "path": PHOTOS[2].name},
        {"type": "text", "text": "What is this?"},
    ]
    blend = small_blends.write_blend(
        tmp_path / "blend.yaml",
        [{"name": "mine", "adapter": "chat", "root": "mine", "options": {"media_tags": "text"}}],
        image_tokens=IMAGE_TOKENS,
        image={"size": SIDE, "store": "original"},
    )
    build = shards.open(small_blends.build(blend).path)
    assert small_blends.rejects_of(tmp_path / "build") == []
    first, second = build["train"][0], build["train"][1]
    assert len(first.images) == 2
    (_, encoded) = (
        second.ids,
        record.chat_tokenizer.encode(
            [
                {"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "Which is older?"}]},
                {"role": "assistant", "content": "The first."},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                {"role": "assistant", "content": "A bus: <image>."},
            ]
        ),
    )
    assert second.ids.tolist() == encoded.ids.tolist()


def test_images_elsewhere_are_saved_by_their_whole_path_and_the_message_says_who_cannot_read_that(
    record: Loaded, tmp_path: Path
) -> None:
    talk = Talk(record)
    file = tmp_path / "chat.jsonl"
    file.write_text('{"messages": []}', encoding="utf-8")  # no line break at its end
    output = talk(f"/image {PHOTOS[0]}", "What is it?", f"/save {file}")
    assert f"dsvl-prep reads only images in the file's folder or below it, and {PHOTOS[0]} is not" in output
    before, line = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(before) == {"messages": []}
    assert json.loads(line)["messages"][0]["content"][0]["path"] == str(PHOTOS[0])
    assert f"not saved: {tmp_path}/none/chat.jsonl: No such file" in talk(f"/save {tmp_path / 'none' / 'chat.jsonl'}")


class Keyboard(io.StringIO):
    """Lines that somebody types."""

    def isatty(self) -> bool:
        return True


def test_a_file_of_answers_holds_no_prompts(
    record: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard("/help\n/quit\n"))
    Chat(record, FEW).run(sys.stdin)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "/clear" in captured.err


def test_what_the_model_says_cannot_command_the_terminal(record: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, record, ["  red\x1b[31m\x07\n\tand \x9b2J"])
    talk = Talk(record, Sampling())
    talk("Say it.")
    assert talk.out.getvalue() == "red\\x1b[31m\\x07\n\tand \\x9b2J\n"


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(record: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, record, ["One two three four.", "Yes."])
    talk = Talk(record, Sampling())
    interrupt = _Interrupt(record, after=3)
    output = talk("Count.")
    interrupt.remove()
    assert "stopped; the answer so far stays" in output
    said = talk.chat.exchanges[0].answer
    assert said
    assert "One two three four.".startswith(said)
    assert said != "One two three four."
    talk("Go on?")
    assert talk.chat.exchanges[1].answer == "Yes."


def test_ctrl_c_before_the_first_word_forgets_the_question_and_keeps_its_images(
    record: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    Script(monkeypatch, record, ["", "Yes."])
    monkeypatch.setattr(Generator, "choose", lambda *_: [record.chat_tokenizer.tokenizer.encode([" "])[0][0]])
    talk = Talk(record, Sampling())
    talk(f"/image {PHOTOS[0]}")
    interrupt = _Interrupt(record, after=1)
    assert "stopped before the first word" in talk("Count.")
    interrupt.remove()
    assert not talk.chat.exchanges
    assert len(talk.chat.waiting) == 1


class _Interrupt:
    """Presses Ctrl-C in the decoder's n-th forward pass."""

    def __init__(self, record: Loaded, *, after: int) -> None:
        self.left = after
        self._hook = record.model.decoder.base_model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)

    def remove(self) -> None:
        self._hook.remove()


def test_a_template_that_refuses_a_question_is_reported() -> None:
    talk = Talk(loaded(template="plain"))
    assert "not asked: template plain" in talk("What is it?")
    talk(f"/image {PHOTOS[0]}", "What is it?")
    assert isinstance(talk.chat.exchanges[0].answer, str)


def test_a_chat_says_that_it_defines_no_tools_if_the_template_knows_them(record: Loaded) -> None:
    knows_tools = dst.ChatTokenizer(
        dst.load_template("chatml"), dst.load_tokenizer(small_blends.TOKENIZER, ("<|im_start|>", "<|im_end|>"))
    )
    for speaker, is_said in ((record, False), (replace(record, chat_tokenizer=knows_tools), True)):
        talk = Talk(speaker)
        talk.chat.run(io.StringIO("/quit\n"))
        assert ("no tools are defined here, and none are run" in talk.err.getvalue()) == is_said
