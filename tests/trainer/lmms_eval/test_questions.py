"""Documents of lmms-eval become the conversations, and the pixels, that the compiler would make of their files."""

# ruff: noqa: E402 - torch may be missing

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from shards.images.decode import decode_pillow
from shards.images.tiles import ONE_TILE, Grid
from tests.support.prepared_images import KINDS, photo
from tests.support.talks import PHOTOS
from tests.support.tiny_models import GEOMETRY as CROPPED
from trainer.errors import TrainError
from trainer.lmms_eval.questions import conversation_of, user_turn
from trainer.lmms_eval.visuals import visual_image

GEOMETRY = replace(CROPPED, fit="squash", tiles=2)


def files() -> dict[str, bytes]:
    contents = {}
    for name, (image, form, options, _) in KINDS.items():
        file = io.BytesIO()
        image.save(file, form, **options)
        contents[name] = file.getvalue()
    return contents


@pytest.mark.parametrize("name", files())
def test_a_pillow_image_gives_the_pixels_of_its_file(name: str) -> None:
    data = files()[name]
    with Image.open(io.BytesIO(data)) as opened:
        image = visual_image(opened, GEOMETRY)
        with warnings.catch_warnings(action="ignore"):
            converted = visual_image(opened.convert("RGB"), GEOMETRY)
    for grid in (ONE_TILE, Grid(columns=2, rows=1)):
        expected = torch.from_numpy(decode_pillow(data, GEOMETRY, grid)).permute(0, 3, 1, 2)
        assert torch.equal(image.pixels(grid), expected)
        assert torch.equal(converted.pixels(grid), expected)
        assert torch.equal(visual_image({"bytes": data, "path": None}, GEOMETRY).pixels(grid), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_orientation_is_applied_once_whether_the_data_set_applied_it_or_not(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    photo().save(file, "JPEG", exif=exif)
    expected = torch.from_numpy(decode_pillow(file.getvalue(), GEOMETRY)).permute(0, 3, 1, 2)
    with Image.open(file) as opened:
        transposed = ImageOps.exif_transpose(opened)
        for image in (opened, opened.convert("RGB"), transposed, transposed.convert("RGB")):
            assert torch.equal(visual_image(image, GEOMETRY).pixels(ONE_TILE), expected)


def test_a_path_is_read_as_a_file() -> None:
    image = visual_image(str(PHOTOS[0]), GEOMETRY)
    assert image.data == PHOTOS[0].read_bytes()
    assert visual_image({"path": str(PHOTOS[0])}, GEOMETRY).data == image.data


def animation() -> Image.Image:
    file = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    ("visual", "problem"),
    [
        ("https://example.com/a.jpg", "URLs are not supported"),
        ("missing.mp4", "cannot be read"),
        ({"array": np.zeros(3), "sampling_rate": 16000}, "got dict with array, sampling_rate; expected an image"),
        (np.zeros((4, 4, 3)), "got ndarray; expected an image: sound and videos are not supported"),
        (None, "got NoneType"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "more than 8 bits a channel"),
        (animation(), "more than one frame"),
        ({"bytes": b"no image"}, "an image cannot be decoded"),
    ],
)
def test_what_is_not_one_still_image_is_refused(visual: object, problem: str) -> None:
    with pytest.raises(TrainError) as caught:
        visual_image(visual, GEOMETRY)
    assert problem in str(caught.value)


def test_a_video_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(TrainError, match="sound and videos are not supported"):
        visual_image(str(tmp_path / "a.mp4"), GEOMETRY)


IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("words", "num_images", "content"),
    [
        ("What is it?", 1, [IMAGE, text("What is it?")]),
        ("Which is older?", 2, [IMAGE, IMAGE, text("Which is older?")]),
        ("What is 2 + 2?", 0, "What is 2 + 2?"),
        ("Is <image> older than <image>?", 2, [text("Is "), IMAGE, text(" older than "), IMAGE, text("?")]),
        ("<image>\nWhat is it?", 1, [IMAGE, text("\nWhat is it?")]),
        ("What does <image> mean here?", 2, [IMAGE, IMAGE, text("What does <image> mean here?")]),
        ("What does <image> mean?", 0, "What does <image> mean?"),
        ("", 1, [IMAGE]),
    ],
)
def test_images_are_where_the_task_puts_them(words: str, num_images: int, content: Any) -> None:
    conversation = conversation_of(user_turn(words, [photo()] * num_images), GEOMETRY)
    assert conversation.messages == ({"role": "user", "content": content},)
    assert len(conversation.images) == num_images


def test_messages_keep_their_order_their_roles_and_images_between_their_texts() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [text("A:"), {"type": "image", "url": photo()}, text("B:"), *user_image()]},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": [text("Older?")]},
    ]
    conversation = conversation_of(messages, GEOMETRY)
    assert conversation.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text("A:"), IMAGE, text("B:"), IMAGE]},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "Older?"},
    )
    assert [image.size for image in conversation.images] == [photo().size, photo().resize((30, 20)).size]


def user_image() -> list[dict[str, Any]]:
    return [{"type": "image", "url": photo().resize((30, 20))}]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "ends with nothing"),
        ([{"role": "assistant", "content": "Yes."}], "ends with a message of 'assistant'"),
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "is video; expected text or an image"),
        ([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "is audio; expected text or an image"),
        ([{"role": "user", "content": ["What?"]}], "is str; expected text or an image"),
    ],
)
def test_what_is_no_question_with_images_is_refused(messages: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(TrainError) as caught:
        conversation_of(messages, GEOMETRY)
    assert problem in str(caught.value)
