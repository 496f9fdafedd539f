"""Videos that records name: read where the dataset shows frames, else a reject that names the setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Image, Reject
from tests.support.adapting import request_for, written
from tests.support.chat_records import ONE, spoken

CLIP, OTHER = Image(name="clips/a.mp4"), Image(name="clips/b")


def talk(question: Any, answer: str = "That.", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "1", "conversations": turns, **more}


def read(root: Path, record: Any, adapter: str = "chat", frames: int = 8, **options: Any) -> Conversation | Reject:
    written(root, {"a.json": [record]})
    request = request_for(adapter, root, annotations=("a.json",), images=(".",), **options)
    (item,) = ADAPTERS[adapter].read(replace(request, frames=frames))
    return item


@pytest.mark.parametrize("adapter", ["chat", "llava"])
@pytest.mark.parametrize("tag", ["<image>", "<video>", "<VIDEO>"])
def test_a_video_is_at_its_tag_or_at_the_marker_of_an_image(adapter: str, tag: str, tmp_path: Path) -> None:
    item = read(tmp_path, talk(f"{tag}\nWhat?", video="./clips/a.mp4"), adapter)
    assert spoken(item) == [("user", (CLIP, "What?")), ("assistant", "That.")]
    assert isinstance(item, Conversation)
    assert (item.groups, item.notes) == (("clips/a.mp4",), ())


@pytest.mark.parametrize("adapter", ["chat", "llava"])
def test_a_video_without_a_tag_is_first(adapter: str, tmp_path: Path) -> None:
    item = read(tmp_path, talk("What?", videos=["clips/a.mp4", "clips/b"]), adapter)
    assert spoken(item)[0] == ("user", (CLIP, OTHER, "What?"))
    assert isinstance(item, Conversation)
    assert item.notes == ("image_placed_first",)


def test_images_and_videos_of_one_record_each_have_their_tags(tmp_path: Path) -> None:
    item = read(tmp_path, talk("<video> or <image>?", image="1.jpg", video="clips/a.mp4"))
    assert spoken(item)[0] == ("user", (CLIP, "or ", ONE, "?"))


PARTS = [{"type": "video", "video": "clips/a.mp4"}, {"type": "text", "text": "What?"}]


def said(content: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "That."}], **keys}


def test_parts_of_a_content_may_be_videos(tmp_path: Path) -> None:
    by_url = {"type": "video_url", "video_url": {"url": "clips/a.mp4"}}
    records = [said(PARTS), said([by_url, PARTS[1]]), said([{"type": "video"}, PARTS[1]], video="clips/a.mp4")]
    for record in records:
        assert spoken(read(tmp_path, record))[0] == ("user", (CLIP, "What?"))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (talk("<video> <video>?", video="clips/a.mp4"), "image_count"),
        (talk("<image> and?", image="1.jpg", video="clips/a.mp4"), "image_count"),
        (talk("What?", image="1.jpg", video="clips/a.mp4"), "image_count"),
        (talk("<video>?"), "unread_media"),
        (talk("What?", "<video>", video="clips/a.mp4"), "unread_media"),
        (talk([{"type": "video"}, {"type": "text", "text": "?"}]), "image_count"),
        (talk("<video>?", video="../a.mp4"), "image_path"),
        (talk("<video>?", video=7), "wrong_type"),
        (talk("<video>?", video="a.mp4", videos=["b.mp4"]), "bad_value"),
        (talk([{"type": "text", "text": "?", "video": "a.mp4"}]), "unknown_key"),
    ],
)
def test_a_video_without_a_place_or_a_place_without_a_video_is_a_reject(
    record: Any, reason: str, tmp_path: Path
) -> None:
    item = read(tmp_path, record)
    assert isinstance(item, Reject)
    assert item.reason == reason


def test_without_frames_a_video_is_a_reject_that_names_the_setting(tmp_path: Path) -> None:
    for adapter in ("chat", "llava"):
        item = read(tmp_path, talk("<video>\nWhat?", video="clips/a.mp4"), adapter, frames=0)
        assert isinstance(item, Reject)
        assert item.reason == "unknown_key"
        assert "set frames: even:8 on the dataset" in item.detail
    item = read(tmp_path, said(PARTS), frames=0)
    assert isinstance(item, Reject)
    assert (item.reason, "set frames: even:8" in item.detail) == ("unread_media", True)
