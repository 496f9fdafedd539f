"""The records of a folder of images with a .txt, a .json or both of the same name next to each.

Rules: a sample is read as preprocess.adapters.parsing.sample_records says; its id is its path below the folder, without
the extension. An image without a text, and a text without an image, is an UnreadableRecord. Other files are not
records. A folder named train, val or test is the split of what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from preprocess.adapters.parsing.fields import printable
from preprocess.adapters.parsing.record_watch import opening, watched_records
from preprocess.adapters.parsing.sample_records import MAX_TEXT_BYTES, is_image, sample_record
from preprocess.adapters.parsing.splits import split_of_file
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers.remote_path import is_remote
from preprocess.containers.sample_folders import TEXTS, SampleFiles, read_small, samples_below
from preprocess.errors import DataError

_REQUESTS = 16
_SAMPLES_AHEAD = 256

Read = Callable[[str], bytes]
"""Gives the text with this path below the folder. Raises as `read_small`"""


def folder_records(path: Path) -> Iterator[Any]:
    """The samples in the order of their paths. Raises DataError for a folder without any."""
    opening(path)
    found_one = False
    folder, split = None, ""
    watch, number = watched_records(path), 0
    for sample, read in _with_texts(path):
        if sample.folder != folder:
            folder, split = sample.folder, split_of_file(sample.folder.rstrip("/"))
        record = watch.reading(number) or _record(sample, read)
        if record is None:
            continue
        number += 1
        identity = sample.folder + sample.stem
        if (shown := printable(identity)) != identity:
            record, identity = UnreadableRecord(reason="bad_text", detail=f"the name {shown} is not UTF-8"), shown
        if isinstance(record, UnreadableRecord):
            yield replace(record, id=identity)
            continue
        found_one = True
        record.setdefault("id", identity)
        if split:
            record.setdefault("split", split)
        yield record
    watch.ended()
    if not found_one:
        raise DataError(f"{path}: is a folder without an image that has a .txt or a .json of the same name next to it")


def _with_texts(path: Path) -> Iterator[tuple[SampleFiles, Read]]:
    """The samples, and what reads their texts: of some at the same time, if each costs a request."""
    if not is_remote(path):
        yield from ((sample, lambda name: read_small(path, name, MAX_TEXT_BYTES)) for sample in samples_below(path))
        return
    samples = samples_below(path)
    with ThreadPoolExecutor(_REQUESTS, "texts") as pool:
        while some := list(islice(samples, _SAMPLES_AHEAD)):
            names = [
                sample.name(extension)
                for sample in some
                for extension in sample.extensions
                if extension.lower() in TEXTS
            ]
            texts = {name: pool.submit(read_small, path, name, MAX_TEXT_BYTES) for name in names}
            yield from ((sample, lambda name, texts=texts: texts[name].result()) for sample in some)


def _record(sample: SampleFiles, read_text: Read) -> Any:
    """None for files that are not a sample."""
    images = [extension for extension in sample.extensions if is_image(extension)]
    texts = [extension for extension in sample.extensions if extension.lower() in TEXTS]
    if not images:
        if not any(extension.lower() == "txt" for extension in texts):
            return None
        return UnreadableRecord(reason="no_match", detail=f"{sample.name(texts[0])} has no image of the same name")
    if texts and len(images) > 1:
        shown = " and ".join(sample.name(extension) for extension in images)
        return UnreadableRecord(reason="bad_value", detail=f"{shown} have the same text; expected one image")

    def read(extension: str) -> bytes | UnreadableRecord:
        try:
            return read_text(sample.name(extension))
        except ValueError as error:
            return UnreadableRecord(reason="bad_value", detail=f"{sample.name(extension)} {error}")

    return sample_record(
        sample.folder + sample.stem, {extension: extension for extension in sample.extensions}, sample.name, read
    )
