"""Runs with adapters of every kind: the same losses at every ZeRO stage, and exports that compute what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import shards
import trainer
from tests.support import train_runs
from tests.support.oracles_training import plain_losses
from trainer.checkpoint.reader import Checkpoint, load_weights
from trainer.config.run import load_config
from trainer.export.export import export
from trainer.training.assemble import assemble

STEPS = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "dora": {"dora": True, "init": "orthogonal"},
    "saved": {"rslora": True, "init": "gaussian", "modules_to_save": ["lm_head", "model.layers.1.mlp"]},
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.compiled(tmp_path_factory.mktemp("run"))


def config_of(folder: Path, build: Path, options: str, **settings: Any) -> Path:
    """A run of a decoder with a tied head."""
    return train_runs.config_file(
        folder,
        build,
        model={"decoder": {"preset": "tiny_qwen2"}, "attention": "causal"},
        learning_rates={"embeddings": None, "decoder": None, "lora": 1e-2},
        lora={"decoder": {"rank": 4, **OPTIONS[options]}},
        schedule={"steps": STEPS},
        checkpoints={"every": 2},
        **settings,
    )


@pytest.fixture(scope="module")
def plain(build: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The losses of a plain loop, without DeepSpeed."""
    losses = {}
    for options in OPTIONS:
        folder = tmp_path_factory.mktemp(options)
        train_runs.in_process(plain_losses, str(config_of(folder, build, options)), str(folder / "losses.json"))
        losses[options] = [loss for loss, _ in json.loads((folder / "losses.json").read_text())]
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_two_ranks_of_every_stage_train_and_resume_as_a_plain_loop_does(
    options: str, stage: int, build: Path, plain: dict[str, list[float]], tmp_path: Path
) -> None:
    config = config_of(tmp_path, build, options, zero={"stage": stage, "param_persistence_threshold": 0})
    train_runs.train(config, "schedule.steps=4", ranks=2)
    out = tmp_path / "out"
    assert train_runs.losses(out) == pytest.approx(plain[options], rel=1e-4)
    (out / "checkpoints/latest").write_text("step-00000002\n")
    train_runs.train(config, f"checkpoints.resume={out / 'checkpoints/step-00000002'}")
    assert train_runs.losses(out) == pytest.approx(plain[options], rel=1e-4)

    model = assemble(loaded := load_config(config), shards.open(loaded.build).manifest.facts()).model
    load_weights(model, Checkpoint(out / "checkpoints/step-00000004"))
    export(out, tmp_path / "exported")
    merged = trainer.load(tmp_path / "exported").model
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        embedded = model.decoder.get_input_embeddings()(ids)
        positions = torch.arange(20)[None]
        expected, actual = (
            each.decoder(inputs_embeds=embedded, position_ids=positions, use_cache=False).logits
            for each in (model.eval(), merged)
        )
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    head, table = merged.decoder.get_output_embeddings().weight, merged.decoder.get_input_embeddings().weight
    assert head is table
