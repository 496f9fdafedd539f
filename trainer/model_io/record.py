"""dsvl.json, the record next to the weights of an exported model: reading and checking it.

The rule: this file alone defines architecture, tokenizer, template, preprocessing and training data of the model. The
tokenizer's files must be byte for byte those of the build, since ids depend on them; README.md and the files for
transformers may be edited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dst.common.config import build
from dst.common.extensions import ExtensionOrigin
from dst.errors import ConfigError
from shards.errors import FieldError
from shards.files import file_sha256
from shards.format.manifest import BuildFacts
from shards.typed_json import from_json
from trainer.config.extensions import recorded_extensions
from trainer.config.model import ModelConfig, check_model_values
from trainer.errors import TrainError

FORMAT = "dsvl-model"
VERSION = 1
"""Raised when a program that reads the old version would misread a new export."""

RECORD = "dsvl.json"

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of weights, or the list of several, as transformers names them"""

Form = Literal["llava", "internvl", "dsvl"]
"""Which names the weights have: those of a family of transformers, or our own."""


def is_export(folder: str | Path) -> bool:
    """Whether dsvl-train export wrote the folder; a LLaVA folder of others has no such record."""
    return (Path(folder) / RECORD).exists()


def read_record(folder: Path) -> Mapping[str, Any]:
    """The record. Raises ConfigError if there is no export, or one of a newer release; TrainError if it is damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            [f"{folder}: no exported model there: it has no {RECORD}; make one with dsvl-train export"]
        ) from None
    except (OSError, ValueError) as error:
        raise unusable(folder, str(error)) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise unusable(folder, f"it is not a {FORMAT} record")
    version = record.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        age, step = ("newer", "update dsvl") if newer else ("older", "export the model again")
        raise ConfigError([f"{folder}: the export is {age}: version {version!r}, this program reads {VERSION}; {step}"])
    return record


def model_config(record: Mapping[str, Any]) -> ModelConfig:
    """The architecture. Raises KeyError, or ConfigError with all problems."""
    config, problems = build(ModelConfig, record["model"])  # unknown keys may be of a newer release
    if config is None:
        raise ConfigError(problems)
    if problems := check_model_values(config):
        raise ConfigError(problems)
    return config


def build_facts(folder: Path, record: Mapping[str, Any]) -> BuildFacts:
    """The data that the model was trained on. Raises TrainError if the record is damaged."""
    try:
        return from_json(BuildFacts, record.get("build"), "build")
    except FieldError as error:
        raise unusable(folder, str(error)) from None


def record_extensions(folder: Path, record: Mapping[str, Any]) -> Mapping[str, ExtensionOrigin]:
    """The code of the model's extensions, by part. Raises TrainError if the record is damaged."""
    try:
        return recorded_extensions(record)
    except FieldError as error:
        raise unusable(folder, str(error)) from None


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the sizes of all files and the digests of the tokenizer's. Raises TrainError."""
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name:
            raise unusable(folder, f"it names {name!r}, which is not a file of the folder")
        if not path.is_file():
            raise TrainError(f"{path}: is missing; copy it again, or export the model again")
        if (size := path.stat().st_size) != entry["size"]:
            raise TrainError(
                f"{path}: has {size} bytes, expected {entry['size']}; it is truncated or edited: copy it again, or "
                "export the model again"
            )
        if "sha256" in entry and file_sha256(path) != entry["sha256"]:
            raise TrainError(
                f"{path}: is not what was exported; it is damaged or edited: copy it again, or export the model again"
            )


def unusable(folder: Path, why: str) -> TrainError:
    """The error for a record that cannot be used."""
    return TrainError(f"{folder / RECORD}: cannot be used ({why}); copy it again, or export the model again")
