"""One's own files: which of a folder's files hold conversations that the adapter `chat` reads.

Rule: the adapter itself decides, by the first records of a file. Files whose names differ only in numbers or in the
name of a split belong together, and the first one speaks for all of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from preprocess.adapters.base import Request
from preprocess.adapters.lookup import read_records
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Reject
from preprocess.errors import ConfigError, DataError

CHAT = "chat"
FIRST_RECORDS = 5
MAX_GROUPS = 24
"""How many groups of a folder's files are opened"""

_MAX_LINE_BYTES = 16 << 20
_VARYING = re.compile(r"\d+|(?<![a-z])(?:train|val(?:id(?:ation)?)?|dev|eval|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """Files of one form. names: of the images that the first records show, as far as they are not in the files."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    num_embedded: int


@dataclass(frozen=True, slots=True)
class Unread:
    """A file, or several like it, that may be data, and why it is not part of the blend."""

    path: Path
    reason: str
    count: int = 1


def own_files(files: Sequence[Path], kept: set[Path]) -> tuple[list[OwnFiles], list[Unread]]:
    """The conversations among a folder's files, and the files that hold none. kept: files that datasets use already."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if path.resolve() not in kept:
            groups[_VARYING.sub("*", path.name)].append(path)
    found: list[OwnFiles] = []
    unread: list[Unread] = []
    for number, group in enumerate(groups.values()):
        if number == MAX_GROUPS:
            rest = sum(map(len, list(groups.values())[MAX_GROUPS:]))
            unread.append(Unread(group[0], "not opened: the folder holds too many files of different names", rest))
            break
        opened = _open(group)
        if isinstance(opened, OwnFiles):
            found.append(opened)
        else:
            unread.append(opened)
    return found, unread


def first_conversations(adapter: str, request: Request) -> tuple[list[Conversation], list[Reject]]:
    """What an adapter makes of the first records. Raises DataError if a whole file cannot be used."""
    items = list(islice(read_records(adapter, request), FIRST_RECORDS))
    made = [item for item in items if isinstance(item, Conversation)]
    return made, [item for item in items if isinstance(item, Reject)]


def names_of(conversations: Sequence[Conversation]) -> tuple[str, ...]:
    """The names of the images that are not in the annotation file itself."""
    return tuple(dict.fromkeys(image.name for one in conversations for image in one.images if image.store is None))


def _open(group: list[Path]) -> OwnFiles | Unread:
    path = group[0]
    options = {name: option.default for name, option in ADAPTERS[CHAT].options.items()}
    request = Request(root=path.parent, annotations=(path,), images=(path.parent, path), options=options)
    try:
        if not path.stat().st_size:
            return Unread(path, "empty", len(group))
        if _is_one_long_object(path):
            return Unread(path, "one JSON object, not records", len(group))
        made, rejects = first_conversations(CHAT, request)
    except (DataError, ConfigError) as error:
        return Unread(path, str(error).removeprefix(f"{path}: "), len(group))
    except OSError as error:
        return Unread(path, f"cannot be read ({error.strerror})", len(group))
    if not made:
        reason = f"no conversation: {rejects[0].reason}: {rejects[0].detail}" if rejects else "no records in it"
        return Unread(path, reason, len(group))
    embedded = sum(image.store is not None for one in made for image in one.images)
    return OwnFiles(tuple(group), names_of(made), embedded)


def _is_one_long_object(path: Path) -> bool:
    """Whether a file begins with an object on a line that is longer than a record, so that it should not be read."""
    with path.open("rb") as file:
        head = file.read(_MAX_LINE_BYTES)
    return len(head) == _MAX_LINE_BYTES and head.lstrip()[:1] == b"{" and b"\n" not in head
