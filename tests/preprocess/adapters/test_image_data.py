"""Images inside JSON records: data URIs, bare base64 and {"bytes": base64} become images of a build like any other."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Photo

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import image_at, image_groups, image_of_bytes
from preprocess.adapters.parsing.image_data import image_data
from preprocess.conversation import Image
from preprocess.errors import RejectError
from preprocess.images.embedded import EmbeddedWriter, has_embedded
from preprocess.images.stores import open_stores
from shards.images.formats import reads_avif
from tests.support.bad_input import samples_of, write_lines
from tests.support.small_blends import build, chat_blend, chat_record, jpeg, write_images

FORMS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"]


def encoded(form: str) -> bytes:
    if form == "AVIF" and not reads_avif():
        pytest.skip("Pillow before 11.3 writes no AVIF")
    buffer = io.BytesIO()
    Photo.new("RGB", (30, 20), (200, 30, 90)).save(buffer, form)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_the_bytes_in_text_is_the_same_image(form: str) -> None:
    data = encoded(form)
    request = Request(root=Path("/data"), annotations=(), images=())
    spellings = [
        text(data),
        base64.encodebytes(data).decode(),
        f"data:image/{form.lower()};base64,{text(data)}",
        f"DATA:;BASE64,{text(data)}",
        f"data:image/x;charset=utf-8;base64,{base64.encodebytes(data).decode()}",
    ]
    images = {image_at(spelling, request) for spelling in spellings}
    images |= {image_of_bytes(spelling, request) for spelling in spellings}
    assert images == {Image(name=f"data:{hashlib.sha256(data).hexdigest()}")}
    assert image_groups(request, images) == (f"bytes:{hashlib.sha256(data).hexdigest()[:16]}",)


@pytest.mark.parametrize(
    "path",
    [
        "iVBORw0KGgo.png",
        "/9j/a.jpg",
        "Qk2A" * 3,
        "/9j/" + "a/" * 40 + "b.jpg",
        "photos/" + "a" * 80,
        "R0lGODdh" + "x-" * 60,
    ],
)
def test_a_path_is_never_taken_for_base64(path: str) -> None:
    assert image_data(path, "image") is None


@pytest.mark.parametrize("value", ["data:", "data:image/svg+xml,<svg/>", "data:image/png;base64,", "data:x;base64,A"])
def test_a_data_uri_without_base64_is_refused(value: str) -> None:
    with pytest.raises(RejectError, match="image_unreadable"):
        image_data(value, "image")


@pytest.mark.parametrize(("value", "reason"), [("*", "image_unreadable"), ("", "image_unreadable"), (7, "wrong_type")])
def test_bytes_that_are_not_base64_text_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(RejectError) as caught:
        image_of_bytes(value, Request(root=Path("/data"), annotations=(), images=()))
    assert caught.value.reason == reason


def test_kept_images_are_read_by_name_and_each_is_kept_once(tmp_path: Path) -> None:
    writer = EmbeddedWriter(tmp_path)
    one, two = writer.keep(b"one"), writer.keep(b"two")
    assert writer.keep(b"one") == one
    writer.close()
    assert (tmp_path / "embedded.blob").read_bytes() == b"onetwo"
    (tmp_path / "folder").mkdir()
    stores = open_stores((tmp_path / "folder", tmp_path), tmp_path)
    assert [stores.read(image) for image in (one, two)] == [b"one", b"two"]
    assert stores.stamp(one) == stores.stamp(two)
    for name in ("data:absent", "one"):
        with pytest.raises(RejectError, match="image_missing"):
            stores.read(Image(name=name))
    with pytest.raises(RejectError, match="image_missing"):
        open_stores((tmp_path / "folder",), tmp_path).read(one)


def test_a_dataset_without_such_images_has_no_files_for_them(tmp_path: Path) -> None:
    EmbeddedWriter(tmp_path).close()
    assert not has_embedded(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_build_reads_images_inside_records_and_reuses_its_shards(tmp_path: Path) -> None:
    photo, other = jpeg(1, (40, 24)), jpeg(2, (24, 40))
    (name,) = write_images(tmp_path / "mine", 1)
    values: list[Any] = [f"data:image/jpeg;base64,{text(photo)}", text(photo), {"bytes": text(other)}, name]
    records = [{**chat_record(0, images=[value]), "id": str(number)} for number, value in enumerate(values)]
    blend = chat_blend(tmp_path, records)
    assert build(blend).built_tasks > 0
    samples = {name: images for (_, name), (_, _, _, images, *_) in samples_of(tmp_path / "build").items()}
    assert len(samples) == 4
    assert build(blend).built_tasks == 0
    write_lines(tmp_path / "mine/chat.jsonl", [*records, {**chat_record(0, images=[text(other)]), "id": "new"}])
    assert build(blend).datasets["mine"].members == 5
