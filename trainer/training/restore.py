"""A trained model from a run's checkpoint, its adapters merged, on the CPU.

The rule: the model is built as the run built it, from the checkpoint's own config and the same build, and then holds
the checkpoint's float32 weights. Adapters are added to the base weights in float32, once, here; what is frozen is what
the run trained beside. Which ZeRO stage or how many ranks wrote the checkpoint does not matter.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shards
from dst.errors import ConfigError
from shards import Build, ShardError
from trainer.checkpoint import reader as checkpoints
from trainer.checkpoint.init_from import other_start
from trainer.checkpoint.reader import Checkpoint
from trainer.config.run import TrainConfig, config_from
from trainer.model.lora import merge_lora
from trainer.model.vision_chat import VisionChatModel, check_model
from trainer.training.assemble import assemble
from trainer.training.preflight import check_config_fits_build


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A merged float32 model in evaluation mode, and what it was trained with."""

    model: VisionChatModel
    config: TrainConfig
    build: Build
    step: int
    folder: Path
    """Of the checkpoint"""
    stages: list[dict[str, Any]]
    """What was trained before, see trainer.checkpoint.init_from"""


def restore(location: Path, *, build: str | None = None, init_from: str | None = None) -> Restored:
    """The model of a checkpoint (see trainer.checkpoint.reader.locate).

    build, init_from: where its build, and the export that it was initialised from, are now, if they were moved. Raises
    ConfigError or TrainError if the checkpoint, its build or the base weights are missing.
    """
    folder = checkpoints.locate(location)
    if folder is None:
        raise ConfigError([f"{location}: no checkpoint there; wanted {checkpoints.PLACES}"])
    checkpoint = Checkpoint(folder)
    config = config_from(checkpoint.config, str(checkpoint.folder))
    if build is not None:
        config = dataclasses.replace(config, build=build)
    if init_from is not None:
        if config.model.init_from is None:
            raise ConfigError([f"--init-from: the run of {checkpoint.folder} began with no export; leave it away"])
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, init_from=init_from))
    begun = checkpoint.content.get("init_from")
    try:
        opened = shards.open(config.build)
    except ShardError as error:
        raise ConfigError([f"build: {error}; if it was moved, give its place with --build"]) from None
    if opened.manifest.hash != checkpoint.manifest:
        raise ConfigError(
            [
                f"{config.build}: its manifest is {opened.manifest.hash[:12]}, the checkpoint {checkpoint.folder} was "
                f"made with {checkpoint.manifest[:12]}; give the folder of that build with --build"
            ]
        )
    problems = check_config_fits_build(config, opened.manifest)
    problems += other_start(config.model.init_from, begun)
    problems += check_model(config.model, opened.manifest.facts())
    if problems:
        raise ConfigError(problems)
    model = assemble(_for_this_machine(config), opened.manifest.facts()).model.float()
    checkpoints.load_weights(model, checkpoint)
    merge_lora(model)
    return Restored(
        model=model.eval().requires_grad_(False),
        config=config,
        build=opened,
        step=checkpoint.step,
        folder=checkpoint.folder,
        stages=begun["stages"] if begun else [],
    )


def _for_this_machine(config: TrainConfig) -> TrainConfig:
    """Without what only speeds up or saves memory, which may need a GPU."""
    decoder = config.model.decoder
    decoder = dataclasses.replace(decoder, attn_implementation=decoder.portable_attn_implementation)
    model = dataclasses.replace(config.model, decoder=decoder)
    return dataclasses.replace(config, model=model, gradient_checkpointing=False)
