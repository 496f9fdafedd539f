"""The file of a manifest: its bytes, its hash, and the checks of what is read.

Rule: files are named by paths below the build folder; a manifest that names any other is refused, and so is one that
was edited or is of another version. Every field is checked once, when the file is read.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from shards.errors import FieldError, ShardError
from shards.files import replace_file
from shards.format.counts import check_counts
from shards.format.manifest import Manifest
from shards.storage.store import Store
from shards.typed_json import field_error, from_json, to_json

FORMAT = "dsvl-build"
VERSION = 3
"""The newest version: that of builds with tiles. It rises when a reader of the old one would misread a new build."""

BRANCHES_VERSION = 2
"""The version of a build without tiles in which some samples have branches"""

PLAIN_VERSION = 1
"""The version of a build with neither"""

_READ = f"{PLAIN_VERSION} to {VERSION}"

NAME = "manifest.json"

_HASH_LINE = re.compile(rb'\n "hash": "([0-9a-f]{64})",(?=\n)')
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0-\x1f]+"
_PLAIN = (string.ascii_letters + string.digits + "_-./\n").encode()
_ALL_DOTS = bytes.maketrans(b"/\n", b"..")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INSIDE = re.compile(rf"(?![A-Za-z]:){_PART}(?:/{_PART})*")


def manifest_hash(document: Mapping[str, Any]) -> str:
    """sha256 over the bytes of a manifest's JSON object without the line that holds the hash."""
    rest = {key: value for key, value in document.items() if key != "hash"}
    return hashlib.sha256(manifest_text(rest)).hexdigest()


def manifest_text(document: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest's JSON object, the only ones that `verify` takes.

    Raises ValueError for text that is not Unicode and for numbers that are not finite.
    """
    return (json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n").encode()


def is_canonical(text: bytes) -> bool:
    """Whether a manifest's bytes are those that `manifest_text` gives for its JSON object."""
    return manifest_text(orjson.loads(text)) == text


def write_manifest(build: Path, manifest: Manifest) -> Manifest:
    """Put the file in place, unless it is there already. Returns the manifest with its hash."""
    version = _version(manifest)
    document = {"format": FORMAT, "version": version, **to_json(manifest)}
    document["hash"] = manifest_hash(document)
    text = manifest_text(document)
    if not (build / NAME).is_file() or (build / NAME).read_bytes() != text:
        replace_file(build / NAME, text)
    return replace(manifest, hash=document["hash"])


def is_build(text: bytes) -> bool:
    """Whether a manifest.json is one of ours, of whatever version: many programs write a file of that name."""
    return f'"format": "{FORMAT}"'.encode() in text


def named_files(text: bytes) -> set[str]:
    """The keys of `files` in a manifest of any version; none if it is damaged, since it then says nothing reliable."""
    try:
        return set(json.loads(text)["files"])
    except (KeyError, TypeError, ValueError):
        return set()


def read_manifest(store: Store) -> Manifest:
    """Raises ShardError: no build there, damaged, edited, of another version, or naming files outside the build."""
    path = store.name(NAME)
    try:
        text = store.read(NAME)
        document = orjson.loads(text)
    except NotADirectoryError:
        raise ShardError(f"{store.location}: is a file; expected the folder of a build") from None
    except FileNotFoundError:
        raise ShardError(
            f"{store.location}: no {NAME} there; it is not a finished build (run dsvl-prep build, or fix the path)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path}: cannot be read ({error}); rebuild to write it again") from None
    _check_version(path, document)
    digest = _checked_hash(path, text, document)
    try:
        manifest = _in_order_of_the_blend(from_json(Manifest, {**document, "hash": digest}))
        check_counts(manifest)
    except FieldError as error:
        raise ShardError(f"{path}: {error}; rebuild to write it again") from None
    if _version(manifest) > document["version"]:
        what = "images with tiles" if manifest.has_tiles else "samples with branches"
        raise ShardError(
            f"{path}: has {what}, but is of format version {document['version']}, which has none; rebuild it"
        )
    if manifest.has_tiles and manifest.config.image.tiles is None:
        raise ShardError(f"{path}: has images with tiles, but config.image.tiles is missing; rebuild it")
    named, digests = [*manifest.files], [*manifest.files.values()]
    for dataset in manifest.datasets.values():
        for shards in dataset.shards.values():
            named += shards.paths
            digests += shards.digests
    if wrong := next((digest for digest in digests if not _SHA256.fullmatch(digest)), None):
        raise ShardError(
            f"{path}: names the digest {wrong!r}; expected 64 hexadecimal digits; rebuild to write it again"
        )
    if outside := _outside(named):
        raise ShardError(
            f"{path}: names the file {outside[0]!r}; expected a path below the build folder, with / and without .. in "
            "it; do not use this build unless you know who wrote it"
        )
    return manifest


def _version(manifest: Manifest) -> int:
    """The oldest version that has all that the build has."""
    if manifest.has_tiles:
        return VERSION
    return BRANCHES_VERSION if manifest.has_branches else PLAIN_VERSION


def _check_version(path: str, document: Any) -> None:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ShardError(f"{path}: no manifest of a dsvl build; expected an object with format {FORMAT!r}")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ShardError(
            f"{path}: the build has no format version, only {version}; this program reads {_READ}; rebuild it"
        )
    if not PLAIN_VERSION <= version <= VERSION:
        age = "newer" if version > VERSION else "older"
        step = "update dsvl" if age == "newer" else "rebuild it"
        raise ShardError(f"{path}: the build is {age}: format version {version}, this program reads {_READ}; {step}")


def _checked_hash(path: str, text: bytes, document: Mapping[str, Any]) -> str:
    stated = _HASH_LINE.match(text, max(0, text.find(b'\n "hash": "')))
    digest = _hash_around(text, *stated.span()) if stated else "none"
    if stated is None or stated[1].decode() != digest:
        raise ShardError(
            f"{path}: was edited or damaged: its hash is {str(document.get('hash'))[:12]}, its content hashes to "
            f"{digest[:12]}; rebuild to write it again"
        )
    return digest


def _in_order_of_the_blend(manifest: Manifest) -> Manifest:
    """Keys are sorted in the file. Raises FieldError if its datasets are not those of the blend."""
    names = [dataset.name for dataset in manifest.config.datasets]
    if sorted(names) != sorted(manifest.datasets):
        raise field_error("datasets", sorted(manifest.datasets), f"those of config.datasets, {sorted(names)}")
    return replace(manifest, datasets={name: manifest.datasets[name] for name in names})


def _hash_around(text: bytes, start: int, end: int) -> str:
    """sha256 of all bytes but those in [start, end)."""
    view = memoryview(text)
    digest = hashlib.sha256(view[:start])
    digest.update(view[end:])
    return digest.hexdigest()


def _outside(names: Sequence[str]) -> list[str]:
    """The names that are no paths below the build. One look at all of them is fast, and nearly always enough."""
    lines = "\n".join(["", *names, ""]).encode(errors="surrogatepass")
    one_line_each = lines.count(b"\n") == len(names) + 1
    if one_line_each and not lines.translate(None, delete=_PLAIN) and b".." not in lines.translate(_ALL_DOTS):
        return []  # letters, digits, _ and -, with a dot or a slash here and there between them
    return [name for name in names if not _INSIDE.fullmatch(name)]
