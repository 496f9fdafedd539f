"""Group ids: what must stay on one side of the train/eval split.

Rule: two references to the same picture get the same id, whatever dataset names it. Where names are too weak to tell
pictures apart, ids coincide; that keeps more together than needed and leaks nothing.
"""

from __future__ import annotations

import os.path
import posixpath
import re
from functools import lru_cache
from pathlib import Path

_COCO = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpe?g", re.IGNORECASE)


def coco_group(image_id: int | str) -> str:
    """COCO numbers its pictures once for all of its years and splits."""
    return f"coco:{int(image_id)}"


def image_group(store: Path, name: str) -> str:
    """The group of an image by its name: COCO's number, or the last two parts of its path.

    Two parts, so that an id is the same wherever `root` and `images` cut the path, and on every machine.
    """
    match = _COCO.fullmatch(name.rpartition("/")[2])
    if match:
        return coco_group(match[1])
    path = posixpath.normpath(f"{_folder_name(store)}/{name}")
    return "/".join(path.split("/")[-2:])


@lru_cache(maxsize=1024)
def _folder_name(store: Path) -> str:
    return os.path.basename(os.path.abspath(store))
