"""What training sees is what the encoder's own preprocessing makes of the original image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from preprocess.images.prepare import ImagePolicy, prepare_image
from shards.images.decode import DECODERS, Pixels
from tests.support.decoded_images import CLOSE, CROP, IMAGES, PHOTOS, decode, difference, photo, seen
from tests.support.image_files import encoded


def processed(data: bytes, size: int, fit: str = "crop") -> Pixels:
    """Hugging Face's preprocessing of the original, without the normalisation."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "CLIPImageProcessorPil"):
        pytest.skip("transformers before 5 names it otherwise")
    same = {"do_rescale": False, "do_normalize": False}
    square = {"height": size, "width": size}
    if fit == "squash":
        processor = transformers.SiglipImageProcessorPil(size=square, **same)
    elif fit == "pad":
        processor = transformers.LlavaImageProcessorPil(size=square, crop_size=square, do_pad=True, **same)
    else:
        processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square, **same)
    pixels: Pixels = np.asarray(processor(seen(data), return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    return pixels


@pytest.mark.parametrize("kind", IMAGES)
def test_original_images_give_the_pixels_of_the_clip_processor(kind: str) -> None:
    expected = processed(IMAGES[kind], 64)
    assert difference(decode("exact", IMAGES[kind], CROP), expected) == 0
    assert difference(decode("fast", IMAGES[kind], CROP), expected) < CLOSE


@pytest.mark.parametrize("kind", IMAGES)
def test_squashed_images_give_the_pixels_of_the_siglip_processor(kind: str) -> None:
    squash = replace(CROP, fit="squash")
    expected = processed(IMAGES[kind], 64, "squash")
    assert difference(decode("exact", IMAGES[kind], squash), expected) == 0
    assert difference(decode("fast", IMAGES[kind], squash), expected) < CLOSE


def test_padded_images_give_the_pixels_of_the_llava_processor() -> None:
    """Those of LLaVA-1.5: it pads to a square with the mean colour, and then resizes."""
    images = {path.name: path.read_bytes() for path in PHOTOS} | IMAGES
    assert len(PHOTOS) >= 8
    for size in (64, 336):
        pad = replace(CROP, fit="pad", size=size)
        for name, data in images.items():
            expected = processed(data, size, "pad")
            assert difference(decode("exact", data, pad), expected) == 0, name
            assert difference(decode("fast", data, pad), expected) < CLOSE, name


@pytest.mark.parametrize("size", [(192, 96), (96, 160), (64, 64)])
def test_original_images_give_the_pixels_of_open_clip(size: tuple[int, int]) -> None:
    """Sides whose border is even on both sides: where it is odd, open_clip and Hugging Face cut one pixel apart."""
    open_clip = pytest.importorskip("open_clip")
    transform = open_clip.image_transform(64, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    data = encoded(photo(*size), "JPEG")
    expected = np.round(transform(seen(data)).numpy().transpose(1, 2, 0) * 255)
    assert difference(decode("exact", data, CROP), expected) == 0
    assert difference(decode("fast", data, CROP), expected) < CLOSE


@pytest.mark.parametrize("name", DECODERS)
def test_resized_photos_are_close_to_what_the_clip_processor_makes_of_the_originals(name: str) -> None:
    policy = ImagePolicy(store="resized")
    for path in PHOTOS:
        data = path.read_bytes()
        pixels = decode(name, prepare_image(data, policy).data, policy.geometry)
        assert difference(pixels, processed(data, policy.size)) < 2, path


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", IMAGES)
def test_images_resized_to_png_are_what_the_clip_processor_makes_of_the_originals(kind: str, name: str) -> None:
    stored = prepare_image(IMAGES[kind], ImagePolicy(store="resized", size=64, format="png"))
    assert difference(decode(name, stored.data, CROP), processed(IMAGES[kind], 64)) == 0
