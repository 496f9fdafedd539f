"""manifest.json: the pinned result of a build.

Rules: it names every file of the build with its digest, and its own `hash` covers all of it, so one line compares two
builds. It holds no times, so the same inputs and configuration give the same manifest. Files are named by paths below
the build folder; a manifest that names any other is refused. The dataclasses here are its only schema: the compiler
writes them, and `read_manifest` checks every field once.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson

from shards.errors import FieldError, ShardError
from shards.files import replace_file
from shards.format.shard_info import ShardInfo, ShardList
from shards.images.geometry import Geometry
from shards.storage.store import Store
from shards.typed_json import OPTIONAL, WHOLE, Count, Keys, PositiveCount, field_error, from_json, to_json

FORMAT = "dsvl-build"
VERSION = 2
"""The newest version. It rises when a reader of the old one would misread a new build."""

PLAIN_VERSION = 1
"""The version of a build whose samples have no branches: what version 2 adds"""

_READ = f"{PLAIN_VERSION} and {VERSION}"

NAME = "manifest.json"
SPLITS = ("train", "eval")

_HASH_LINE = re.compile(rb'\n "hash": "([0-9a-f]{64})",(?=\n)')
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0]+"
_PLAIN = (string.ascii_letters + string.digits + "_-./\n").encode()
_ALL_DOTS = bytes.maketrans(b"/\n", b"..")
_INSIDE = re.compile(rf"(?![A-Za-z]:){_PART}(?:/{_PART})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLimits:
    """The most that a sample of the build has."""

    max_length: PositiveCount
    """Text tokens + images x image_tokens"""
    max_images: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDataset:
    """A dataset of the blend."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """The resolved blend: what readers need of it, and all of it as the manifest keeps it."""

    datasets: tuple[NamedDataset, ...]
    """In the blend's order"""
    template: str
    """A name or a path, as the blend gives it"""
    variables: Mapping[str, Any]
    image: Geometry
    image_tokens: PositiveCount
    limits: BuildLimits
    blend: Annotated[Mapping[str, Any], WHOLE]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerInfo:
    """The build's tokenizer. `fingerprint`: sha256 of its definition and its bos and eos tokens."""

    fingerprint: str
    vocabulary_size: PositiveCount
    image_id: Count
    """The id of the image placeholder"""
    bos_token: str
    """Empty if it has none"""
    eos_token: str

    @property
    def num_embeddings(self) -> int:
        """Rows that an embedding table needs for all ids."""
        return max(self.vocabulary_size, self.image_id + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """An annotation file that a dataset was read from; `size` in bytes."""

    file: str
    size: Count
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionFacts:
    """The code of an adapter that is not dsvl's. Readers never import it."""

    name: str
    """As the blend spells it"""
    distribution: str | None
    version: str | None
    """Of the distribution; None if the code belongs to none"""
    sha256: str
    """Digest of its source files"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What is known of a dataset wherever a model goes that was trained on it."""

    adapter: str
    extension: Annotated[ExtensionFacts | None, OPTIONAL] = None
    """None if the adapter is dsvl's"""
    template: str
    """The text of its chat template"""
    records: Count
    members: Count
    """Records that became part of a sample"""
    samples: Count
    splits: Annotated[Mapping[str, Count], Keys(SPLITS)]
    """Samples of each split"""
    images: Count
    tokens: Count
    """Ids stored, an image counting as one"""
    trained_tokens: Count
    share: float
    """Of the draws of an epoch of the blend, 0 to 1"""
    draws: Count
    """Samples of it in an epoch of the blend"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo(DatasetFacts):
    """A dataset of the build. records = members + the sum of `rejects`."""

    rejects: Mapping[str, Count]
    """Reason -> records"""
    filtered: Annotated[Mapping[str, Count] | None, OPTIONAL] = None
    """Rule of the dataset's filter -> records, which are the rejects with the reason `filtered`; None without any"""
    notes: Mapping[str, Count]
    """What was changed on the way -> how often"""
    absent: tuple[str, ...]
    """The adapter's annotation patterns that matched no file"""
    inputs: tuple[InputFile, ...]
    shards: Annotated[Mapping[str, ShardList], Keys(SPLITS)]
    """Split -> shards by number"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationQuestions:
    """A file of questions that training records were compared with."""

    file: str
    """As the blend names it"""
    ngram: PositiveCount
    """A record repeats a question if they share this many words in a row"""
    count: Count
    too_short: Count
    """Questions with fewer words, which match nothing"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFacts:
    """The part of a manifest that goes with a model trained on the build: no shards, no paths of the machine."""

    hash: str
    template: str
    image: Geometry
    image_tokens: PositiveCount
    limits: BuildLimits
    tokenizer: TokenizerInfo
    datasets: Mapping[str, DatasetFacts]
    has_branches: Annotated[Literal[True] | None, OPTIONAL] = None
    """Whether some samples have branches; None if not"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest. FORMAT.md says what each key means."""

    dsvl: str
    compiler: Count
    libraries: Mapping[str, str]
    config: BuildConfig
    template: str
    """The text of the blend's chat template"""
    tokenizer: TokenizerInfo
    datasets: Mapping[str, DatasetInfo]
    """In the blend's order"""
    questions: Annotated[tuple[EvaluationQuestions, ...] | None, OPTIONAL] = None
    """Of the evaluation sets of `decontaminate`; None without any"""
    files: Mapping[str, str]
    """Path -> sha256 of the tokenizer's files and rejects.jsonl"""
    hash: str = ""
    """sha256 of the file without the line that holds it; empty until `write_manifest` computes it"""

    def shards(self) -> Iterator[tuple[str, str, ShardInfo]]:
        """(dataset, split, shard): datasets in the blend's order, train before eval, shards by number."""
        for name, dataset in self.datasets.items():
            for split in SPLITS:
                for info in dataset.shards[split]:
                    yield name, split, info

    @property
    def has_branches(self) -> bool:
        """Whether some samples have a common beginning and branches."""
        return any(shards.has_branches for dataset in self.datasets.values() for shards in dataset.shards.values())

    def has_samples(self, split: str) -> bool:
        return any(sum(dataset.shards[split].samples) for dataset in self.datasets.values())

    def facts(self) -> BuildFacts:
        """What goes with a model that was trained on the build."""
        names = [field.name for field in fields(DatasetFacts)]
        return BuildFacts(
            hash=self.hash,
            template=self.config.template,
            image=self.config.image,
            image_tokens=self.config.image_tokens,
            limits=self.config.limits,
            tokenizer=self.tokenizer,
            has_branches=self.has_branches or None,
            datasets={
                name: DatasetFacts(**{field: getattr(dataset, field) for field in names})
                for name, dataset in self.datasets.items()
            },
        )


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
    version = VERSION if manifest.has_branches else PLAIN_VERSION
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
    except FieldError as error:
        raise ShardError(f"{path}: {error}; rebuild to write it again") from None
    if manifest.has_branches and document["version"] == PLAIN_VERSION:
        raise ShardError(
            f"{path}: has samples with branches, but is of format version {PLAIN_VERSION}, which has none; rebuild it"
        )
    named = [*manifest.files]
    for dataset in manifest.datasets.values():
        for shards in dataset.shards.values():
            named += shards.paths
    if outside := _outside(named):
        raise ShardError(
            f"{path}: names the file {outside[0]!r}; expected a path below the build folder, with / and without .. in "
            "it; do not use this build unless you know who wrote it"
        )
    return manifest


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
