"""Bad input, one build for each family of badness: every bad record is a reject with its own reason, every good one
between them gives the same sample as in a build without the bad ones, and a file that cannot be used ends the build
with its name. Nothing hangs.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from preprocess.adapters import ADAPTERS
from preprocess.conversation import REASONS
from preprocess.errors import DataError
from preprocess.inspector import inspect_samples
from preprocess.report import DatasetReport
from shards import open_build, verify
from small_blends import (
    SAMPLES,
    build,
    chat_blend,
    chat_record,
    files_of,
    jpeg,
    rejects_of,
    write_blend,
    write_images,
)
from test_preprocess_adapters import sample, written
from test_preprocess_stores import as_deflated_zip, as_hugging_face_parquet, as_json, as_tar, as_zip

COMMAND = [sys.executable, "-W", "error", "-m", "preprocess.cli", "build"]
SECONDS = 120


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A build that waits for ever fails its test."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Bad(NamedTuple):
    """A record as an object or as the bytes of its line. record: how rejects.jsonl calls it, if not by its id or, for
    one that has none, by its number."""

    content: dict[str, Any] | bytes
    reason: str
    detail: str = ""
    record: str | None = None


def samples_of(folder: Path) -> dict[tuple[str, str], Any]:
    """All that a reader gets, by dataset and conversation; keys and places may differ between builds."""
    found = {}
    for dataset, split, shard in open_build(folder).shards():
        for row in range(len(shard)):
            sample = shard[row]
            ours = {name: value for name, value in sample.metadata.items() if name not in ("sources", "split")}
            content = (split, sample.ids.tolist(), sample.labels.tolist(), sample.images, ours)
            found[dataset, sample.metadata["id"]] = content
    return found


def check(folder: Path, good: Sequence[dict[str, Any]], bad: Sequence[Bad], **settings: Any) -> DatasetReport:
    """Build with the bad records spread between the good ones, and once more without them."""
    contents: list[dict[str, Any] | bytes] = list(good[1:])
    step = max(1, len(contents) // len(bad))
    for place, one in enumerate(bad):
        contents.insert(place * (step + 1), one.content)
    contents.insert(0, good[0])
    numbers = {id(content): str(number) for number, content in enumerate(contents)}
    blend = chat_blend(folder, [], **{"limits": {"max_reject_share": 1.0}, **settings})
    annotations = folder / "mine/chat.jsonl"
    write_lines(annotations, contents)
    mine = build(blend, workers=2).datasets["mine"]
    found = rejects_of(folder / "build")
    assert set(REASONS) >= {one["reason"] for one in found}
    names = [one.record or _own_id(one.content) or numbers[id(one.content)] for one in bad]
    wanted = Counter((name, one.reason) for name, one in zip(names, bad, strict=True))
    assert Counter((one["record"], one["reason"]) for one in found) == wanted
    for name, one in zip(names, bad, strict=True):
        detail = one.detail.replace("LINE", f"line {int(numbers[id(one.content)]) + 1}")
        assert any(detail in reject["detail"] for reject in found if reject["record"] == name), (detail, found)
    assert (mine.records, mine.members, sum(mine.rejects.values())) == (len(contents), len(good), len(bad))
    assert verify(folder / "build").problems == []
    write_lines(annotations, good)
    assert build(blend, out=folder / "alone").datasets["mine"].rejects == {}
    assert samples_of(folder / "build") == samples_of(folder / "alone")
    assert len(samples_of(folder / "alone")) == len(good)
    return mine


def write_lines(path: Path, contents: Sequence[dict[str, Any] | bytes]) -> None:
    lines = [content if isinstance(content, bytes) else json.dumps(content).encode() for content in contents]
    path.write_bytes(b"\n".join(lines) + b"\n")


def _own_id(content: dict[str, Any] | bytes) -> str | None:
    return content.get("id") if isinstance(content, dict) else None


# Pictures


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG chunk by chunk, since Pillow writes no 16-bit colour."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def frames(form: str) -> bytes:
    shades = [Image.new("RGB", (20, 20), (shade, 0, 255 - shade)) for shade in (0, 120, 240)]
    return encoded(shades[0], form, save_all=True, append_images=shades[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(7, (40, 24), exif=exif)


PHOTO = (SAMPLES / "coco/train2017/000000000112.jpg").read_bytes()
COLOURS = Image.open(io.BytesIO(jpeg(1, (40, 30))))

# name: (bytes, reason when decoded, reason when only the header is read)
BAD_PICTURES: dict[str, tuple[bytes, str, str]] = {
    **{
        f"cut-at-{cut}": (PHOTO[:cut], "image_unreadable", "image_unreadable" if cut < 100 else "")
        for cut in (2, 21, len(PHOTO) // 3, len(PHOTO) // 2, len(PHOTO) - 20, len(PHOTO) - 2)
    },
    "cut-png": (encoded(COLOURS, "PNG")[:-30], "image_unreadable", ""),
    "cut-webp": (encoded(COLOURS, "WEBP")[:-9], "image_unreadable", "image_unreadable"),
    "empty": (b"", "image_unreadable", "image_unreadable"),
    "text": (b"This is no picture.\n", "image_unreadable", "image_unreadable"),
    "html": (b"<!DOCTYPE html><html>404 Not Found</html>", "image_unreadable", "image_unreadable"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image_format", "image_format"),
    "tiff": (encoded(COLOURS, "TIFF"), "image_format", "image_format"),
    "magic-only": (b"\xff\xd8\xff", "image_unreadable", "image_unreadable"),
    "zeros": (bytes(5000), "image_unreadable", "image_unreadable"),
    "one-pixel": (jpeg(2, (1, 1)), "image_too_small", "image_too_small"),
    "gray-16": (png(9, 9, 16, 0, bytes(19 * 9)), "image_format", "image_format"),
    "rgb-16": (png(9, 9, 16, 2, bytes(55 * 9)), "image_format", "image_format"),
    "huge": (png(20000, 10000, 1, 0, bytes(2501 * 10000)), "image_too_large", "image_too_large"),
    "gif-frames": (frames("GIF"), "image_animated", "image_animated"),
    "webp-frames": (frames("WEBP"), "image_animated", "image_animated"),
    "png-frames": (frames("PNG"), "image_animated", "image_animated"),
}
GOOD_PICTURES: dict[str, tuple[bytes, tuple[int, int]]] = {
    "photo": (PHOTO, Image.open(io.BytesIO(PHOTO)).size),
    "cmyk": (encoded(COLOURS.convert("CMYK"), "JPEG"), (40, 30)),
    "gray": (encoded(COLOURS.convert("L"), "JPEG"), (40, 30)),
    "palette": (encoded(COLOURS.convert("P"), "PNG", transparency=bytes(range(256))), (40, 30)),
    "turned": (turned(), (24, 40)),
    "still-gif": (encoded(COLOURS.convert("P"), "GIF"), (40, 30)),
}


@pytest.mark.parametrize(
    ("store", "policy"), [("original", "decode"), ("original", "header"), ("resized", "decode"), ("resized", "header")]
)
def test_every_bad_picture_is_a_reject_of_its_own_record(tmp_path: Path, store: str, policy: str) -> None:
    decoded = store == "resized" or policy == "decode"
    root = tmp_path / "mine"
    root.mkdir()
    good, bad = [], []
    for name, (data, *reasons) in BAD_PICTURES.items():
        (root / f"{name}.jpg").write_bytes(data)
        reason = reasons[0 if decoded else 1]
        record = {**chat_record(0, images=[f"{name}.jpg"]), "id": name}
        if reason:
            bad.append(Bad(record, reason, detail=f"{name}.jpg"))
        else:
            good.append(record)
    for name, (data, _) in GOOD_PICTURES.items():
        (root / f"{name}.jpg").write_bytes(data)
        good.append({**chat_record(1, images=[f"{name}.jpg", "photo.jpg"], rounds=2), "id": name})
    check(tmp_path, good, bad, image={"store": store, "check": policy, "size": 32})
    for (_, name), (*_, metadata) in samples_of(tmp_path / "build").items():
        if (identity := name.removeprefix("chat/")) in GOOD_PICTURES:
            size = (32, 32) if store == "resized" else GOOD_PICTURES[identity][1]
            assert (metadata["images"][0]["width"], metadata["images"][0]["height"]) == size


def test_a_path_that_is_no_picture_of_the_dataset_is_a_reject_and_never_followed(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    names = write_images(root, 4)
    (tmp_path / "outside.jpg").write_bytes(jpeg(50))
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    paths = {
        "nowhere.jpg": "image_missing",
        "0.JPG": "image_missing",
        "0.jpg/1.jpg": "image_missing",
        "dangling.jpg": "image_missing",
        "folder": "image_unreadable",
        "pipe.jpg": "image_unreadable",
        "device.jpg": "image_unreadable",
        "loop.jpg": "image_unreadable",
        "../outside.jpg": "image_path",
        "folder/../../outside.jpg": "image_path",
        "folder/..": "image_path",
        "./0.jpg": "image_path",
        ".": "image_path",
        "": "image_path",
        str(tmp_path / "outside.jpg"): "image_path",
        "//server/share.jpg": "image_path",
        "C:\\pictures\\0.jpg": "image_path",
        "folder\\0.jpg": "image_path",
        "0\0.jpg": "image_path",
        "n" * 5000 + ".jpg": "image_path",
        "n" * 300 + ".jpg": "image_path",
        "https://example.org/0.jpg": "image_path",
        "file:///etc/passwd": "image_path",
        "data:image/jpeg;base64,AAAA": "image_path",
    }
    bad = [
        Bad(
            {**chat_record(0, images=[path]), "id": f"bad {number}"},
            reason,
            detail=path.strip("./")[:20].split("\0")[0].split("\\")[0],
        )
        for number, (path, reason) in enumerate(paths.items())
    ]
    check(tmp_path, [chat_record(number, images=[name]) for number, name in enumerate(names)], bad)


# Records


def talk(*contents: Any, **more: Any) -> dict[str, Any]:
    """Turns of user and assistant, in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    return {"messages": messages, **more}


