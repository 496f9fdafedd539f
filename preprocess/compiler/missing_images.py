"""Where the images of a dataset are, if many of them are not where the blend says.

Rule: the work is bounded. Some records, evenly spaced, are asked for images that the stores lack, and the folders near
the dataset's root are searched for a few of these. A build reads none of what is found; it says what to change.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from preprocess.blend.folders import walk
from preprocess.blend.image_search import elsewhere, find_images, with_other_extension
from preprocess.compiler.report import DatasetReport
from preprocess.compiler.spool import Spool
from preprocess.conversation import Image, is_embedded, is_url
from preprocess.errors import RejectError
from preprocess.images.stores import StoreList

_ROWS = 200
_NAMES = 20
_SHOWN_STORES = 8
_MANY = 0.05
"""Share of a dataset's records from which on lacking images are searched for"""


def missing_images_hint(
    report: DatasetReport, spool: Spool, root: Path, images: Sequence[Path], open_stores: Callable[[], StoreList]
) -> str:
    """What to change, or that nothing was found; "" for a dataset with few missing images.

    images: the paths of its stores. open_stores: opens them; called only if many images are missing.
    """
    num_missing = report.rejects["image_missing"]
    if num_missing <= _MANY * report.records:
        return ""
    rows = np.unique(np.linspace(0, len(spool) - 1, min(len(spool), _ROWS)).astype(np.int64))
    names = dict.fromkeys(
        image.name
        for image in spool.images(rows)
        if image.store is None and not is_url(image.name) and not is_embedded(image.name)
    )
    if not names:
        return ""
    stores = open_stores()
    first = list(islice((name for name in names if _lacks(stores, name)), _NAMES))
    if not first:
        return ""
    what = f"images of {num_missing:,} records are missing" if report.images else "all images are missing"
    folders = list(walk(root))
    found, missing = find_images(first, root, folders)
    if found:
        name = next(name for name in first if name not in missing)
        where = [os.path.relpath(path, root) for path in found]
        kept = [os.path.relpath(path, root) for path in images if path not in found] if report.images else []
        setting = [*kept, *where]
        step = (
            f"set the dataset's images: [{', '.join(setting)}]"
            if len(setting) <= _SHOWN_STORES
            else f"add {', '.join(where)} to the dataset's `images`"
        )
        return f"{what}, but {name} is in {', '.join(where)}; {step}"
    if (other := with_other_extension(first[0], root, folders)) is not None:
        there = os.path.relpath(other, root)
        return f"{what}; the records name {first[0]}, and {there} is there: give both the same extension"
    if (other := elsewhere(first[0], root, folders)) is not None:
        return (
            f"{what}; the records name {first[0]}, and {os.path.relpath(other, root)} is below the root: "
            "name the folder from which the path in the records starts in the dataset's images"
        )
    return f"{what}; {first[0]} is in no folder or archive near {root}"


def _lacks(stores: StoreList, name: str) -> bool:
    """Whether no store has an image; one that cannot be opened is not missing."""
    try:
        stores.stamp(Image(name=name))
    except RejectError as error:
        return error.reason == "image_missing"
    except OSError:
        return False
    return False
