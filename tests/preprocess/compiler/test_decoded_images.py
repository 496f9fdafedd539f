"""Images that were decoded for their fingerprints are not decoded again to check them, and shards stay the same."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ImageFile import ImageFile

from preprocess.compiler.decoded_images import DecodedImages, open_decoded, write_decoded
from preprocess.dedupe.fingerprint import bytes_digest, bytes_fingerprint, look_fingerprint
from preprocess.images import prepare
from preprocess.images.prepare import ImagePolicy, prepare_image
from shards.images.pixels import load_pixels
from tests.support.small_blends import build, chat_blend, chat_record, files_of, jpeg, rejects_of


def test_only_the_bytes_that_were_decoded_are_known(tmp_path: Path) -> None:
    images = [jpeg(number) for number in range(20)]
    looks = np.stack([look_fingerprint(data, 10**6) for data in [*images, images[0][:400]]])
    path = tmp_path / "decoded.npy"
    write_decoded([looks[:7], looks[7:], np.stack([bytes_fingerprint(b"no look")])], path)
    known = open_decoded(path)
    assert {known.orientation(data) for data in images} == {1}
    assert [known.orientation(data) for data in (images[0][:400], b"no look", jpeg(99))] == [None] * 3


def test_a_digest_with_an_equal_first_word_is_another_one() -> None:
    first, second = bytes_digest(b"a")
    words = np.array([[first, first], [second ^ 1, second], [3, 6]], dtype=np.uint64)
    assert DecodedImages(words).orientation(b"a") == 6
    assert DecodedImages(words[:, :1]).orientation(b"a") is None


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_stored_image_is_the_same_with_and_without_the_earlier_decoding(kind: str) -> None:
    for orientation in (1, 3, 6):
        data = oriented(kind, orientation)
        decoded = int(look_fingerprint(data, 10**6)["orientation"])
        assert decoded == (1 if kind == "TIFF" else orientation)  # Pillow turns a TIFF itself while it decodes
        for policy in (ImagePolicy(), ImagePolicy(store="resized", size=16)):
            assert prepare_image(data, policy, decoded=decoded) == prepare_image(data, policy)


@pytest.mark.usefixtures("builds_in_this_process")
def test_a_build_that_compares_looks_decodes_no_image_twice_and_writes_the_same_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[bytes] = []

    def load(image: ImageFile, data: bytes) -> None:
        loaded.append(data)
        load_pixels(image, data)

    monkeypatch.setattr(prepare, "load_pixels", load)
    files = {
        "a.jpg": jpeg(1),
        "b.jpg": oriented("JPEG", 6),
        "c.png": oriented("PNG", 3),
        "broken.jpg": jpeg(4, (99, 99))[:-200],
    }
    (tmp_path / "mine").mkdir()
    for name, data in files.items():
        (tmp_path / "mine" / name).write_bytes(data)
    records = [chat_record(number, images=[name]) for number, name in enumerate(files)]
    blend = chat_blend(tmp_path, records, limits={"max_reject_share": 0.5})
    build(blend, out=tmp_path / "plain")
    assert loaded == [*files.values()]
    loaded.clear()
    build(blend, out=tmp_path / "near", settings=["dedupe=near"])
    assert loaded == [files["broken.jpg"]]
    assert [reject["reason"] for reject in rejects_of(tmp_path / "near")] == ["image_unreadable"]
    plain, near = (files_of(tmp_path / name) for name in ("plain", "near"))
    assert [name for name in plain if plain[name] != near.get(name)] == ["manifest.json"]
