"""A trained model from a run's checkpoint, its adapters merged, on the CPU.

The rule: the model is built as the run built it, from the checkpoint's own config and the same build; then the
checkpoint's float32 weights are loaded. Adapters are merged into the base weights in float32, here and only once.
Frozen weights must be those that the run had. The ZeRO stage and the number of ranks that wrote the checkpoint do not
matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dst.errors import ConfigError
from shards import Build, ShardError
from shards.format.manifest import BuildFacts
from shards.typed_json import to_json
from trainer.checkpoint.discovery import PLACES, locate
from trainer.checkpoint.init_from import other_start
from trainer.checkpoint.reader import Checkpoint, load_weights
from trainer.config.extensions import extension_notes, require_consent
from trainer.config.run import TrainConfig, config_from
from trainer.model.build_model import check_model
from trainer.model.lora import merge_lora
from trainer.model.vision_chat import VisionChatModel
from trainer.training.assemble import assemble
from trainer.training.open_build import open_build
from trainer.training.preflight import check_config_fits_build


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """A checkpoint whose config fits its build; no weights are loaded."""

    checkpoint: Checkpoint
    config: TrainConfig
    build: Build
    facts: BuildFacts
    """Of the build, without branches: chat and export know nothing of them"""
    stages: list[dict[str, Any]]
    """What was trained before, see trainer.checkpoint.init_from"""
    notes: tuple[str, ...]
    """A line for each part whose code is another one now, and one for a checkpoint without digests"""

    @property
    def extensions(self) -> dict[str, dict[str, Any]]:
        """Part -> the code that it was trained with, as an export's record has it."""
        return {part: dataclasses.asdict(extension) for part, extension in self.checkpoint.extensions.items()}


def open_run(
    location: Path, *, build: str | None = None, init_from: str | None = None, allow_extensions: Collection[str] = ()
) -> OpenedRun:
    """A checkpoint (see trainer.checkpoint.discovery.locate) with its config and build.

    build, init_from: the paths of its build and of the export that the run began with, if they were moved.
    allow_extensions: encoders and projectors of other packages that the checkpoint may name. Raises ConfigError or
    TrainError if the checkpoint or its build are missing, damaged or changed, or if the checkpoint names other
    extensions.
    """
    folder = locate(location)
    if folder is None:
        raise ConfigError([f"{location}: no checkpoint there; expected {PLACES}"])
    checkpoint = Checkpoint(folder)
    checkpoint.check_listed()
    require_consent(folder, checkpoint.config.get("model"), checkpoint.extensions, allow_extensions)
    notes = extension_notes(checkpoint.config.get("model"), checkpoint.extensions, f"{folder}: ")
    config = config_from(checkpoint.config, str(checkpoint.folder))
    if build is not None:
        config = dataclasses.replace(config, build=build)
    if init_from is not None:
        if config.model.init_from is None:
            raise ConfigError([f"--init-from: the run of {checkpoint.folder} began with no export; remove it"])
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, init_from=init_from))
    start_facts = checkpoint.content.init_from
    try:
        opened = open_build(config)
    except ShardError as error:
        raise ConfigError([f"build: {error}; if it was moved, give its new path with --build"]) from None
    if opened.manifest.hash != checkpoint.manifest_hash:
        raise ConfigError(
            [
                f"{config.build}: its manifest is {opened.manifest.hash[:12]}, the checkpoint {checkpoint.folder} was "
                f"made with {checkpoint.manifest_hash[:12]}; give the folder of that build with --build"
            ]
        )
    problems = check_config_fits_build(config, opened.manifest)
    problems += other_start(config.model.init_from, start_facts)
    # An evaluation prepares for branches of the build that it measures on.
    facts = dataclasses.replace(opened.manifest.facts(), has_branches=None)
    problems += check_model(config.model, facts)
    if problems:
        raise ConfigError(problems)
    return OpenedRun(
        checkpoint=checkpoint,
        config=config,
        build=opened,
        facts=facts,
        stages=to_json(start_facts.stages) if start_facts else [],
        notes=(*checkpoint.notes, *notes),
    )


def restore(run: OpenedRun) -> VisionChatModel:
    """The merged float32 model, frozen and in evaluation mode.

    Raises ConfigError or TrainError if the base weights are missing, damaged or changed, or the checkpoint is damaged.
    """
    model = assemble(for_this_machine(run.config), run.facts).model.float()
    load_weights(model, run.checkpoint)
    merge_lora(model)
    return model.eval().requires_grad_(False)


def for_this_machine(config: TrainConfig) -> TrainConfig:
    """Without settings that only change speed or memory, since they may need a GPU."""
    decoder = config.model.decoder
    decoder = dataclasses.replace(decoder, attn_implementation=decoder.portable_attn_implementation)
    model = dataclasses.replace(config.model, decoder=decoder)
    lora = dataclasses.replace(config.lora, quantize_decoder=None)
    return dataclasses.replace(config, model=model, lora=lora, gradient_checkpointing=False)
