"""The folders below a root with the files in them that may hold records or images, for finding datasets.

Rule: a folder with many images costs one pass over its names; no file is opened here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocess.adapters.parsing.sample_records import is_image

DEPTH = 3
"""How many levels below the root are searched"""

RECORDS = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".tar", ".gz", ".tgz", ".zst", ".xz", ".csv", ".tsv")
ARCHIVES = (".zip", ".tar")
_RECORDS_OR_ARCHIVES = (*RECORDS, *ARCHIVES)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder and its files, sorted: `records` may hold records, `archives` may hold images; a tar may hold both.

    has_captions: whether there are images and texts, which may be their captions.
    """

    path: Path
    records: tuple[Path, ...]
    archives: tuple[Path, ...]
    has_captions: bool = False


def walk(root: Path) -> Iterator[Folder]:
    """The root, then the folders below it, level by level in order; hidden ones are left out."""
    level = [root]
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for path in level:
            folder, inside = _scan(path)
            yield folder
            below += inside
        level = below


def _scan(path: Path) -> tuple[Folder, list[Path]]:
    """A folder and the folders in it, sorted; the names of other files are neither kept nor sorted."""
    folders: list[Path] = []
    files: list[Path] = []
    has_text = has_image = False
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(Path(entry.path))
                elif name.lower().endswith(_RECORDS_OR_ARCHIVES):
                    files.append(Path(entry.path))
                elif not (has_text and has_image):
                    has_text = has_text or name.endswith((".txt", ".TXT"))
                    has_image = has_image or is_image(name)
    except OSError:
        pass  # a folder that may not be read holds nothing for us
    files.sort()
    records = tuple(file for file in files if file.name.lower().endswith(RECORDS))
    archives = tuple(file for file in files if file.name.lower().endswith(ARCHIVES))
    return Folder(path, records, archives, has_text and has_image), sorted(folders)
