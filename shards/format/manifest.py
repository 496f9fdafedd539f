"""manifest.json: the pinned result of a build.

Rules: it names every file of the build with its digest, and its own `hash` covers all of it, so one line compares two
builds. It holds no times, so the same inputs and configuration give the same manifest. Files are named by paths below
the build folder; a manifest that names any other is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import orjson

from shards.errors import ShardError
from shards.files import replace_file
from shards.format.writer import ShardInfo
from shards.storage.store import Store

FORMAT = "dsvl-build"
VERSION = 1
"""Rises when a reader of the old version would misread a new build."""

NAME = "manifest.json"
_FIELDS = [field.name for field in fields(ShardInfo)]
SPLITS = ("train", "eval")

_HASH_LINE = re.compile(rb'\n "hash": "([0-9a-f]{64})",(?=\n)')
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0]+"
_PLAIN = (string.ascii_letters + string.digits + "_-./\n").encode()
_ALL_DOTS = bytes.maketrans(b"/\n", b"..")
_INSIDE = re.compile(rf"(?![A-Za-z]:){_PART}(?:/{_PART})*")


class ShardList(Sequence[ShardInfo]):
    """The shards of a dataset's split. A build may have ten thousand, so each is parsed when it is asked for."""

    def __init__(self, where: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Raises KeyError or TypeError if an entry is none."""
        self._where, self._entries = where, entries
        self.paths = [name for entry in entries for name in (entry["path"], entry["index"])]
        self.samples = [int(entry["samples"]) for entry in entries]

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, number: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, number: slice) -> ShardList: ...
    def __getitem__(self, number: int | slice) -> ShardInfo | ShardList:
        if isinstance(number, slice):
            return ShardList(self._where, self._entries[number])
        entry = self._entries[number]
        try:
            return ShardInfo(**{name: entry[name] for name in _FIELDS})  # keys that a later release added are left out
        except (KeyError, TypeError) as error:
            raise ShardError(f"{self._where}: shard {number} lacks {error}; rebuild to write it anew") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A parsed manifest. `content` is the whole document; the fields below are what readers need."""

    content: Mapping[str, Any]
    hash: str
    shards: Mapping[str, Mapping[str, ShardList]]
    """dataset -> split -> shards; datasets in the blend's order, train before eval."""


def manifest_hash(content: Mapping[str, Any]) -> str:
    """sha256 over the file's bytes without the line that holds the hash."""
    rest = {key: value for key, value in content.items() if key != "hash"}
    return hashlib.sha256(manifest_text(rest)).hexdigest()


def manifest_text(content: Mapping[str, Any]) -> bytes:
    """The file's bytes, the only ones that `verify` takes.

    Raises ValueError for text that is not Unicode and for numbers that are not finite.
    """
    return (json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n").encode()


def write_manifest(build: Path, content: Mapping[str, Any]) -> str:
    """Add format, version and hash, and put the file in place, unless it is there already. Returns the hash."""
    whole = {"format": FORMAT, "version": VERSION, **content}
    whole["hash"] = manifest_hash(whole)
    text = manifest_text(whole)
    if not (build / NAME).is_file() or (build / NAME).read_bytes() != text:
        replace_file(build / NAME, text)
    return str(whole["hash"])


def is_build(text: bytes) -> bool:
    """Whether a manifest.json is one of ours, of whatever version: many programs write a file of that name."""
    return f'"format": "{FORMAT}"'.encode() in text


def read_manifest(store: Store) -> Manifest:
    """Raises ShardError: no build there, damaged, edited, of another version, or naming files outside the build."""
    path = store.name(NAME)
    try:
        text = store.read(NAME)
        content = orjson.loads(text)
    except NotADirectoryError:
        raise ShardError(f"{store.location}: is a file; wanted the folder of a build") from None
    except FileNotFoundError:
        raise ShardError(
            f"{store.location}: no {NAME} there; it is no finished build (run dsvl-prep build, or mend the path)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path}: cannot be read ({error}); rebuild to write it anew") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ShardError(f"{path}: no manifest of a dsvl build; wanted an object with format {FORMAT!r}")
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ShardError(
            f"{path}: the build has no format version, only {version}; this program reads {VERSION}; rebuild it"
        )
    if version != VERSION:
        age = "newer" if version > VERSION else "older"
        step = "update dsvl" if age == "newer" else "rebuild it"
        raise ShardError(f"{path}: the build is {age}: format version {version}, this program reads {VERSION}; {step}")
    stated = _HASH_LINE.match(text, max(0, text.find(b'\n "hash": "')))
    digest = _hash_around(text, *stated.span()) if stated else "none"
    if stated is None or stated[1].decode() != digest:
        raise ShardError(
            f"{path}: was edited or damaged: its hash is {str(content.get('hash'))[:12]}, its content hashes to "
            f"{digest[:12]}; rebuild to write it anew"
        )
    try:
        shards = {
            dataset["name"]: {
                split: ShardList(path, content["datasets"][dataset["name"]]["shards"][split]) for split in SPLITS
            }
            for dataset in content["config"]["datasets"]
        }
        named = [*content.get("files", ())]
        named += [name for splits in shards.values() for found in splits.values() for name in found.paths]
        outside = _outside(named)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ShardError(
            f"{path}: a part is missing or has another shape ({error}); rebuild to write it anew"
        ) from None
    if outside:
        raise ShardError(
            f"{path}: names the file {outside[0]!r}; wanted a path below the build folder, with / and without .. in "
            "it; do not use this build unless you know who wrote it"
        )
    return Manifest(content=content, hash=digest, shards=shards)


def _hash_around(text: bytes, start: int, end: int) -> str:
    """sha256 of all but a part."""
    view = memoryview(text)
    found = hashlib.sha256(view[:start])
    found.update(view[end:])
    return found.hexdigest()


def _outside(names: Sequence[str]) -> list[str]:
    """The names that are no paths below the build. One look at all of them is fast, and nearly always enough."""
    lines = "\n".join(["", *names, ""]).encode(errors="surrogatepass")
    one_line_each = lines.count(b"\n") == len(names) + 1
    if one_line_each and not lines.translate(None, delete=_PLAIN) and b".." not in lines.translate(_ALL_DOTS):
        return []  # letters, digits, _ and -, with a dot or a slash here and there between them
    return [name for name in names if not _INSIDE.fullmatch(name)]
