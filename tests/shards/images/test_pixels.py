"""The geometry in a manifest, and that reading builds alone loads no image library."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from preprocess.images.prepare import ImagePolicy
from shards.errors import FieldError, ImageError
from shards.images.geometry import Geometry
from shards.images.pixels import check_size, scaled_size
from shards.typed_json import from_json
from tests.support.paths import ROOT

POLICIES = [
    ImagePolicy(),
    ImagePolicy(store="resized", size=224, fit="pad", pad_colour="siglip", interpolation="lanczos", max_pixels=5),
    ImagePolicy(fit="squash", pad_colour="black", interpolation="bilinear"),
    ImagePolicy(fit="squash", tiles=6, tiles_multi=2, grid="resolution"),
]


def in_manifest(policy: ImagePolicy) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(policy)))
    return config


@pytest.mark.parametrize("policy", POLICIES)
def test_a_manifests_image_config_gives_the_geometry_that_the_compiler_used(policy: ImagePolicy) -> None:
    geometry = from_json(Geometry, in_manifest(policy))
    assert geometry == policy.geometry
    for field in dataclasses.fields(Geometry):
        assert getattr(geometry, field.name) == getattr(policy, field.name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0),
        ("size", True),
        ("size", "336"),
        ("size", 336.0),
        ("max_pixels", None),
        ("fit", "Crop"),
        ("fit", ["crop"]),
        ("pad_colour", "white"),
        ("interpolation", 3),
    ],
)
def test_a_malformed_image_config_is_an_error_that_names_key_and_value(key: str, value: object) -> None:
    with pytest.raises(FieldError, match=rf"config\.image\.{key}: got .*; expected") as caught:
        from_json(Geometry, in_manifest(ImagePolicy()) | {key: value}, "config.image")
    assert repr(value) in str(caught.value)


REQUIRED = [field.name for field in dataclasses.fields(Geometry) if field.default is dataclasses.MISSING]


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_key_is_an_error(field: str) -> None:
    config = in_manifest(ImagePolicy())
    del config[field]
    with pytest.raises(FieldError, match=rf"config\.image\.{field}: missing; expected"):
        from_json(Geometry, config, "config.image")


def test_a_build_without_tiles_needs_no_settings_of_them() -> None:
    config = {name: value for name, value in in_manifest(ImagePolicy()).items() if name in REQUIRED}
    geometry = from_json(Geometry, config)
    assert (geometry.grid, geometry.tiles, geometry.tiles_multi) == (None, None, None)
    assert (geometry.most_tiles(1), geometry.most_tiles(3)) == (1, 1)


@pytest.mark.parametrize("image", [None, [], "crop"])
def test_an_image_config_that_is_not_an_object_is_an_error(image: object) -> None:
    with pytest.raises(FieldError, match=r"config\.image: got .*; expected an object"):
        from_json(Geometry, image, "config.image")


@pytest.mark.parametrize(
    ("fit", "expected"),
    [("crop", (100, 64)), ("pad", (64, 64)), ("squash", (64, 64))],
)
def test_sizes_are_cut_down_to_whole_pixels(fit: str, expected: tuple[int, int]) -> None:
    geometry = from_json(Geometry, in_manifest(ImagePolicy(size=64)) | {"fit": fit})
    assert scaled_size(157, 100, geometry) == expected  # 64 * 1.57 = 100.48


def test_an_image_error_survives_pickling_between_workers() -> None:
    with pytest.raises(ImageError) as caught:
        check_size(Image.new("RGB", (30, 20)), 599)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, str(copy)) == ("too_large", "30x20 is more than 599 pixels")


def test_importing_shards_loads_no_image_library() -> None:
    code = "import sys, shards; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "simplejpeg", "PIL"} & set(done.stdout.split())


def test_importing_the_decoders_loads_neither_torch_nor_simplejpeg() -> None:
    code = "import sys, shards.images.decode; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "simplejpeg"} & set(done.stdout.split())
