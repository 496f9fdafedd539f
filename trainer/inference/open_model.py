"""Opening a model for chat or evaluation: an exported folder, a run's folder, or one of its checkpoints.

Rule: the model of a run or checkpoint equals its export in the run's precision.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from dst import ChatTokenizer, Template, load_tokenizer
from dst.errors import ConfigError
from shards import Build
from trainer.checkpoint.discovery import PLACES, locate
from trainer.checkpoint.reader import Checkpoint
from trainer.model_io.load import DTYPES, Loaded, load_model
from trainer.model_io.record import RECORD
from trainer.training.restore import open_run, restore


def open_model(
    location: Path, *, build: str | None = None, allow_extensions: Collection[str] = (), device: str | None = None
) -> tuple[Loaded, Build | None]:
    """The model, and the build that a run was trained on; None for an exported model.

    build: the path of that build, if it was moved. allow_extensions: encoders and projectors of other packages that the
    model may name. device: default: the GPU if there is one. Raises ConfigError, ShardError or TrainError.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if (location / RECORD).is_file():
        if build is not None:
            raise ConfigError([f"--build: {location} is an exported model, which needs no build; remove the option"])
        return load_model(location, device=chosen, allow_extensions=allow_extensions), None
    if locate(location) is None:
        raise ConfigError([f"{location}: {_missing(location)}"])
    run = open_run(location, build=build, allow_extensions=allow_extensions)
    manifest = run.build.manifest
    template = Template(manifest.config.template, manifest.template)
    return (
        Loaded(
            model=restore(run).to(chosen, DTYPES[run.config.precision]),
            chat_tokenizer=ChatTokenizer(template, load_tokenizer(run.build.tokenizer_folder())),
            geometry=manifest.config.image,
            facts=manifest.facts(),
            step=run.checkpoint.step,
            folder=run.checkpoint.folder,
            notes=run.notes,
        ),
        run.build,
    )


def _missing(location: Path) -> str:
    """What a folder without a model of this program is, and what to do."""
    if (location / "adapter_config.json").is_file():
        return (
            "is an adapter, whose weights are without those that it adapts; export the run without --adapter, which "
            "merges them, or give the run's folder"
        )
    if (location / "config.json").is_file():
        return (
            f"no model there that was trained here ({RECORD} is missing); a LLaVA of transformers is one after a run "
            "that begins with it: model.init_from"
        )
    return f"no model there; expected a folder that dsvl-train export wrote, {PLACES}"


def was_trained_on(location: Path, build: Build) -> bool:
    """Whether `location` is a run or a checkpoint, and the run was trained on this build."""
    folder = None if (location / RECORD).is_file() else locate(location)
    return folder is not None and Checkpoint(folder).manifest_hash == build.manifest.hash