def by(*roles: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "Words."} for role in roles]}


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


NONCHARACTERS = "".join(chr(code) for code in range(0xFDD0, 0xFDF0))

BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({}, "missing_key"),
    ({"messages": None}, "missing_key"),
    ({"messages": 5}, "wrong_type"),
    ({"messages": "Hello"}, "wrong_type"),
    ({"messages": {}}, "wrong_type"),
    ({"messages": []}, "no_answer"),
    ({"messages": [5]}, "wrong_type"),
    ({"messages": [None]}, "wrong_type"),
    ({"messages": [{"content": "No role."}]}, "missing_key"),
    ({"messages": [{"role": "user"}]}, "missing_key"),
    ({"conversations": [{"from": "human", "text": "x"}]}, "missing_key"),
    ({"conversations": [{"role": "human", "value": "x"}]}, "missing_key"),
    ({"conversations": {"from": "human", "value": "x"}}, "wrong_type"),
    (by(5, "assistant"), "wrong_type"),
    (by("user", None), "wrong_type"),
    (by("user", "tool"), "role_order"),
    (by("User", "Assistant"), "role_order"),
    (by("\ud800", "assistant"), "role_order"),
    (by("assistant", "user"), "role_order"),
    (by("user", "user", "assistant"), "role_order"),
    (by("user", "assistant", "assistant"), "role_order"),
    (by("user", "system", "assistant"), "role_order"),
    (by("system", "system", "user", "assistant"), "role_order"),
    (by("user"), "no_answer"),
    (by("system"), "no_answer"),
    (by("system", "user"), "no_answer"),
    (talk("Why?", ""), "empty_answer"),
    (talk("Why?", " \r\n\t\u3000\u00a0"), "empty_answer"),
    (talk("Why?", "So.", "And?", " "), "empty_answer"),
    (talk("Why?", []), "empty_answer"),
    (talk("Why?", [{"type": "text", "text": " "}]), "empty_answer"),
    (talk("", "An answer."), "empty_question"),
    (talk(" \n ", "An answer."), "empty_question"),
    (talk("Why?", None), "wrong_type"),
    (talk("Why?", 5), "wrong_type"),
    (talk("Why?", True), "wrong_type"),
    (talk("Why?", float("nan")), "wrong_type"),
    (talk("Why?", float("-inf")), "wrong_type"),
    (talk("Why?", 10**4000), "wrong_type"),
    (talk("Why?", {"text": "An answer."}), "wrong_type"),
    (talk("Why?", ["An answer."]), "wrong_type"),
    (talk("Why?", nested(400)), "wrong_type"),
    (talk("Why?", [{"text": "No type."}]), "missing_key"),
    (talk("Why?", [{"type": "text"}]), "missing_key"),
    (talk("Why?", [{"type": "text", "text": 5}]), "wrong_type"),
    (talk("Why?", [{"type": "image", "path": "0.jpg"}]), "bad_value"),
    (talk([{"type": "video", "path": "0.mp4"}], "An answer."), "bad_value"),
    (talk([{"type": 5}], "An answer."), "bad_value"),
    (talk([{"type": "image", "path": 5}], "An answer."), "wrong_type"),
    (talk([{"type": "image_url", "image_url": "0.jpg"}], "An answer."), "wrong_type"),
    (talk([{"type": "image_url", "image_url": {"url": "http://e.org/0.jpg"}}], "An answer."), "image_path"),
    (talk("A lone \ud800 surrogate.", "An answer."), "bad_text"),
    (talk("Why?", "\udfff"), "bad_text"),
    (talk("Why?", [{"type": "text", "text": "\udc00"}]), "bad_text"),
    (talk("<image>", "An answer.", images=["\ud83d.jpg"]), "bad_text"),
    (talk("Why?", "An answer.", images=5), "wrong_type"),
    (talk("Why?", "An answer.", images=[None]), "wrong_type"),
    (talk("Why?", "An answer.", images=[["0.jpg"]]), "wrong_type"),
    (talk("Why?", "An answer.", images={}), "wrong_type"),
    (talk("Why?", "An answer.", image=float("nan")), "wrong_type"),
    (talk("Why?", "An answer.", image="0.jpg", images=["0.jpg"]), "bad_value"),
    (talk("<image><image>", "An answer.", images=["0.jpg"]), "image_count"),
    (talk("<image>", "An answer.", images=["0.jpg", "1.jpg"]), "image_count"),
    (talk([{"type": "image"}], "An answer."), "image_count"),
    (talk([{"type": "image", "path": "0.jpg"}], "An answer.", images=["1.jpg"]), "image_count"),
    (talk("<image>" * 9, "An answer.", images=["0.jpg"] * 9), "too_many_images"),
    (talk("Why?", "An answer.", group=[]), "wrong_type"),
    (talk("Why?", "An answer.", group=1.5), "wrong_type"),
    (talk("Why?", "An answer.", split=1), "wrong_type"),
    (talk("Why?", "An answer.", split="training"), "bad_value"),
    (talk("Why?", "An answer.", split="\ud800"), "bad_value"),
    (talk("Why?", "Long. " * 400_000), "too_long"),
    (talk("<image>" * 8, "An answer " * 4000, images=["0.jpg"] * 8), "too_long"),
    (talk(f"{NONCHARACTERS} </s>", "An answer."), "control_text"),
]

