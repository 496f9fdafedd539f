"""One's own files: which of a folder's files hold conversations that the adapter `chat` reads.

Rule: the adapter itself decides, by the first records of a file; if it knows none of their names, it tries those that
guess_names proposes. Files whose names differ only in numbers or in the
name of a split belong together, and the first one speaks for all of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from preprocess.adapters.base import Request, Tally
from preprocess.adapters.lookup import read_records
from preprocess.adapters.parsing.record_files import json_form
from preprocess.adapters.parsing.record_files import read_records as read_file
from preprocess.adapters.parsing.record_text import kind_of
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.guess_names import Names, guess_images, guess_names, nested_turns
from preprocess.conversation import Conversation, Reject, Role, is_embedded
from preprocess.errors import ConfigError, DataError

CHAT = "chat"
FIRST_RECORDS = 5
MAX_GROUPS = 24
"""How many groups of a folder's files are opened"""

_MAX_LINE_BYTES = 16 << 20
_VARYING = re.compile(r"\d+|(?<![a-z])(?:train|val(?:id(?:ation)?)?|dev|eval|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFiles:
    """Files of one form. images: names of those that the first records show, as far as they are not in the files.

    folders: those of images with absolute paths, or paths with `..`.

    forms: of the first records, of which num_read are conversations; reject: the first of the others, if there is one.
    names: what the names in the records may stand for, where the adapter needs a person to say so.
    """

    files: tuple[Path, ...]
    images: tuple[str, ...]
    folders: tuple[Path, ...]
    num_embedded: int
    forms: tuple[str, ...]
    num_read: int
    num_records: int
    reject: Reject | None
    names: Names


@dataclass(frozen=True, slots=True)
class Unread:
    """A file, or several like it, that may be data, and why it is not part of the blend."""

    path: Path
    reason: str
    count: int = 1


def own_files(files: Sequence[Path], kept: set[Path], root: Path) -> tuple[list[OwnFiles], list[Unread]]:
    """The conversations among a folder's files, and the files that hold none.

    kept: files that datasets use already. root: where images may be, for records that name them by absolute paths.
    """
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
        opened = _open(group, root)
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
    shown = [image for one in conversations for image in one.images]
    return tuple(dict.fromkeys(one.name for one in shown if one.store is None and not is_embedded(one.name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the adapter makes of the first records under these names. error: why the whole file cannot be read."""

    request: Request
    names: Names
    made: list[Conversation]
    rejects: list[Reject]
    error: DataError | None = None


def _open(group: list[Path], root: Path) -> OwnFiles | Unread:
    path = group[0]
    try:
        if not path.stat().st_size:
            return Unread(path, "empty", len(group))
        if _is_one_long_object(path):
            return Unread(path, "one JSON object, not records", len(group))
        look = _look(path, root)
        if not look.made and (place := nested_turns(_plain_records(path))):
            reason = f"its turns are in {place}: only keys of the record itself are read, so move them to the top"
            return Unread(path, reason, len(group))
        if look.error is not None:
            raise look.error
    except (DataError, ConfigError) as error:
        return Unread(path, str(error).removeprefix(f"{path}: "), len(group))
    except OSError as error:
        return Unread(path, f"cannot be read ({error.strerror})", len(group))
    made, rejects, request = look.made, look.rejects, look.request
    if not made:
        reason = f"no conversation: {rejects[0].reason}: {rejects[0].detail}" if rejects else "no records in it"
        return Unread(path, reason, len(group))
    stores = {image.store for one in made for image in one.images}
    return OwnFiles(
        files=tuple(group),
        images=names_of(made),
        folders=tuple(folder for place, folder in enumerate(request.images) if place in stores and place != 1),
        num_embedded=sum(is_embedded(image.name) or image.store == 1 for one in made for image in one.images),
        forms=tuple(request.tally.forms),
        num_read=len(made),
        num_records=len(made) + len(rejects),
        reject=rejects[0] if rejects else None,
        names=look.names,
    )


def _look(path: Path, root: Path) -> _Look:
    """The first records as the adapter reads them; if it finds no conversation or no image, with guessed names."""
    options = {name: option.default for name, option in ADAPTERS[CHAT].options.items()}
    outer = tuple(folder for folder in path.parent.parents if folder.is_relative_to(root))
    request = Request(root=path.parent, annotations=(path,), images=(path.parent, path, *outer), options=options)
    plain = _tried(request, Names())
    if any(one.images for one in plain.made):
        return plain
    records = _plain_records(path)
    names = guess_images(records) if plain.made else guess_names(records)
    if names is None:
        return plain
    if not names.fields and not names.roles and not names.unknown_roles:
        return replace(plain, names=names)
    guessed = _tried(_with_names(request, names), names)
    return guessed if guessed.made or not plain.made else plain


def _tried(request: Request, names: Names) -> _Look:
    try:
        made, rejects = first_conversations(CHAT, request)
    except DataError as error:
        return _Look(request=request, names=names, made=[], rejects=[], error=error)
    return _Look(request=request, names=names, made=made, rejects=rejects)


def _with_names(request: Request, names: Names) -> Request:
    """Names that only a person can tell speak in turns, so that the rest of the records can be looked at."""
    sides: tuple[Role, Role] = ("user", "assistant")
    unknown: dict[str, Role] = {name: sides[index % 2] for index, name in enumerate(names.unknown_roles)}
    return replace(request, keys=dict(names.fields), roles={**names.roles, **unknown}, tally=Tally())


class _EveryName(Container[str]):
    """For reading all columns of a table."""

    def __contains__(self, name: object) -> bool:
        return True


def _plain_records(path: Path) -> list[Any]:
    """The first records as they are in the file."""
    is_json = kind_of(path) == "text" and json_form(path) != "other"
    try:
        return list(islice(read_file(path, ADAPTERS[CHAT].keys if is_json else _EveryName()), FIRST_RECORDS))
    except DataError:
        return []


def _is_one_long_object(path: Path) -> bool:
    """Whether a file begins with an object on a line that is longer than a record, so that it should not be read."""
    with path.open("rb") as file:
        head = file.read(_MAX_LINE_BYTES)
    return len(head) == _MAX_LINE_BYTES and head.lstrip()[:1] == b"{" and b"\n" not in head
