"""The official split of a record: train, val, test, or "" for none.

Rule: an unknown value is a reject, never a silent "train": test data must not leak into training.
"""

from __future__ import annotations

import re
from typing import Any

from preprocess.adapters.parsing.fields import show
from preprocess.conversation import OfficialSplit
from preprocess.errors import RejectError

_SPLITS: dict[str, OfficialSplit] = {
    "": "",
    "train": "train",
    "restval": "train",  # Karpathy: COCO's val2014 without his val and test
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_IN_NAME = re.compile(r"(?<![a-z])(train|val|test)(?:id|idation)?(?![a-z])", re.IGNORECASE)


def stated_split(value: Any) -> OfficialSplit:
    """The split that a record states; "" for None."""
    if value is None:
        return ""
    if type(value) is not str:
        raise RejectError("wrong_type", f"split is {show(value)}; expected train, val or test")
    if value not in _SPLITS:
        raise RejectError("bad_value", f"split is {show(value)}; expected train, val or test")
    return _SPLITS[value]


def split_in_name(*names: str) -> OfficialSplit:
    """The split in the first name that contains exactly one, such as captions_val2014 or COCO's data_subtype."""
    for name in names:
        found = {word.lower() for word in _IN_NAME.findall(name)}
        if len(found) == 1:
            return _SPLITS[found.pop()]
    return ""