BAD_LINES: list[Bad] = [
    Bad(b'{"id": "x", "messages": [', "broken_json", "LINE, column 26: "),
    Bad(b'{"id": "x",}', "broken_json", "LINE, column 12: "),
    Bad(b"not JSON", "broken_json", "LINE, column 1: "),
    Bad(b"{'id': 1}", "broken_json", "LINE, column 2: "),
    Bad(b'{"id": 1} {"id": 2}', "broken_json", "LINE, column 11: Extra data"),
    Bad(b'{"id": "tab\there"}', "broken_json", "LINE, column 12: "),
    Bad(b'{"id": "\\ud8"}', "broken_json", "LINE, column "),
    Bad(b'\xef\xbb\xbf{"id": 1}', "broken_json", "LINE, column 1: "),
    Bad(b'{"id": "\xff"}', "broken_json", "LINE, byte 9: not UTF-8"),
    Bad('{"id": "x"}'.encode("utf-16"), "broken_json", "LINE, byte 1: not UTF-8"),
    Bad(bytes(range(14, 60)), "broken_json", "LINE, column 1: "),
    Bad(b"\0" * 3000, "broken_json", "LINE, column 1: "),
    Bad(b"[" * 100_000, "broken_json", "LINE, column 1: nested too deeply"),
    Bad(b'{"id": ' + b"1" * 5000 + b"}", "broken_json", "LINE, column 1: "),
    Bad(b"NaN", "wrong_type", "the record is nan; wanted an object"),
    Bad(b"null", "wrong_type", "the record is null; wanted an object"),
    Bad(b"[]", "wrong_type", "the record is an array of 0; wanted an object"),
    Bad(b'"' + b"x" * 3_000_000 + b'"', "wrong_type", 'xxx..."; wanted an object'),
]

