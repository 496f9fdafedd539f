"""Open the build of a run and hold the whole config against it, before any weights are loaded."""

from __future__ import annotations

import shards
from dst.errors import ConfigError
from shards import Build
from trainer.config import TrainConfig, check_build, check_ranks


def checked_build(config: TrainConfig, world_size: int | None, *, loads_model: bool) -> Build:
    """The build that the config names. Raises ConfigError with all problems, or ShardError if there is no build.

    world_size: None if it is not known. loads_model: False for a process that only starts others. Those check the
    model too, so that this one imports nothing heavy for it unless there is something to report already.
    """
    build = shards.open(config.build)
    content = build.manifest.content
    problems = check_build(config, content, build.manifest.hash)
    if world_size is not None:
        problems += check_ranks(config, world_size)
    if loads_model or problems:
        from trainer.torchvision_operators import declare_operators

        declare_operators()
        from trainer.model import check_model

        problems += check_model(config.model, content)
    if problems:
        raise ConfigError(problems)
    return build
