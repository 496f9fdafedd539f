"""The official split of a record: train, val, test, or "" for none.

Rules: what the record states decides; without that, the name of its file, and then those of the file's folders. An
unknown value in a record is a reject, never a silent "train": test data must not leak into training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from preprocess.adapters.parsing.fields import show
from preprocess.conversation import Conversation, OfficialSplit, Records, Reject
from preprocess.errors import RejectError

_WORDS: dict[str, OfficialSplit] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "minival": "val",
    "test": "test",
    "testing": "test",
    "testdev": "test",
}
_STATED: dict[str, OfficialSplit] = {
    **_WORDS,
    "": "",
    "restval": "train",  # Karpathy: COCO's val2014 without his val and test
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_IN_IMAGE = re.compile(r"(?<![a-z])(train|val|test)(?:id|idation)?(?![a-z])", re.IGNORECASE)


def stated_split(value: Any) -> OfficialSplit:
    """The split that a record states; "" for None."""
    if value is None:
        return ""
    if type(value) is not str:
        raise RejectError("wrong_type", f"split is {show(value)}; expected train, val or test")
    if value.lower() not in _STATED:
        raise RejectError("bad_value", f"split is {show(value)}; expected train, val or test")
    return _STATED[value.lower()]


def split_of_image(name: str) -> OfficialSplit:
    """The split in an image's name or in COCO's `data_subtype`, such as COCO_val2014_000000000042.jpg."""
    found = {word.lower() for word in _IN_IMAGE.findall(name)}
    return _WORDS[found.pop()] if len(found) == 1 else ""


def split_of_file(file: str) -> OfficialSplit:
    """The split in the path of an annotation file below the dataset's root, such as data/validation-00000.parquet.

    The file's name comes first, then its folders from the inside out. A name with words of train and of val or test
    says nothing, as in train_val_split.json.
    """
    path = PurePosixPath(file)
    for name in (path.stem, *(folder.name for folder in path.parents)):
        found = {_WORDS[word.lower()] for word in _WORD.findall(name) if word.lower() in _WORDS}
        if found == {"val", "test"}:  # test-dev
            return "test"
        if len(found) == 1:
            return found.pop()
    return ""


def held_out_files(files: Iterable[str]) -> dict[str, OfficialSplit]:
    """The files whose names say val or test."""
    return {file: split for file in files if (split := split_of_file(file)) in ("val", "test")}


def with_splits_of_files(records: Records, held_out: Mapping[str, OfficialSplit]) -> Iterator[Conversation | Reject]:
    """The conversations; those that have no official split get the one of the files of their records."""
    for item in records:
        if isinstance(item, Conversation) and not item.official_split:
            found = {held_out[source.file] for source in item.sources if source.file in held_out}
            if found:
                yield replace(item, official_split="test" if "test" in found else "val")
                continue
        yield item
