"""A run that begins with an exported model: its second stage, on other data, with other parts trained.

The rule: the folder that `model.start` names says what encoder, projector and decoder are, and holds all their weights;
ids, and so the tokenizer, must be the same. The config that a run keeps has the parts in full, so it says all by itself
what was trained; the folder is needed again for the weights that did not learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dst.errors import ConfigError
from trainer.export_record import check_files, read_record, unusable
from trainer.model_config import ModelConfig


def with_start(tree: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A config's tree with the parts of the model that `model.start` names, if it names one.

    Raises ConfigError, its problems beginning with `where`, if there is no such folder, or parts stand beside it;
    TrainError if the folder is damaged.
    """
    model = tree.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("start"), str):
        return tree
    given = dict(model)
    folder, attention, decoder = Path(given.pop("start")), given.pop("attention", None), given.get("decoder")
    kernel = {}
    if isinstance(decoder, Mapping) and decoder.keys() <= {"kernel"}:
        kernel = given.pop("decoder")
    problems = [f"model.{name}: is what model.start says it is; leave one of them away" for name in given]
    try:
        record = read_record(folder)
    except ConfigError as error:
        problems += [f"model.start: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in problems])
    try:
        parts = {**record["model"], "decoder": {**record["model"]["decoder"], **kernel}}
    except (KeyError, TypeError, ValueError) as error:
        raise unusable(folder, f"{type(error).__name__}: {error}") from None
    changed = {"attention": attention} if attention is not None else {}
    return {**tree, "model": {**parts, **changed, "start": str(folder)}}


def check_start(config: ModelConfig, content: Mapping[str, Any]) -> list[str]:
    """Problems between the model that a run begins with and its build. Raises TrainError for a damaged folder."""
    if config.start is None:
        return []
    folder = Path(config.start)
    record = read_record(folder)
    try:
        check_files(folder, record["files"])
        was = str(record["build"]["content"]["tokenizer"]["fingerprint"])
    except (KeyError, TypeError, AttributeError) as error:
        raise unusable(folder, f"{type(error).__name__}: {error}") from None
    now = str(content["tokenizer"].get("fingerprint"))
    if was == now:
        return []
    return [
        f"model.start: {folder} was trained with the tokenizer {was[:12]}, this build was compiled with {now[:12]}; "
        f"rebuild with tokenizer: {folder}"
    ]


def stages(start: str | None) -> list[dict[str, Any]]:
    """What was trained before, first stage first: step, training, build's hash and datasets of each.

    Raises as `read_record` does.
    """
    if start is None:
        return []
    record = read_record(Path(start))
    try:
        build = record["build"]
        last = {"hash": build["hash"], "datasets": build["content"]["datasets"]}
        return [*record.get("earlier", ()), {"step": record["step"], "training": record["training"], "build": last}]
    except (KeyError, TypeError) as error:
        raise unusable(Path(start), f"{type(error).__name__}: {error}") from None
