"""Group ids: what must stay on one side of the train/eval split.

Rule: two references to one picture share an id where their names can tell: in any dataset for COCO's numbers, in any
dataset for a file reached through whichever of its folders, and for the same bytes embedded twice. A bare file name
gets one id for each store that may hold it, so the ids depend on names alone, never on what is on disk today. Where
names are too weak to tell pictures apart, ids coincide; that keeps more together than needed and leaks nothing.
Not recognised: links, a picture saved again, and an embedded picture that also lies in a folder, unless COCO's.
"""

from __future__ import annotations

import hashlib
import os.path
import posixpath
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

_COCO = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpe?g", re.IGNORECASE)


def coco_group(image_id: int | str) -> str:
    """COCO numbers its pictures once for all of its years and splits."""
    return f"coco:{int(image_id)}"


def coco_group_in(name: str) -> str | None:
    """The group of a path whose file name is COCO's."""
    match = _COCO.fullmatch(name.rpartition("/")[2])
    return coco_group(match[1]) if match else None


def image_groups(stores: Sequence[Path], name: str) -> tuple[str, ...]:
    """The groups of an image in the first of `stores` that has it: COCO's number, or the last two parts of its path.

    Two parts, so that an id is the same wherever `root` and `images` cut the path, and on every machine.
    """
    coco = coco_group_in(name)
    if coco is not None:
        return (coco,)
    parts = posixpath.normpath(name).rsplit("/", 2)
    if len(parts) > 1:
        return ("/".join(parts[-2:]),)
    return tuple(dict.fromkeys(f"{_folder_name(store)}/{parts[0]}" for store in stores))


def embedded_group(image: bytes, name: str | None) -> str:
    """The group of a picture that lies in its record: by its bytes, or by COCO's number where `name` has one."""
    return (coco_group_in(name) if name else None) or f"bytes:{hashlib.sha256(image).hexdigest()[:16]}"


@lru_cache(maxsize=1024)
def _folder_name(store: Path) -> str:
    path = os.path.abspath(store)
    # The Parquet files of a folder are the pieces of one store; a dataset may have hundreds.
    return os.path.basename(os.path.dirname(path) if path.endswith(".parquet") else path)