ODD_BUT_GOOD: dict[str, dict[str, Any]] = {
    "control strings": talk("Is <image> </s> or <|im_end|> ### Image 1: a token?", "No, </s> is not."),
    "noncharacters": talk("What is \ufdd0 and \uffff?", "Both are noncharacters: \ufdd0."),
    "images only": talk("<image>\n<image>", "Two pictures.", images=["0.jpg", "1.jpg"]),
    "a mark without images": talk("<image>\nWhat is it?", "There is no picture."),
    "an unmarked image": talk("What is it?", "A picture.", images=["2.jpg"]),
    "an open question": talk("Why?", "So.", "And then?"),
    "a long line": talk("Why?", "So.", ignored="x" * 3_000_000),
    "odd characters": talk("a\0b \u202eright to left\u202c \u200b \U0001f469\u200d\U0001f680 e\u0301", "\u200b"),
    "many rounds": talk(*["More words about it. "] * 1200),
    "other keys": talk("Why?", "So.", source=None, score=float("nan"), tags=nested(300)),
}


def test_every_bad_record_is_a_reject_with_its_reason(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 40)
    good = [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names)]
    good += [{"id": name, **record} for name, record in ODD_BUT_GOOD.items()]
    good.append({**talk("Why?", "So."), "id": "\u00fc " * 2000})
    bad = [Bad({"id": f"bad {number}", **record}, reason) for number, (record, reason) in enumerate(BAD_RECORDS)]
    bad += BAD_LINES
    bad += [Bad({**chat_record(0)}, "duplicate_id", "the id r0"), Bad(talk("Why?", ""), "empty_answer")]
    report = check(tmp_path, good, bad)
    assert report.notes["rounds_cut"] == 1
    assert report.notes["control_text"] == 2
    assert report.notes["image_placed_first"] == 1
    texts = {one.sample.key: "".join(words for words, _ in one.runs) for one in inspect_samples(tmp_path / "build")}
    for record in (ODD_BUT_GOOD["control strings"], ODD_BUT_GOOD["noncharacters"], ODD_BUT_GOOD["odd characters"]):
        assert any(all(turn["content"] in text for turn in record["messages"]) for text in texts.values())


