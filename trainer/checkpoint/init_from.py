"""A run that begins with a whole model: an export of an earlier stage, or a LLaVA folder that others published.

The rule: the folder at `model.init_from` defines encoder, projector and decoder and holds all their weights. Token
ids, and so the tokenizer, must be the same. The config that a run saves has the parts in full. Its checkpoints record
which folder it was and what was trained before: the folder may move, but must not be replaced by another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dst.errors import ConfigError
from shards import Manifest
from shards.files import file_sha256
from shards.typed_json import to_json
from trainer.checkpoint.content import StartFacts
from trainer.config.extensions import extension_kinds, extension_notes, require_consent
from trainer.config.model import ModelConfig
from trainer.config.run import to_tree
from trainer.errors import TrainError
from trainer.model_io.llava_folder import EXPECTED, differing_fit, read_llava
from trainer.model_io.record import (
    RECORD,
    checked_files,
    is_export,
    model_config,
    read_record,
    unchecked_note,
    unusable,
)

_PARTS = ("encoder", "projector", "decoder")
_MAY_DIFFER = ("decoder", "attn_implementation")
"""The one key of a part that may differ from the folder's"""


def with_start(tree: Mapping[str, Any], where: str, allow_extensions: Collection[str] = ()) -> Mapping[str, Any]:
    """A config's tree with the parts of the model filled in from the folder at `model.init_from`, if it is set.

    where: what problems begin with. allow_extensions: those that an export may name, besides those that the config
    names itself. Raises ConfigError if there is no such folder, if the config contradicts it, or if it names other
    extensions; TrainError if the folder is damaged.
    """
    model = tree.get("model")
    if not isinstance(model, Mapping) or model.get("init_from") is None:
        return tree
    start, problems = model["init_from"], []
    if not isinstance(start, str) or not start:
        raise ConfigError([f"{where}: model.init_from: got {start!r}; {EXPECTED}"])
    allowed = {*allow_extensions, *extension_kinds(model).values()}
    try:
        parts = to_tree(_parts_of(start, allowed))
    except ConfigError as error:
        raise ConfigError([f"{where}: model.init_from: {problem}" for problem in error.problems]) from None
    merged = {**parts, **model}
    for name in (name for name in _PARTS if name in model):
        configured, exported = model[name], parts[name]
        if not isinstance(configured, Mapping):
            problems.append(f"model.{name}: got {configured!r}, but the model at model.init_from defines it; remove it")
            continue
        merged[name] = {**exported, **configured}
        problems += [
            f"model.{name}.{key}: got {_short(value)}, but the model at model.init_from has {_short(exported[key])}; "
            "remove it"
            for key, value in configured.items()
            if key in exported and value != exported[key] and (name, key) != _MAY_DIFFER
        ]
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in problems])
    return {**tree, "model": merged}


def llava_start(config: ModelConfig) -> str | None:
    """The folder or hub id at `init_from` if it is a LLaVA of others, without our record; else None."""
    start = config.init_from
    return None if start is None or is_export(start) else start


def check_start(config: ModelConfig, manifest: Manifest) -> list[str]:
    """Problems of the export that a run begins with, and between it and the build with this manifest.

    For a LLaVA folder trainer.model.decoder_tokenizer compares the token ids.
    """
    if config.init_from is None or llava_start(config) is not None:
        return []
    folder = Path(config.init_from)
    try:
        record = read_record(folder)
        checked_files(folder, record)
    except TrainError as error:
        return [f"model.init_from: {error}"]
    before = record.build.tokenizer.fingerprint
    now = manifest.tokenizer.fingerprint
    if before == now:
        return []
    return [
        f"model.init_from: {folder} was trained with the tokenizer {before[:12]}, this build was compiled with "
        f"{now[:12]}; rebuild with tokenizer: {folder}"
    ]


def start_facts(start: str | None) -> dict[str, Any] | None:
    """What a run's checkpoints record of the folder it began with; None if it began with none.

    `record`: the digest of the export's record, or that of a LLaVA folder. `stages`: what was trained before, first
    stage first: step, training, and the build's hash and datasets of each. Raises as `read_record` and `read_llava` do.
    """
    if start is None:
        return None
    if not is_export(start):
        return {"record": read_llava(start).digest, "stages": []}
    folder = Path(start)
    record = read_record(folder)
    data = {"hash": record.build.hash, "datasets": to_json(record.build.datasets)}
    last = {"step": record.step, "training": record.training, "build": data}
    return {"record": file_sha256(folder / RECORD), "stages": [*to_json(record.earlier or ()), last]}


def other_start(start: str | None, recorded: StartFacts | None) -> list[str]:
    """Problems if the folder is not the one that a checkpoint's run began with."""
    if start is None or recorded is None:
        return []
    try:
        digest = file_sha256(Path(start) / RECORD) if is_export(start) else read_llava(start).digest
        is_same = digest == recorded.record
    except (OSError, ConfigError):
        is_same = False
    if is_same:
        return []
    return [
        f"model.init_from: {start} is not the model that the run began with; restore that folder, or give its new "
        "path: model.init_from in training, --init-from of dsvl-train export"
    ]


def start_notes(config: ModelConfig, manifest: Manifest) -> list[str]:
    """A line for each part of the export whose code is another one now, for an export without digests, and for images
    that LLaVA saw otherwise."""
    if config.init_from is None:
        return []
    if (llava := llava_start(config)) is not None:
        image = manifest.config.image
        return list(differing_fit(read_llava(llava), image.fit, image.interpolation))
    folder = Path(config.init_from)
    record = read_record(folder)
    return extension_notes(to_tree(config), record.extensions or {}) + unchecked_note(folder, record)


def _parts_of(start: str, allowed: Collection[str]) -> ModelConfig:
    if not is_export(start):
        return read_llava(start).model
    folder = Path(start)
    record = read_record(folder)
    require_consent(folder, record.model, record.extensions or {}, allowed)
    try:
        return model_config(record.model)
    except ConfigError as error:
        raise unusable(folder, "; ".join(error.problems)) from None


def _short(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
