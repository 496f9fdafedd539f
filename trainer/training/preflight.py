"""Open a run's build and check the whole config against it, before any weights are loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import shards
from dst.errors import ConfigError, TemplateError
from dst.template import load_template
from shards import Build, Manifest, ShardError
from trainer.checkpoint.init_from import check_start, llava_start, with_start
from trainer.config.run import TrainConfig, check_ranks, config_from, read_tree, sequence_length
from trainer.training.open_build import open_build

QLORA = "bitsandbytes"
"""What quantizes a decoder; whether it is installed is seen without importing torch"""


def prepare(
    path: Path,
    settings: Sequence[str],
    world_size: int,
    *,
    loads_model: bool,
    allow_extensions: Collection[str] = (),
    before_torch: Callable[[], None] = lambda: None,
) -> tuple[TrainConfig, Build]:
    """A run's config and its build. Raises ConfigError with all problems, or ShardError if only the build is missing.

    What the file and the build's manifest show is raised first, all of it, since importing torch takes seconds; then
    `before_torch` is called, and model, tokenizer and sequences are checked.

    loads_model: False for a process that only launches others, which check the model
    themselves. allow_extensions: those that an export at model.init_from may name; the file itself may name any.
    """
    tree = read_tree(path, settings)
    try:
        config = config_from(with_start(tree, path.name, allow_extensions), path.name)
    except ConfigError as error:
        raise ConfigError([*error.problems, *_build_problems(tree.get("build"))]) from None
    indivisible = check_ranks(config, world_size)
    if indivisible and (absent := _build_problems(config.build)):
        raise ConfigError([*indivisible, *absent])
    build = open_build(config)
    problems = check_config_fits_build(config, build.manifest)
    problems += check_start(config.model, build.manifest)
    problems += indivisible
    if config.lora.quantize_decoder is not None and importlib.util.find_spec(QLORA) is None:
        problems.append(f"lora.quantize_decoder: needs the package {QLORA}; pip install 'dsvl[qlora]'")
    if problems:
        raise ConfigError(problems)
    before_torch()
    if problems := _model_problems(config, build, loads_model=loads_model):
        raise ConfigError(problems)
    return config, build


def check_config_fits_build(config: TrainConfig, manifest: Manifest) -> list[str]:
    """Problems between the config and a build's manifest."""
    problems = []
    expect = config.expect
    if expect.template is not None:
        problems += _check_template(expect.template, manifest)
    for name, expected, got in (
        ("tokenizer", expect.tokenizer, manifest.tokenizer.fingerprint),
        ("manifest", expect.manifest, manifest.hash),
    ):
        if expected is not None and (not expected or not got.startswith(expected)):
            problems.append(
                f"expect.{name}: is {expected!r} but the build has {got[:12]}; choose the right build, or rebuild"
            )
    side = manifest.config.image.size
    if expect.image_size is not None and expect.image_size != side:
        problems.append(
            f"expect.image_size: is {expect.image_size} but this build's images have {side}; rebuild with "
            f"image: {{size: {expect.image_size}}}, or choose another encoder"
        )
    if not manifest.has_samples("train"):
        problems.append(
            "build: this build has no train samples, only held-out ones; train on another build, and measure on this "
            "one with dsvl-train eval --build"
        )
    if config.evaluation.every and not manifest.has_samples("eval"):
        problems.append(
            "evaluation.every: this build has no held-out samples; rebuild with split: {eval: 0.01}, or set it to 0"
        )
    return problems


def _build_problems(location: object) -> list[str]:
    """Why there is no build at this location; for a config that cannot be checked further."""
    try:
        if isinstance(location, str):
            shards.open(location)
    except ShardError as error:
        return [f"build: {error}"]
    return []


def _model_problems(config: TrainConfig, build: Build, *, loads_model: bool) -> list[str]:
    problems = check_sequences(config, build)
    if loads_model or problems:
        from trainer.model.build_model import check_model
        from trainer.model.decoder_tokenizer import check_tokenizer

        problems += check_model(config.model, build.manifest.facts())
        problems += check_tokenizer(config.model.decoder, build.tokenizer_folder(), llava=llava_start(config.model))
    return problems


def check_sequences(config: TrainConfig, build: Build) -> list[str]:
    """Problems of samples that no sequence can hold. Nothing is read if they hold all that the build's limits allow."""
    limits, batch = build.manifest.config.limits, config.batch
    length, most = sequence_length(config, build.manifest), build.manifest.most_per_sample
    if length >= limits.max_length and (batch.max_images is None or (most is not None and batch.max_images >= most)):
        return []
    from shards.loader import Loader

    problems = []
    for split in ("train", "eval") if config.evaluation.every else ("train",):
        try:
            if len(build[split]):
                Loader(build, split=split, batch_size=1, max_length=length, max_images=batch.max_images, decode="none")
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
