"""Whether a run may resume from a checkpoint: what of the config must match, and what may differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.checkpoint.init_from import other_start
from trainer.checkpoint.reader import Checkpoint
from trainer.config.run import config_from, to_tree

_IGNORED = ("build", "out", "expect", "distributed", "checkpoints", "logging", "evaluation")
"""Sections of the config that no optimizer step depends on"""
_MUST_MATCH = ("model", "learning_rates", "lora", "seed")
"""Sections in which each difference is a problem, but for the two sets below. All other sections may differ."""
_LEARNING_RATES = {
    f"learning_rates.{component}" for component in ("encoder", "projector", "embeddings", "decoder", "lora")
}
"""May differ, as long as the same parameters are trained"""
_MAY_DIFFER = {"model.decoder.attn_implementation", "model.init_from"}
"""A choice of speed, and the path of the export that the run began with, see trainer.checkpoint.init_from"""


def resume_problems(checkpoint: Checkpoint, config: Mapping[str, Any], manifest_hash: str) -> list[str]:
    """What of this run differs from the run that wrote the checkpoint and must not, one line each.

    config: the run's, as trainer.config.run.to_tree makes it. manifest_hash: of the run's build.
    """
    problems = []
    recorded = _with_defaults(checkpoint)
    for section in _MUST_MATCH:
        for path, before, now in _differences(recorded.get(section), config.get(section), section):
            if path in _LEARNING_RATES | _MAY_DIFFER and before is not None and now is not None:
                continue
            problems.append(
                f"{path}: is {now!r}, the checkpoint {checkpoint.folder} was made with {before!r}; set it back, or "
                "start a new run with another `out`"
            )
    problems += other_start(config["model"]["init_from"], checkpoint.content.init_from)
    if manifest_hash != checkpoint.manifest_hash:
        problems.append(
            f"build: its manifest is {manifest_hash[:12]}, the checkpoint {checkpoint.folder} was made with "
            f"{checkpoint.manifest_hash[:12]}; resume with that build, or start a new run with another `out`"
        )
    return problems


def changed_settings(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """What of a run's config differs from the checkpoint's and changes its steps: `batch.global_batch_size 4 to 8`."""
    recorded = _with_defaults(checkpoint)
    sections = [name for name in config if name not in _IGNORED]
    differences = (
        difference for name in sections for difference in _differences(recorded.get(name), config[name], name)
    )
    return [f"{path} {before!r} to {now!r}" for path, before, now in differences if path not in _MAY_DIFFER]


def _with_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's config; settings that are newer than the checkpoint have their defaults."""
    return to_tree(config_from(checkpoint.config, str(checkpoint.folder)))


def _differences(before: object, now: object, path: str) -> Iterator[tuple[str, object, object]]:
    """(dotted path, value before, value now) of each leaf that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}")
    elif before != now:
        yield path, before, now
