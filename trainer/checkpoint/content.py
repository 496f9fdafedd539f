"""checkpoint.json, the record of a checkpoint: what it says, checked value by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dst.common.extensions import ExtensionOrigin
from dst.errors import ConfigError
from shards.errors import FieldError
from shards.typed_json import OPTIONAL, WHOLE, Count, PositiveCount, field_error, from_json
from trainer.model_io.digests import FileFacts, read_sealed
from trainer.model_io.record import Stage

VERSION = 1
"""Raised when a program that reads the old version would misread a new checkpoint."""

CONTENT = "checkpoint.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPiece:
    """Elements [first, first + count) of a flattened parameter, in a file of the checkpoint."""

    file: str
    first: Count
    count: PositiveCount

    @classmethod
    def from_json(cls, value: object, path: str) -> StoredPiece:
        """A list of the three. Raises FieldError."""
        if not isinstance(value, list) or len(value) != 3:
            raise field_error(path, value, "a list of file, first element and number of elements")
        file = from_json(str, value[0], f"{path}.0")
        if Path(file).name != file:
            raise field_error(f"{path}.0", file, "the name of a file of the checkpoint")
        return cls(
            file=file,
            first=from_json(Count, value[1], f"{path}.1"),
            count=from_json(PositiveCount, value[2], f"{path}.2"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParameter:
    """The shape of a trained parameter, and the pieces that ranks wrote of it."""

    shape: tuple[Count, ...]
    pieces: tuple[StoredPiece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFacts:
    """The folder that the run began with, see trainer.checkpoint.init_from.start_facts."""

    tree: Annotated[Mapping[str, Any], WHOLE]
    record: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointContent:
    """What checkpoint.json says."""

    step: Count
    config: Mapping[str, Any]
    manifest: str
    """The hash of the build's manifest"""
    loader: Mapping[str, Any]
    loss_scale: Mapping[str, float]
    parameters: Mapping[str, StoredParameter]
    adam_step: Count
    frozen: Mapping[str, tuple[float, ...]]
    init_from: Annotated[StartFacts | None, OPTIONAL] = None
    extensions: Annotated[Mapping[str, ExtensionOrigin] | None, OPTIONAL] = None
    files: Annotated[Mapping[str, FileFacts] | None, OPTIONAL] = None
    """All other files of the checkpoint; None if an earlier release wrote it"""


def read_content(folder: Path, next_step: str) -> CheckpointContent:
    """The record of a checkpoint. next_step: how errors of damage end.

    Raises ConfigError if the folder is not a checkpoint, is damaged, or if another release wrote it.
    """
    try:
        content = read_sealed(folder / CONTENT)
    except FileNotFoundError:
        raise ConfigError([f"{folder}: no checkpoint there: it has no {CONTENT}"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{folder / CONTENT}: cannot be used ({error}); {next_step}"]) from None
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        is_newer = isinstance(version, int) and version > VERSION
        age = "newer" if is_newer else "older"
        step = "update dsvl, or resume from another checkpoint" if is_newer else "start a new run"
        raise ConfigError(
            [f"{folder}: the checkpoint is {age}: version {version!r}, this program reads {VERSION}; {step}"]
        )
    try:
        return from_json(CheckpointContent, content)
    except FieldError as error:
        raise ConfigError([f"{folder / CONTENT}: cannot be used ({error}); {next_step}"]) from None
