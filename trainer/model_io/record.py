"""dsvl.json, the record next to the weights of an exported model: reading and checking it.

The rule: this file alone defines architecture, tokenizer, template, preprocessing and training data of the model. It,
the weights and the tokenizer's files must be byte for byte what was exported. The files for transformers may be edited,
and have digests for `dsvl-train verify`; README.md is for people to edit, and has none. See trainer.model_io.digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from dst.common.config import build
from dst.common.extensions import ExtensionOrigin
from dst.errors import ConfigError
from shards.errors import FieldError
from shards.format.manifest import BuildFacts
from shards.typed_json import OPTIONAL, WHOLE, Count, from_json
from trainer.config.model import ModelConfig, check_model_values
from trainer.errors import TrainError
from trainer.model_io.digests import CheckedFiles, FileFacts, read_sealed

FORMAT = "dsvl-model"
VERSION = 1
"""Raised when a program that reads the old version would misread a new export."""

RECORD, CARD = "dsvl.json", "README.md"

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of weights, or the list of several, as transformers names them"""

WEIGHTS_SUFFIX = ".safetensors"

Form = Literal["llava", "internvl", "dsvl"]
"""Which names the weights have: those of a family of transformers, or our own."""

Precision = Literal["bf16", "fp16", "fp32"]

AGAIN = "copy it again, or export the model again"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageData:
    """The build of an earlier stage."""

    hash: str
    datasets: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What was trained before, see trainer.checkpoint.init_from."""

    tree: Annotated[Mapping[str, Any], WHOLE]
    step: Count
    training: Mapping[str, Any]
    build: StageData


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """What dsvl.json says."""

    form: Form
    precision: Precision
    step: Count
    model: Mapping[str, Any]
    build: BuildFacts
    training: Mapping[str, Any]
    files: Mapping[str, FileFacts]
    """What the model is loaded from"""
    other_files: Annotated[Mapping[str, FileFacts] | None, OPTIONAL] = None
    """For other programs; they may be edited. None if an earlier release wrote the record"""
    earlier: Annotated[tuple[Stage, ...] | None, OPTIONAL] = None
    extensions: Annotated[Mapping[str, ExtensionOrigin] | None, OPTIONAL] = None

    @property
    def has_digests(self) -> bool:
        return self.other_files is not None


def is_export(folder: str | Path) -> bool:
    """Whether dsvl-train export wrote the folder; a LLaVA folder of others has no such record."""
    return (Path(folder) / RECORD).exists()


def read_record(folder: Path) -> ExportRecord:
    """The record. Raises ConfigError if there is no export, or one of a newer release; TrainError if it is damaged."""
    try:
        content = read_sealed(folder / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            [f"{folder}: no exported model there: it has no {RECORD}; make one with dsvl-train export"]
        ) from None
    except (OSError, ValueError) as error:
        raise unusable(folder, str(error)) from None
    if content.get("format") != FORMAT:
        raise unusable(folder, f"it is not a {FORMAT} record")
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        age, step = ("newer", "update dsvl") if newer else ("older", "export the model again")
        raise ConfigError([f"{folder}: the export is {age}: version {version!r}, this program reads {VERSION}; {step}"])
    try:
        record = from_json(ExportRecord, content)
    except FieldError as error:
        raise unusable(folder, str(error)) from None
    for name in (*record.files, *(record.other_files or ())):
        if Path(name).name != name:
            raise unusable(folder, f"it names {name!r}, which is not a file of the folder")
    return record


def model_config(tree: Mapping[str, Any]) -> ModelConfig:
    """The architecture. tree: `model` of the record. Raises ConfigError with all problems."""
    config, problems = build(ModelConfig, tree)  # unknown keys may be of a newer release
    if config is None:
        raise ConfigError(problems)
    if problems := check_model_values(config):
        raise ConfigError(problems)
    return config


def checked_files(folder: Path, record: ExportRecord) -> CheckedFiles:
    """The files that the model is loaded from; those of an earlier release have digests of the tokenizer's alone.

    Presence and size of all are checked here, and the digests of all but the weights, which are checked before they are
    read. Raises TrainError.
    """
    files = CheckedFiles(folder, record.files, has_digests=record.has_digests, next_step=AGAIN)
    for name in record.files:
        if name.endswith(WEIGHTS_SUFFIX):
            files.check_size(name)
        else:
            files.check(name)
    files.check_foreign((*record.files, *(record.other_files or ()), RECORD))
    return files


def unchecked_note(folder: Path, record: ExportRecord) -> list[str]:
    """A line if an earlier release wrote the export, without digests."""
    if record.has_digests:
        return []
    return [f"{folder}: has no digests of its weights, since an earlier release wrote it; damage would go unnoticed"]


def unusable(folder: Path, why: str) -> TrainError:
    """The error for a record that cannot be used."""
    return TrainError(f"{folder / RECORD}: cannot be used ({why}); {AGAIN}")
