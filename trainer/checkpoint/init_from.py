"""A run that begins with an exported model: its second stage, on other data, with other parts trained.

The rule: the folder that `model.init_from` names defines encoder, projector and decoder, and has all their weights;
token ids, and so the tokenizer, must be the same. The config that a run saves has the parts in full. Its checkpoints
record which export that was, and what was trained before; the folder may move, but no other may take its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dst.errors import ConfigError
from shards import Manifest
from shards.files import file_sha256
from shards.typed_json import to_json
from trainer.config.model import ModelConfig
from trainer.config.run import to_tree
from trainer.errors import TrainError
from trainer.model_io.record import RECORD, build_facts, check_files, model_config, read_record, unusable

_PARTS = ("encoder", "projector", "decoder")
_FREE = ("decoder", "attn_implementation")
"""The one key of a part that may differ"""


def with_start(tree: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A config's tree with the parts of the model that `model.init_from` names, if it names one.

    Raises ConfigError, its problems beginning with `where`, if there is no such folder, or the config says otherwise;
    TrainError if the folder is damaged.
    """
    model = tree.get("model")
    if not isinstance(model, Mapping) or model.get("init_from") is None:
        return tree
    start, problems = model["init_from"], []
    if not isinstance(start, str) or not start:
        raise ConfigError([f"{where}: model.init_from: got {start!r}; wanted a folder that dsvl-train export wrote"])
    try:
        parts = to_tree(_parts_of(Path(start)))
    except ConfigError as error:
        raise ConfigError([f"{where}: model.init_from: {problem}" for problem in error.problems]) from None
    both = {**parts, **model}
    for name in (name for name in _PARTS if name in model):
        given, said = model[name], parts[name]
        if not isinstance(given, Mapping):
            problems.append(f"model.{name}: got {given!r}, but model.init_from says what it is; leave it away")
            continue
        both[name] = {**said, **given}
        problems += [
            f"model.{name}.{key}: got {_short(value)}, but model.init_from says {_short(said[key])}; leave it away"
            for key, value in given.items()
            if key in said and value != said[key] and (name, key) != _FREE
        ]
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in problems])
    return {**tree, "model": both}


def check_start(config: ModelConfig, manifest: Manifest) -> list[str]:
    """Problems of the folder that a run begins with, and between it and the build."""
    if config.init_from is None:
        return []
    folder = Path(config.init_from)
    try:
        record = read_record(folder)
        try:
            check_files(folder, record["files"])
            was = build_facts(folder, record).tokenizer.fingerprint
        except (KeyError, TypeError, AttributeError) as error:
            raise unusable(folder, f"{type(error).__name__}: {error}") from None
    except TrainError as error:
        return [f"model.init_from: {error}"]
    now = manifest.tokenizer.fingerprint
    if was == now:
        return []
    return [
        f"model.init_from: {folder} was trained with the tokenizer {was[:12]}, this build was compiled with "
        f"{now[:12]}; rebuild with tokenizer: {folder}"
    ]


def begun_with(start: str | None) -> dict[str, Any] | None:
    """What a run's checkpoints keep of the export: the digest of its record, and what was trained before.

    `stages`: first one first; step, training, and the build's hash and datasets of each. Raises as `read_record` does.
    """
    if start is None:
        return None
    folder = Path(start)
    record = read_record(folder)
    try:
        facts = build_facts(folder, record)
        data = {"hash": facts.hash, "datasets": to_json(facts.datasets)}
        last = {"step": record["step"], "training": record["training"], "build": data}
        return {"record": file_sha256(folder / RECORD), "stages": [*record.get("earlier", ()), last]}
    except (KeyError, TypeError) as error:
        raise unusable(folder, f"{type(error).__name__}: {error}") from None


def other_start(start: str | None, kept: Mapping[str, Any] | None) -> list[str]:
    """Problems if the folder is not the export that a checkpoint's run began with."""
    if start is None or kept is None:
        return []
    try:
        same = file_sha256(Path(start) / RECORD) == kept["record"]
    except OSError:
        same = False
    if same:
        return []
    return [
        f"model.init_from: {start} is not the export that the run began with; put that back, or say where it lies now: "
        "model.init_from in training, --init-from of dsvl-train export"
    ]


def _parts_of(folder: Path) -> ModelConfig:
    record = read_record(folder)
    try:
        return model_config(record)
    except KeyError as error:
        raise unusable(folder, f"KeyError: {error}") from None
    except ConfigError as error:
        raise unusable(folder, "; ".join(error.problems)) from None


def _short(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