def test_a_repeated_or_unusable_id_does_not_change_other_records(tmp_path: Path) -> None:
    good = [chat_record(number) for number in range(6)]
    twice = [Bad(chat_record(number % 3, rounds=2), "duplicate_id") for number in range(6)]
    check(tmp_path, good, twice)
    ids: list[Any] = ["", None, 1.5, True, [], {}, "\ud800", 10**4000, "3"]
    report = build(chat_blend(tmp_path, [{**talk("Why?", "So."), "id": value} for value in ids]), out=tmp_path / "ids")
    assert report.datasets["mine"].members == len(ids)
    assert len({name for _, name in samples_of(tmp_path / "ids")}) == len(ids)


def test_a_conversation_that_the_template_refuses_is_a_reject(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 4)
    good = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    bad = [Bad({**chat_record(number), "id": f"text {number}"}, "template", "shows no image") for number in range(3)]
    check(tmp_path, good, bad, template="plain")


def test_a_dataset_of_nothing_but_rejects_still_accounts_for_them(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, ["broken", talk("Why?", "")], limits={"max_reject_share": 1.0})
    report = build(blend).datasets["mine"]
    assert (report.records, report.samples, dict(report.rejects)) == (2, 0, {"broken_json": 1, "empty_answer": 1})
    assert verify(tmp_path / "build").problems == []


# Whole files


def swapped(document: Any) -> str:
    return "[]" if isinstance(document, dict) else '{"rows": []}'


