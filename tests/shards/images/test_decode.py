"""Decoders give Pillow's pixels for every kind and geometry of image, whichever libraries are installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import shards.images.decode
import shards.images.pixels
from shards.images.decode import DECODERS, Pixels, decode_pillow
from shards.images.geometry import Geometry
from shards.images.pixels import PAD_COLOURS
from tests.support.decoded_images import CLOSE, CROP, IMAGES, READY, decode, difference, photo, seen, twin
from tests.support.image_files import encoded

MOST = 3  # of 255, for any one pixel, where both resize the same source


@pytest.fixture
def fresh() -> Iterator[None]:
    """Installed libraries are looked for again, in the test and after it."""
    for cached in (shards.images.decode._simplejpeg, shards.images.torch_fit._has_torch):
        cached.cache_clear()
    yield
    for cached in (shards.images.decode._simplejpeg, shards.images.torch_fit._has_torch):
        cached.cache_clear()


@pytest.mark.parametrize("size", [(3000, 7), (7, 3000), (2999, 1500)])
def test_a_long_strip_is_padded_without_its_square_in_memory(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.images.pixels, "_PIXELS_AT_ONCE", 100_000)
    pad = replace(CROP, fit="pad", max_pixels=5_000_000)
    data = encoded(photo(*size), "PNG")
    for name in DECODERS:
        assert difference(decode(name, data, pad), twin(data, pad)) == 0


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_and_fit_is_exactly_pillows_and_closely_the_fast_decoders(kind: str, fit: Any) -> None:
    geometry = replace(CROP, fit=fit)
    expected = twin(IMAGES[kind], geometry)
    assert difference(decode_pillow(IMAGES[kind], geometry)[0], expected) == 0
    assert difference(decode("exact", IMAGES[kind], geometry), expected) == 0
    assert difference(decode("fast", IMAGES[kind], geometry), expected) < CLOSE


def drawn(content: str, width: int, height: int, seed: int) -> Image.Image:
    if content == "photo":
        return photo(width, height)
    if content == "noise":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    if content == "specks":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 2, (height, width), np.uint8) * 255)
    checks = np.add.outer(np.arange(height) // (1 + seed % 4), np.arange(width) // (1 + seed % 3)) % 2
    return Image.fromarray((checks * 255).astype(np.uint8)).convert("RGB")


@given(
    content=st.sampled_from(["photo", "noise", "specks", "checks"]),
    width=st.integers(2, 900),
    height=st.integers(2, 900),
    seed=st.integers(0, 99),
    file=st.sampled_from([("JPEG", {}), ("JPEG", {"quality": 100, "subsampling": "4:4:4"}), ("PNG", {})]),
    size=st.integers(8, 120),
    fit=st.sampled_from(["crop", "squash", "pad"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "lanczos"]),
    pad_colour=st.sampled_from(sorted(PAD_COLOURS)),
)
@settings(max_examples=80)
def test_any_size_and_geometry_is_exactly_pillows_and_closely_the_fast_decoders(
    content: str,
    width: int,
    height: int,
    seed: int,
    file: tuple[str, dict[str, Any]],
    size: int,
    fit: Any,
    interpolation: Any,
    pad_colour: Any,
) -> None:
    geometry = Geometry(size=size, fit=fit, interpolation=interpolation, pad_colour=pad_colour, max_pixels=10_000_000)
    data = encoded(drawn(content, width, height, seed), file[0], **file[1])
    expected = twin(data, geometry)
    assert difference(decode("exact", data, geometry), expected) == 0
    quick = decode("fast", data, geometry)
    assert difference(quick, expected) < CLOSE
    assert np.abs(quick.astype(int) - expected).max() <= (0 if interpolation == "lanczos" else MOST)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(2, 9), (96, 271), (61, 268), (43, 93), (130, 210), (210, 130), (90, 90), (9, 2)])
def test_black_and_white_specks_are_resized_in_pillows_order_of_passes(size: tuple[int, int], fit: Any) -> None:
    """Each pass cuts off what overshoots, which is nearly everything here: the wrong order is 4 of 255 away."""
    data = encoded(drawn("specks", *size, seed=0), "PNG")
    for side in (8, 50, 90):
        geometry = replace(CROP, size=side, fit=fit)
        got, expected = decode("fast", data, geometry), decode_pillow(data, geometry)[0]
        assert np.abs(got.astype(int) - expected).max() <= MOST


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", READY)
def test_a_stored_image_of_the_right_size_is_not_resized_again(kind: str, name: str) -> None:
    for fit in ("crop", "squash", "pad"):
        geometry = replace(CROP, fit=fit)
        assert difference(decode(name, READY[kind], geometry), np.asarray(seen(READY[kind]))) == 0


@pytest.mark.parametrize("name", DECODERS)
def test_pixels_go_into_their_place_in_a_batch_and_nowhere_else(name: str) -> None:
    batch = np.full((3, 64, 64, 3), 9, np.uint8)
    for data in (IMAGES["landscape"], READY["4:4:4"]):
        DECODERS[name](memoryview(data), CROP, batch[1:2])
        assert difference(batch[1], decode_pillow(data, CROP)[0]) < CLOSE
        assert (batch[[0, 2]] == 9).all()


@pytest.mark.parametrize("name", DECODERS)
def test_simplejpeg_decodes_stored_jpegs_of_the_right_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    decode(name, READY["4:4:4"], CROP)
    expected = decode_pillow(READY["4:4:4"], CROP)[0]
    monkeypatch.setattr(shards.images.decode, "open_image", lambda _: pytest.fail("Pillow was asked"))
    assert difference(decode(name, READY["4:4:4"], CROP), expected) == 0
    with pytest.raises(pytest.fail.Exception, match="Pillow was asked"):
        decode(name, READY["mirrored"], CROP)


def test_without_simplejpeg_everything_is_decoded_by_pillow(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert shards.images.decode._simplejpeg() is None
    for data in (*IMAGES.values(), *READY.values()):
        assert difference(decode("exact", data, CROP), twin(data, CROP)) == 0
        assert difference(decode("fast", data, CROP), twin(data, CROP)) < CLOSE


def test_a_simplejpeg_with_other_pixels_than_pillows_is_not_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    assert shards.images.decode._simplejpeg() is not None
    shards.images.decode._simplejpeg.cache_clear()
    right = simplejpeg.decode_jpeg

    def wrong(data: bytes, colours: str) -> Pixels:
        pixels: Pixels = right(data, colours)
        pixels[-1, -1, 2] ^= 1
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", wrong)
    assert shards.images.decode._simplejpeg() is None
    assert difference(decode("exact", READY["4:2:0"], CROP), twin(READY["4:2:0"], CROP)) == 0


def test_without_torch_the_fast_decoder_is_the_exact_one(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for data in IMAGES.values():
        assert difference(decode("fast", data, CROP), twin(data, CROP)) == 0
