"""The images that a rejected record names, or why each cannot be had, as a build finds it.

A reject has no list of images, so they are looked for in the record: images inside it, texts under keys of images, and
texts that end as names of images do. Names are read from the dataset's own image stores alone, as a build reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dst.common.config import build as build_config
from preprocess.blend.config import Blend
from preprocess.blend.inputs import Inputs, find_inputs
from preprocess.errors import ConfigError
from preprocess.views.preview_images import PreviewImages
from shards.format.manifest import Manifest
from shards.images.page_images import PageImage, page_image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_KEYS = ("image", "images", "img", "image_path", "image_file", "file_name", "imageurl")
_MOST, _LONGEST_NAME = 12, 1000
_SIDE = 512


def images_of_record(record: Any, manifest: Manifest, dataset: str, bases: Sequence[Path]) -> tuple[PageImage, ...]:
    """At most twelve images of a record, in its order; none if it has none and names none by a text."""
    images = list(dict.fromkeys(_named(record)))[:_MOST]
    named = any(data is None for _, data in images)
    inputs = _inputs(manifest, dataset, bases) if named else None
    with TemporaryDirectory(prefix="dsvl-view-") as cache:
        store = PreviewImages(inputs.images, f"none below {inputs.root}", Path(cache)) if inputs else None
        return tuple(_page_image(name, data, store) for name, data in images)


def _page_image(name: str, data: bytes | None, store: PreviewImages | None) -> PageImage:
    if data is not None:
        return page_image(name, lambda: data, _SIDE)
    if store is None:
        return PageImage(name=name, problem="the dataset's folder is not here; see --blend")
    return page_image(name, partial(store.data, name), _SIDE)


def _inputs(manifest: Manifest, dataset: str, bases: Sequence[Path]) -> Inputs | None:
    """The dataset's files, where its folder is found from one of the bases."""
    entries = [each for each in manifest.config.blend["datasets"] if each["name"] == dataset]
    blend, _ = build_config(Blend, {**manifest.config.blend, "datasets": entries})
    if blend is None:
        return None
    for base in bases:
        try:
            return find_inputs(blend, base, need_images=False)[dataset]
        except ConfigError:
            continue
    return None


def _named(value: Any, key: str = "") -> Iterator[tuple[str, bytes | None]]:
    """Names of images, each with its bytes if they are in the record, as in tables with images inside."""
    if isinstance(value, memoryview):
        yield key, bytes(value)
    elif isinstance(value, dict) and isinstance(value.get("bytes"), memoryview):
        yield str(value.get("path") or key), bytes(value["bytes"])
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _named(item, str(name).lower())
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item, key)
    elif isinstance(value, str) and _is_name(value, key):
        yield value, None


def _is_name(text: str, key: str) -> bool:
    if not 0 < len(text) <= _LONGEST_NAME or "\n" in text:
        return False
    return key in _KEYS or text.lower().endswith(_SUFFIXES)