DAMAGE: dict[str, Callable[[bytes, Any], bytes]] = {
    "empty": lambda data, document: b"",
    "white space": lambda data, document: b" \n\n",
    "null": lambda data, document: b"null",
    "text": lambda data, document: b'"annotations"',
    "other container": lambda data, document: swapped(document).encode(),
    "no records": lambda data, document: b"{}" if isinstance(document, dict) else b"[]",
    "cut in the middle": lambda data, document: data[: len(data) // 2],
    "cut at the end": lambda data, document: data.rstrip()[:-1],
    "trailing text": lambda data, document: data + b"]",
    "nested too deeply": lambda data, document: b"[" * 100_000,
    "not UTF-8": lambda data, document: data[: len(data) // 2] + b"\xff\xfe" + data[len(data) // 2 :],
    "UTF-16": lambda data, document: data.decode().encode("utf-16"),
    "binary": lambda data, document: zlib.compress(data),
    "zeros": lambda data, document: bytes(4096),
}
WITH_A_PLACE = {"cut in the middle", "cut at the end", "trailing text"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_annotation_file_that_cannot_be_used_ends_the_build_by_name_for_every_adapter(
    tmp_path: Path, damage: str
) -> None:
    hurt: dict[str, Path] = {}
    for name in ADAPTERS:
        documents = sample(name)
        written(tmp_path / name, documents)
        hurt[name] = tmp_path / name / list(documents)[-1]
        document = documents[list(documents)[-1]]
        hurt[name].write_bytes(DAMAGE[damage](hurt[name].read_bytes(), document))
    entries = [{"name": name, "adapter": name, "root": name, "images": "."} for name in ADAPTERS]
    with pytest.raises(DataError) as caught:
        build(write_blend(tmp_path / "blend.yaml", entries, limits={"max_reject_share": 1.0}), workers=2)
    errors = str(caught.value).splitlines()
    named = {name: [line for line in errors if line.startswith(f"dataset {name}: ")] for name in ADAPTERS}
    for name, lines in named.items():
        if (damage == "no records" and len(sample(name)) > 1) or (damage == "other container" and name == "chat"):
            continue  # the other files have records, or the object is taken for a line, which is a reject
        assert len(lines) == 1, (name, errors)
        # Joins that miss one side cannot know which file was to be it; they name the folder or the other side.
        assert str(tmp_path / name if name in ("llava_otter_blend", "vqa_v2") else hurt[name]) in lines[0]
        if damage in WITH_A_PLACE:
            assert ", line " in lines[0]
            assert ", column " in lines[0]
    assert not [path for path in (tmp_path / "build").rglob("*") if path.suffix in (".tar", ".partial")]
    assert not (tmp_path / "build/manifest.json").exists()


@pytest.mark.parametrize(
    ("file", "data", "expected"),
    [
        ("chat.json", b'[\n{"id": 1},\n{"id": 2,}\n]', "chat.json, line 3, column 10"),
        ("chat.json", b"", "chat.json: is neither a JSON array nor JSON lines"),
        ("chat.jsonl", b"", "chat.jsonl: "),
        ("chat.jsonl", b"\xff\xfe\n\n\x00", "2 of 2 records are rejects (broken_json 2)"),
        ("chat.parquet", b"PAR1 cut off", "chat.parquet"),
    ],
)
def test_the_command_line_says_which_file_with_code_1_and_no_traceback(
    tmp_path: Path, file: str, data: bytes, expected: str
) -> None:
    chat_blend(tmp_path, [])
    (tmp_path / "mine/chat.jsonl").unlink()
    (tmp_path / "mine" / file).write_bytes(data)
    done = run_command(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert expected in done.stderr


def run_command(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, "--blend", str(folder / "blend.yaml"), "--out", str(folder / "build"), "--workers", "2", *more],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link", "loop"])
def test_an_annotation_path_that_is_no_file_is_named_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    blend = chat_blend(tmp_path, [chat_record(0)])
    path = tmp_path / "mine/more.jsonl"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("more.jsonl" if kind == "loop" else "nowhere.jsonl")
    with pytest.raises(DataError, match=r"more\.jsonl: "):
        build(blend)


def test_parquet_rows_that_cannot_be_read_are_rejects_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"messages": talk("Why?", "So.")["messages"]}] * 5)
    times = pa.array([0, 1, 2**62, 2, -(2**62)], pa.timestamp("us"))
    bytes_of = pa.py_buffer(struct.pack("<6i", 0, 1, 2, 3, 4, 5)), pa.py_buffer(b"ab\xffde")
    texts = pa.StringArray.from_buffers(5, *bytes_of)
    blend = chat_blend(tmp_path, [], limits={"max_reject_share": 1.0})
    (tmp_path / "mine/chat.jsonl").unlink()
    for key in ("group", "other"):
        pq.write_table(table.append_column(key, times), tmp_path / f"mine/times-{key}.parquet")
        pq.write_table(table.append_column(key, texts), tmp_path / f"mine/texts-{key}.parquet")
    report = build(blend).datasets["mine"]
    found = {(reject["file"], reject["record"], reject["reason"]) for reject in rejects_of(tmp_path / "build")}
    assert found == {
        ("texts-group.parquet", "2", "bad_text"),
        *(("times-group.parquet", str(number), "wrong_type") for number in range(5)),
    }
    assert (report.records, report.members) == (20, 14)


# Archives of pictures


def good_pictures() -> dict[str, bytes]:
    return {f"{number}.jpg": jpeg(number) for number in range(4)}


ARCHIVES: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "base64.json": as_json,
    "stored.zip": as_zip,
    "deflated.zip": as_deflated_zip,
    "plain.tar": as_tar,
    "rows.parquet": as_hugging_face_parquet,
}


