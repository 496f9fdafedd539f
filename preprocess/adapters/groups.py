"""Group ids: conversations with a common id stay on one side of the train/eval split.

Rule: two references to one image share an id if their names allow it: COCO's numbers in any dataset, a file that is
reached through different folders, and the same bytes in two rows of tables or in two texts. A file name without a
folder gets one id for each store that may contain it, so ids depend only on names, never on the files on disk. If names
are too weak to separate images, ids coincide; that keeps more together than needed, and leaks nothing. Names do not
show copies of a file under other names: the compiler adds a group for those before the split
(compiler/image_copies.py).
"""

from __future__ import annotations

import os.path
import posixpath
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import xxhash

from preprocess.conversation import is_embedded

_COCO = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpe?g", re.IGNORECASE)


def coco_group(image_id: int | str) -> str:
    """COCO's image numbers are unique over all of its years and splits."""
    return f"coco:{int(image_id)}"


def coco_group_in(name: str) -> str | None:
    """The group of a path with a COCO file name; None for any other."""
    match = _COCO.fullmatch(name.rpartition("/")[2])
    return coco_group(match[1]) if match else None


def image_groups(stores: Sequence[Path], name: str) -> tuple[str, ...]:
    """The groups of an image in the first of `stores` that has it: COCO's number, or the last two parts of its path.

    Two parts, so that an id does not depend on where `root` and `images` split the path, nor on the machine.
    """
    coco = coco_group_in(name)
    if coco is not None:
        return (coco,)
    if is_embedded(name):
        return (_bytes_group(name.removeprefix("data:")),)
    parts = posixpath.normpath(name).rsplit("/", 2)
    if len(parts) > 1:
        return ("/".join(parts[-2:]),)
    return tuple(dict.fromkeys(f"{_folder_name(store)}/{parts[0]}" for store in stores))


def embedded_group(image: bytes | memoryview, name: str | None) -> str:
    """The group of an image inside a table: by COCO's number if `name` has one, else by its bytes."""
    return (coco_group_in(name) if name else None) or _bytes_group(xxhash.xxh3_64_hexdigest(image))


def _bytes_group(digest: str) -> str:
    return f"bytes:{digest[:16]}"


@lru_cache(maxsize=1024)
def _folder_name(store: Path) -> str:
    path = os.path.abspath(store)
    # The Parquet or Arrow files of a folder are one store in pieces; a dataset may have hundreds.
    return os.path.basename(os.path.dirname(path) if path.endswith((".parquet", ".arrow")) else path)
