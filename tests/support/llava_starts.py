"""Runs that begin with a LLaVA folder, up to their first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dst.errors import ConfigError
from shards import Build
from tests.support import exports
from tests.support.llava_folders import write_llava
from trainer.config.run import TrainConfig
from trainer.model.vision_chat import VisionChatModel
from trainer.training.assemble import assemble
from trainer.training.preflight import prepare


def config_file(folder: Path, build: Build, start: Path | str, **settings: Any) -> Path:
    tree = {
        "build": build.store.location,
        "out": str(folder / "out"),
        "precision": "fp32",
        "model": {"init_from": str(start), **settings.pop("model", {})},
        "learning_rates": {"projector": 1e-3},
        "batch": {"global_batch_size": 2, "micro_batch_size": 1, "workers": 0},
        "schedule": {"steps": 2, "kind": "constant"},
        "logging": {"every": 1, "tensorboard": False},
        "checkpoints": {"every": 1},
        **settings,
    }
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "train.yaml"


def started(folder: Path, build: Build, start: Path | str, **settings: Any) -> tuple[TrainConfig, VisionChatModel]:
    config, opened = prepare(config_file(folder, build, start, **settings), (), 1, loads_model=True)
    return config, assemble(config, opened.manifest.facts()).model.eval()


def refusal(folder: Path, build: Build, start: Path | str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(config_file(folder, build, start, **settings), (), 1, loads_model=True)
    (problem,) = caught.value.problems
    return problem


def edited(start: Path, file: str = "config.json", **settings: Any) -> Path:
    """The folder, after a change of one of its files; None removes a key."""
    tree = {**json.loads((start / file).read_text()), **settings}
    kept = {key: value for key, value in tree.items() if value is not None}
    (start / file).write_text(json.dumps(kept), encoding="utf-8")
    return start


def llava(build_of: exports.MakeBuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixture: a folder that a run can begin with."""
    folder = tmp_path_factory.mktemp("llava") / "llava-tiny-hf"
    write_llava(folder, build_of())
    return folder