def archive_blend(folder: Path, names: Sequence[str]) -> Path:
    """One chat dataset for each kind of archive, all with the same records."""
    entries = []
    for kind in ARCHIVES:
        dataset = kind.replace(".", "-")
        root = folder / dataset
        root.mkdir(parents=True, exist_ok=True)
        write_lines(root / "chat.jsonl", [{**chat_record(0, images=[name]), "id": name} for name in names])
        entries.append({"name": dataset, "adapter": "chat", "root": dataset, "images": kind})
        entries[-1]["annotations"] = "chat.jsonl"
    return write_blend(folder / "blend.yaml", entries, limits={"max_reject_share": 1.0})


def test_a_bad_picture_in_an_archive_is_a_reject_of_its_record_alone(tmp_path: Path) -> None:
    pictures = {**good_pictures(), "cut.jpg": PHOTO[:3000], "empty.jpg": b"", "text.jpg": b"no picture"}
    wanted = {
        "cut.jpg": "image_unreadable",
        "empty.jpg": "image_unreadable",
        "text.jpg": "image_unreadable",
        "none.jpg": "image_missing",
        "../0.jpg": "image_path",
        "/0.jpg": "image_path",
    }
    blend = archive_blend(tmp_path, [*pictures, *(name for name in wanted if name not in pictures)])
    for kind, write in ARCHIVES.items():
        write(tmp_path / kind.replace(".", "-") / kind, pictures)
    path = tmp_path / "base64-json/base64.json"
    texts = json.loads(path.read_text())
    path.write_text(json.dumps({**texts, "cut.jpg": "*no base64*", "empty.jpg": 5, "text.jpg": None}))
    path = tmp_path / "stored-zip/stored.zip"
    data = bytearray(path.read_bytes())
    data[data.index(PHOTO[:3000]) + 1500] ^= 1  # its checksum in the directory is now wrong
    path.write_bytes(data)
    report = build(blend, workers=2)
    for name, dataset in report.datasets.items():
        assert (dataset.records, dataset.members) == (len(pictures) + 3, 4)
        found = {one["record"]: one["reason"] for one in rejects_of(tmp_path / "build") if one["dataset"] == name}
        assert found == wanted
    assert verify(tmp_path / "build").problems == []
    per_dataset: dict[str, list[Any]] = {name: [] for name in report.datasets}
    for (owner, _), content in sorted(samples_of(tmp_path / "build").items()):
        per_dataset[owner].append((*content[:4], content[4]["images"]))
    first, *others = per_dataset.values()
    assert all(other == first for other in others)


@pytest.mark.parametrize("keep", [0, 3, 0.1, 0.5, 0.9, -1])
def test_an_archive_that_is_cut_off_ends_the_build_by_name(tmp_path: Path, keep: float) -> None:
    blend = archive_blend(tmp_path, ["0.jpg"])
    for kind, write in ARCHIVES.items():
        path = tmp_path / kind.replace(".", "-") / kind
        write(path, good_pictures())
        data = path.read_bytes()
        if kind == "plain.tar":
            data = data[: data.rindex(b"\xff\xd9") + 2]  # without its end, which is zeros alone
        path.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(DataError) as caught:
        build(blend, workers=2)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(ARCHIVES)
    for kind in ARCHIVES:
        assert any(str(tmp_path / kind.replace(".", "-") / kind) in line for line in lines), lines
    assert not list((tmp_path / "build").rglob("*.tar"))


# Splits and limits


