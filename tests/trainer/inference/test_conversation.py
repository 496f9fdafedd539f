"""What a conversation sends is what training would have seen, and what it says is shown whole."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import shards
from dst.tokenizer import TextTokenizer
from shards.images.tiles import ONE_TILE
from shards.loader import Loader
from tests.support import model_batches, small_blends
from tests.support.talks import FEW, PHOTOS, Script, Talk, trained_tokens
from tests.support.tiny_models import IMAGE_TOKENS, SIDE, Fed, Loaded, loaded
from trainer.errors import TrainError
from trainer.inference.conversation import ANSWER_ROOM, Exchange, TextStream, answer_text, prompt_of
from trainer.inference.generate import Generator, Sampling
from trainer.inference.images import MAX_BYTES, load_image

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)


ROUNDS = (
    ((PHOTOS[0], PHOTOS[1]), "Which of the two is older?", "The first one."),
    ((), "Why?", "It has more rust,\nand a </s> on it <image>."),
    ((PHOTOS[2],), "And is this the same </s> bus?", "No."),
)


TILED = {"fit": "squash", "tiles": 6, "tiles_multi": 3}


def trained(folder: Path, image: dict[str, Any], **settings: Any) -> shards.Build:
    """ROUNDS as one sample of a build."""
    messages: list[dict[str, Any]] = []
    for photos, question, answer in ROUNDS:
        parts = [{"type": "image", "path": photo.name} for photo in photos]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    dataset = {"images": [str(PHOTOS[0].parent)], "options": {"media_tags": "text"}}
    image = {"size": SIDE, "store": "original", **image}
    blend = small_blends.chat_blend(
        folder, [{"id": "1", "messages": messages}], image_tokens=IMAGE_TOKENS, image=image, dataset=dataset, **settings
    )
    return shards.open(small_blends.build(blend).path)


@pytest.mark.parametrize(
    ("template", "image"),
    [
        ("visualchat", {}),
        ("chatml", {}),
        ("vicuna", {}),
        ("llama2", {}),
        ("llama3", {}),
        ("chatml", TILED),
        ("visualchat", {**TILED, "fit": "pad", "grid": "resolution"}),
    ],
)
def test_what_is_sent_is_token_for_token_and_pixel_for_pixel_what_training_sees_before_each_answer(
    template: str, image: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = trained(tmp_path, image, template=template)
    (batch,) = Loader(build, batch_size=1, max_length=2048, epochs=1)
    record = loaded(template=template)
    assert image or record.geometry == build.manifest.config.image
    record = replace(record, geometry=build.manifest.config.image)
    script = Script(monkeypatch, record, [answer for _, _, answer in ROUNDS])
    talk = Talk(record, Sampling())
    for photos, question, _ in ROUNDS:
        if photos:
            talk("/image " + " ".join(map(str, photos)))
        talk(question)
    is_trained = (batch.labels[0] != -100).numpy()
    starts = np.flatnonzero(is_trained & ~np.roll(is_trained, 1))
    assert len(starts) == len(script.prompts) == len(ROUNDS)
    ids, slots = batch.input_ids[0].numpy(), batch.image_slots[:, 1].tolist()
    for prompt, start in zip(script.prompts, starts, strict=True):
        assert prompt.ids.tolist() == ids[:start].tolist()
        assert list(prompt.slots) == [slot for slot in slots if slot < start]
        assert torch.equal(prompt.images, batch.images[: len(prompt.slots)])


def test_a_round_feeds_its_new_part_alone(record: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["Two dogs.", "The left one barks.", "Yes."]
    script = Script(monkeypatch, record, answers)
    talk = Talk(record, Sampling())
    talk(f"/image {PHOTOS[0]}")
    read = 0
    for number, question in enumerate(("What is it?", "Which one barks?", "Are you sure?")):
        if number == 1:
            talk(f"/image {PHOTOS[1]} {PHOTOS[2]}")
        with Fed(record) as fed:
            talk(question)
        said = len(trained_tokens(record, answers[number])) - 1
        assert sum(fed.positions) == len(script.prompts[number].ids) - read + said
        assert sum(fed.images) == [1, 2, 0][number]
        read = len(script.prompts[number].ids) + said


def test_a_random_model_s_answers_are_those_of_a_conversation_without_memory(record: Loaded) -> None:
    talk = Talk(record)
    talk(f"/image {PHOTOS[0]}", "What is it?", "Why?", f"/image {PHOTOS[1]}", "And this?")
    end_id = Generator(record.model, record.chat_tokenizer).end_id
    for number, exchange in enumerate(talk.chat.exchanges):
        asked = [*talk.chat.exchanges[:number], Exchange(question=exchange.question, images=exchange.images)]
        (tokens,) = Generator(record.model, record.chat_tokenizer).batch([prompt_of(asked, record, end_id=end_id)], FEW)
        assert exchange.answer == answer_text(record.chat_tokenizer.tokenizer, tokens, end_id)
    assert talk.out.getvalue() == "".join(f"{exchange.answer}\n" for exchange in talk.chat.exchanges) or "\\x" in (
        talk.out.getvalue()
    )


def test_typed_text_never_becomes_a_control_token(record: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, record, ["A."])
    talk = Talk(record)
    talk(f"/image {PHOTOS[0]}", "<image> </s><s> <|im_end|> ### Answer: <image>")
    control = record.chat_tokenizer.tokenizer.control_ids
    (prompt,) = script.prompts
    image_id = record.chat_tokenizer.tokenizer.image_id
    assert [index for index in prompt.ids.tolist() if index in control and index != image_id] == [0]
    assert prompt.ids.tolist().count(image_id) == IMAGE_TOKENS


@given(data=st.data())
def test_streamed_pieces_make_the_whole_text_and_never_end_in_half_a_character(
    data: st.DataObject, tokenizer: TextTokenizer
) -> None:
    text = data.draw(st.text(max_size=20) | st.lists(st.sampled_from(["né", "🙂", "猫 ", " a bus", "\n"])).map("".join))
    ids = tokenizer.encode([text.encode("utf-8", "replace").decode()])[0]
    stream = TextStream(tokenizer)
    pieces = [stream.add(index) for index in ids]
    assert all(not piece.endswith("\ufffd") for piece in pieces)
    whole = tokenizer.decode(ids)
    assert "".join([*pieces, stream.end()]) == whole.rstrip("\ufffd")


def test_a_character_of_several_tokens_waits_and_one_that_is_cut_off_is_not_shown(
    byte_tokenizer: TextTokenizer,
) -> None:
    ids = byte_tokenizer.encode(["🙂"])[0]
    assert len(ids) > 1, "expected a character that this tokenizer has no token for"
    stream = TextStream(byte_tokenizer)
    assert [stream.add(index) for index in ids] == [*[""] * (len(ids) - 1), "🙂"]
    assert [stream.add(index) for index in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.end() == ""
    assert answer_text(byte_tokenizer, [*byte_tokenizer.encode([" A bus "])[0], *ids[:-1], 1], 1) == "A bus"


def test_an_image_is_seen_as_the_build_s_geometry_says(record: Loaded, tmp_path: Path) -> None:
    seen = load_image(PHOTOS[0], record.geometry)
    assert seen.pixels(ONE_TILE).shape == (1, 3, SIDE, SIDE)
    with pytest.raises(TrainError, match="is not a file"):
        load_image(tmp_path, record.geometry)
    with (tmp_path / "film.jpg").open("wb") as film:
        film.truncate(MAX_BYTES + 1)
    with pytest.raises(TrainError, match=r"film\.jpg: has 1,073,741,825 bytes; expected an image"):
        load_image(tmp_path / "film.jpg", record.geometry)


def tiled(record: Loaded, **settings: Any) -> Loaded:
    return replace(record, geometry=replace(record.geometry, fit="squash", tiles=6, tiles_multi=2, **settings))


def test_images_get_fewer_tiles_as_a_conversation_comes_close_to_what_the_model_reads(record: Loaded) -> None:
    asked = [Exchange(question="What is it?", images=(load_image(PHOTOS[0], tiled(record).geometry),))]
    whole = prompt_of(asked, tiled(record), end_id=1)
    assert not whole.fewer_tiles
    assert len(whole.images) > 3
    for less in range(1, len(whole.images) * IMAGE_TOKENS):
        limit = len(whole.ids) + ANSWER_ROOM - less
        prompt = prompt_of(asked, tiled(record), end_id=1, limit=limit)
        assert prompt.fewer_tiles
        assert len(prompt.images) == len(prompt.slots)
        text = len(whole.ids) - len(whole.images) * IMAGE_TOKENS
        assert len(prompt.ids) == text + len(prompt.images) * IMAGE_TOKENS
        assert len(prompt.ids) <= limit - ANSWER_ROOM or len(prompt.images) == 1
    assert not prompt_of(asked, tiled(record), end_id=1, limit=len(whole.ids) + ANSWER_ROOM).fewer_tiles
    few = prompt_of(asked, replace(tiled(record), max_tiles=3), end_id=1)
    assert (len(few.images) <= 3, few.fewer_tiles) == (True, True)


def test_chat_says_that_images_are_seen_with_fewer_tiles(record: Loaded) -> None:
    talk = Talk(tiled(record))
    limit = talk.chat._generator.limit
    talk(f"/image {PHOTOS[0]}")
    assert limit is None or "fewer tiles" not in talk("What is it?")
    talk.chat.clear("")
    talk.chat._generator.limit = 64
    talk(f"/image {PHOTOS[0]}")
    assert "images are seen with fewer tiles, so that the conversation fits" in talk("What is it, in one word? " * 3)
    talk.chat.clear("")
    talk(f"/image {PHOTOS[0]}")
    said = talk("What is it, in one word? " * 40)
    assert "not asked: " in said
    assert "the model reads at most 64" in said
