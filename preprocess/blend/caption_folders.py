"""Folders of images with a text next to each, among the folders below a root.

Rule: a folder of captions holds all folders below it. If each folder of a parent is one, such as 00000, 00001 or train,
val, the parent is the dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from preprocess.adapters.parsing.record_folders import folder_records
from preprocess.blend.folders import Folder
from preprocess.errors import DataError

PROMPT = "Describe this image."
"""What to ask for the captions; a person may want other words"""

_FIRST_RECORDS = 20


def caption_folders(folders: Sequence[Folder]) -> list[Path]:
    """The outermost folders of captions, in the order of the walk."""
    found: list[Path] = []
    for folder in folders:
        if folder.has_captions and not any(path in found for path in folder.path.parents) and _is_read(folder.path):
            found.append(folder.path)
    num_below = Counter(folder.path.parent for folder in folders[1:])
    num_found = Counter(path.parent for path in found)
    whole = {parent for parent, count in num_found.items() if 1 < count == num_below[parent]}
    return list(dict.fromkeys(path.parent if path.parent in whole else path for path in found))


def _is_read(path: Path) -> bool:
    """Whether one of the first files is an image with its text."""
    try:
        return any(type(record) is dict for record in islice(folder_records(path), _FIRST_RECORDS))
    except DataError:
        return False