def test_a_test_split_without_answers_is_refused_by_name(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = []
    for name in ("aokvqa", "vqa_v2"):
        shutil.copytree(SAMPLES / name, tmp_path / name / name)
        entries.append({"name": name, "adapter": name, "root": name, "images": "."})
    asked = tmp_path / "aokvqa/aokvqa/annotations/aokvqa_v1p0_test.json"
    keys = ("question_id", "image_id", "question", "choices")
    records = json.loads(asked.with_name("aokvqa_v1p0_train.json").read_text())
    asked.write_text(json.dumps([{"split": "test"} | {key: one[key] for key in keys} for one in records]))
    entries[0]["annotations"] = "aokvqa/annotations/aokvqa_v1p0_test.json"
    questions = next((tmp_path / "vqa_v2").rglob("*_questions.json"))
    document = json.loads(questions.read_text())
    for number, one in enumerate(document["questions"]):
        one["question_id"] = 900000 + number
    tests = questions.with_name("v2_OpenEnded_mscoco_test2015_questions.json")
    tests.write_text(json.dumps({**document, "data_subtype": "test2015"}))
    with pytest.raises(DataError) as caught:
        build(write_blend(tmp_path / "blend.yaml", entries), workers=2)
    errors = str(caught.value).splitlines()
    for path in (asked, tests):
        assert any(str(path) in line and "test split" in line for line in errors), errors


def test_limits_name_what_was_got_and_too_many_rejects_end_with_code_1(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 4)
    records = [
        chat_record(0, images=names[:2]),
        {**talk("<image>" * 3, "Three.", images=names[:3]), "id": "crowd"},
        {**talk("Why?", "Because " * 300), "id": "long"},
        chat_record(1, images=names[:1], rounds=40),
    ]
    chat_blend(tmp_path, records, limits={"max_images": 2, "max_length": 200})
    done = run_command(tmp_path)
    assert done.returncode == 1
    assert "dataset mine: 2 of 4 records are rejects" in done.stderr
    for reason in ("too_many_images 1", "too_long 1", "limits.max_reject_share allows 0.2"):
        assert reason in done.stderr
    found = {reject["record"]: reject for reject in rejects_of(tmp_path / "build")}
    assert found["crowd"]["reason"] == "too_many_images"
    assert "3 images" in found["crowd"]["detail"]
    assert found["long"]["reason"] == "too_long"
    assert "limits.max_length is 200" in found["long"]["detail"]
    done = run_command(tmp_path, "--set", "limits.max_reject_share=0.5")
    assert done.returncode == 0
    (_, cut), *_ = [(name, one) for (_, name), one in samples_of(tmp_path / "build").items() if name == "chat/r1"]
    assert cut[4]["notes"] == ["rounds_cut"]
    assert len(cut[1]) + 15 <= 200


# Interruptions


@pytest.fixture(scope="module")
def long_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A blend that takes a few seconds, and what it should give."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "mine").mkdir()
    for number in range(40):
        (folder / f"mine/{number}.jpg").write_bytes(jpeg(number, (700, 500)))
    records = [chat_record(number, images=[f"{number % 40}.jpg"], rounds=2) for number in range(800)]
    blend = chat_blend(folder, records, shard={"max_images": 25}, image={"store": "resized", "size": 224})
    build(blend, out=folder / "whole", workers=2)
    return folder, files_of(folder / "whole")


def started(folder: Path, out: str) -> subprocess.Popen[str]:
    """The build in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [*COMMAND, "--blend", str(folder / "blend.yaml"), "--out", str(folder / out), "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def until(ready: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What `ready` finds, as soon as it finds something."""
    while process.poll() is None:
        if found := ready():
            return found
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("stage", ["reading", "compiling"])
def test_a_killed_worker_ends_the_build_with_a_clear_line_and_nothing_is_lost(
    long_build: tuple[Path, dict[str, bytes]], stage: str
) -> None:
    folder, whole = long_build
    out = f"killed-{stage}"
    process = started(folder, out)
    if stage == "compiling":
        until(lambda: list((folder / out).glob(".cache/staged/shards/*/*.tar")), process)
    worker = until(lambda: workers_of(process), process)[0]
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "error: a worker process died in task" in errors
    assert "the same command goes on where this run stopped" in errors
    build(folder / "blend.yaml", out=folder / out, workers=2)
    assert files_of(folder / out) == whole


@pytest.mark.parametrize("stage", ["workers starting", "compiling"])
def test_ctrl_c_ends_with_code_1_and_no_traceback_and_the_same_command_goes_on(
    long_build: tuple[Path, dict[str, bytes]], stage: str
) -> None:
    folder, whole = long_build
    out = f"stopped-{stage.split()[0]}"
    process = started(folder, out)
    if stage == "compiling":
        until(lambda: list((folder / out).glob(".cache/staged/shards/*/*.tar")), process)
    elif sys.platform == "linux":
        for worker in until(lambda: workers_of(process), process):
            status = Path(f"/proc/{worker}/status").read_text()
            blocked = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:"))
            assert blocked & 1 << signal.SIGINT - 1  # from the start: one that is importing would print a traceback
    else:
        until(lambda: (folder / out / ".cache/lock").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "Traceback" not in errors, errors
    assert "stopped; the same command goes on from here" in errors
    assert not (folder / out / "manifest.json").exists()
    build(folder / "blend.yaml", out=folder / out, workers=2)
    assert files_of(folder / out) == whole
