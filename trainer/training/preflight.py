"""Open the build of a run and hold the whole config against it, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import shards
from dst.errors import ConfigError, TemplateError
from dst.template import load_template
from shards import Build, Manifest, ShardError
from trainer.checkpoint.init_from import check_start, with_start
from trainer.config.run import TrainConfig, check_ranks, config_from, read_tree, row_length


def prepare(
    path: Path, settings: Sequence[str], world_size: int | None, *, loads_model: bool
) -> tuple[TrainConfig, Build]:
    """A run's config and its build. Raises ConfigError with all problems, or ShardError if only the build is missing.

    world_size: None if it is not known. loads_model: False for a process that only starts others. Those check the
    model too, so that this one imports nothing heavy for it unless there is something to report already.
    """
    tree = read_tree(path, settings)
    try:
        config = config_from(with_start(tree, path.name), path.name)
    except ConfigError as error:
        raise ConfigError([*error.problems, *_missing(tree.get("build"))]) from None
    build = shards.open(config.build)
    problems = _check(config, build, world_size, loads_model=loads_model)
    if problems:
        raise ConfigError(problems)
    return config, build


def check_config_fits_build(config: TrainConfig, manifest: Manifest) -> list[str]:
    """Problems between the config and a build's manifest."""
    problems = []
    expect = config.expect
    if expect.template is not None:
        problems += _check_template(expect.template, manifest)
    for name, wanted, got in (
        ("tokenizer", expect.tokenizer, manifest.tokenizer.fingerprint),
        ("manifest", expect.manifest, manifest.hash),
    ):
        if wanted is not None and (not wanted or not got.startswith(wanted)):
            problems.append(
                f"expect.{name}: is {wanted!r} but the build has {got[:12]}; choose the right build, or rebuild"
            )
    sides = manifest.config.image.size
    if expect.image_size is not None and expect.image_size != sides:
        problems.append(
            f"expect.image_size: is {expect.image_size} but this build's pictures have {sides}; rebuild with "
            f"image: {{size: {expect.image_size}}}, or choose another encoder"
        )
    if config.evaluation.every and not manifest.has_samples("eval"):
        problems.append(
            "evaluation.every: this build has no held-out samples; rebuild with split: {eval: 0.01}, or set it to 0"
        )
    return problems


def _missing(location: object) -> list[str]:
    """What is wrong with the place of the build, where the rest of the config is not worth looking at yet."""
    try:
        if isinstance(location, str):
            shards.open(location)
    except ShardError as error:
        return [f"build: {error}"]
    return []


def _check(config: TrainConfig, build: Build, world_size: int | None, *, loads_model: bool) -> list[str]:
    manifest = build.manifest
    problems = check_config_fits_build(config, manifest)
    problems += check_start(config.model, manifest)
    problems += check_rows(config, build)
    if world_size is not None:
        problems += check_ranks(config, world_size)
    if loads_model or problems:
        from trainer.model.decoder_tokenizer import check_tokenizer
        from trainer.model.vision_chat import check_model

        problems += check_model(config.model, manifest.facts())
        problems += check_tokenizer(config.model.decoder, build.tokenizer_folder())
    return problems


def check_rows(config: TrainConfig, build: Build) -> list[str]:
    """Samples that no row can hold; where rows are at least what the build's limits allow, nothing is looked at."""
    limits, rows = build.manifest.config.limits, config.batch
    length = row_length(config, build.manifest)
    if length >= limits.max_length and (rows.max_images is None or rows.max_images >= limits.max_images):
        return []
    from shards.loader import Loader

    problems = []
    for split in ("train", "eval") if config.evaluation.every else ("train",):
        try:
            if len(build[split]):
                Loader(build, split=split, batch_size=1, max_length=length, max_images=rows.max_images, decode="none")
        except ShardError as error:
            problems.append(f"batch.max_length, batch.max_images: {error}")
    return problems


def _check_template(name: str, manifest: Manifest) -> list[str]:
    try:
        source = load_template(name, manifest.config.variables or None).source
    except TemplateError as error:
        return [f"expect.template: {error}"]
    if source == manifest.template:
        return []
    return [
        f"expect.template: is {name} but this build was compiled with {manifest.config.template} (or with another "
        "text of it); rebuild with that template, or change expect.template"
    ]
