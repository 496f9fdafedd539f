"""manifest.json: the pinned result of a build.

Rules: it names every file of the build with its digest, and its own `hash` covers all of it, so one line compares two
builds. It holds no times, so the same inputs and configuration give the same manifest. Files are named by paths below
the build folder; a manifest that names any other is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.files import replace_file
from shards.writer import ShardInfo

FORMAT = "dsvl-build"
VERSION = 1
"""Rises when a reader of the old version would misread a new build."""

NAME = "manifest.json"
SPLITS = ("train", "eval")

_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0]+"
_INSIDE = re.compile(rf"(?![A-Za-z]:){_PART}(?:/{_PART})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A parsed manifest. `content` is the whole document; the fields below are what readers need."""

    content: Mapping[str, Any]
    hash: str
    shards: Mapping[str, Mapping[str, tuple[ShardInfo, ...]]]
    """dataset -> split -> shards; datasets in the blend's order, train before eval."""


def manifest_hash(content: Mapping[str, Any]) -> str:
    """sha256 over the document without its `hash`, as JSON with sorted keys and no white space."""
    rest = {key: value for key, value in content.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def manifest_text(content: Mapping[str, Any]) -> bytes:
    """The file's bytes, the only ones that `verify` takes. Raises ValueError for text that is not Unicode."""
    return (json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def write_manifest(build: Path, content: Mapping[str, Any]) -> str:
    """Add format, version and hash, and put the file in place, unless it is there already. Returns the hash."""
    whole = {"format": FORMAT, "version": VERSION, **content}
    whole["hash"] = manifest_hash(whole)
    text = manifest_text(whole)
    if not (build / NAME).is_file() or (build / NAME).read_bytes() != text:
        replace_file(build / NAME, text)
    return str(whole["hash"])


def read_manifest(build: Path) -> Manifest:
    """Raises ShardError: no build there, damaged, edited, of another version, or naming files outside the build."""
    path = build / NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(
            f"{build}: no {NAME} there; it is no finished build (run dsvl-prep build, or mend the path)"
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
    if content.get("hash") != manifest_hash(content):
        raise ShardError(
            f"{path}: was edited or damaged: its hash is {str(content.get('hash'))[:12]}, its content hashes to "
            f"{manifest_hash(content)[:12]}; rebuild to write it anew"
        )
    try:
        shards = {
            dataset["name"]: {
                split: tuple(_shard(shard) for shard in content["datasets"][dataset["name"]]["shards"][split])
                for split in SPLITS
            }
            for dataset in content["config"]["datasets"]
        }
        infos = [info for splits in shards.values() for found in splits.values() for info in found]
        named = [*content.get("files", ()), *(name for info in infos for name in (info.path, info.index))]
        outside = [name for name in named if not _INSIDE.fullmatch(name)]
    except (AttributeError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path}: a part is missing or has another shape ({error}); rebuild to write it anew"
        ) from None
    if outside:
        raise ShardError(
            f"{path}: names the file {outside[0]!r}; wanted a path below the build folder, with / and without .. in "
            "it; do not use this build unless you know who wrote it"
        )
    return Manifest(content=content, hash=content["hash"], shards=shards)


def _shard(content: Mapping[str, Any]) -> ShardInfo:
    """Keys that a later release added are left out. Raises KeyError or TypeError."""
    return ShardInfo(**{field.name: content[field.name] for field in fields(ShardInfo)})
