"""Whether a model can be evaluated on a build, checked before anything is measured or generated."""

from __future__ import annotations

from dataclasses import fields

from dst.errors import ConfigError
from shards import Manifest
from shards.images.geometry import Geometry
from trainer.evaluation.held_out import SPLIT
from trainer.inference.conversation import Speaker
from trainer.inference.generate import position_limit
from trainer.model.decoder import attention_window


def check_model_fits_build(speaker: Speaker, manifest: Manifest) -> list[str]:
    """Why a model cannot be evaluated on the build with this manifest, one line each."""
    problems = []
    tokenizer, template = speaker.chat_tokenizer.tokenizer, speaker.chat_tokenizer.template
    of_build, of_model = manifest.tokenizer.fingerprint, tokenizer.fingerprint
    if of_build != of_model:
        problems.append(
            f"tokenizer: this build's is {of_build[:12]} but the model's is {of_model[:12]}; rebuild with the "
            "tokenizer folder of the model's own build"
        )
    if manifest.template != template.source:
        problems.append(
            f"template: this build was compiled with {manifest.config.template}, whose text is not that "
            "of the model's; rebuild with the model's template"
        )
    tiled = speaker.geometry.tiles is not None and manifest.config.image.tiles is not None
    names = [field.name for field in fields(Geometry) if tiled or field.name not in ("grid", "tiles_multi")]
    for name in (name for name in names if name != "max_pixels"):
        expected, got = getattr(speaker.geometry, name), getattr(manifest.config.image, name)
        if name == "tiles":
            expected, got = expected or 1, got or 1
        if got != expected:
            problems.append(
                f"image.{name}: this build's is {got} but the model was made for {expected}; rebuild with image: "
                f"{{{name}: {expected}}}"
            )
    build_tokens, model_tokens = manifest.config.image_tokens, speaker.model.image_tokens
    if build_tokens != model_tokens:
        problems.append(
            f"image_tokens: this build has {build_tokens} but the model makes {model_tokens} per image; rebuild with "
            f"image_tokens: {model_tokens}"
        )
    limit, longest = position_limit(speaker.model), manifest.config.limits.max_length
    if limit is not None and longest > limit:
        problems.append(
            f"limits.max_length: this build has samples of up to {longest} positions but the model reads at most "
            f"{limit}; rebuild with limits: {{max_length: {limit}}}"
        )
    if not manifest.has_samples(SPLIT):
        problems.append("this build has no held-out samples; rebuild with split: {eval: 0.01}")
    return problems


def prepare_for_loss(speaker: Speaker, manifest: Manifest) -> list[str]:
    """Let the model attend to held-out samples with branches, if there are any; returns why it cannot, one line each.

    Questions need no such model: each is asked by itself.
    """
    if not any(dataset.shards[SPLIT].has_branches for dataset in manifest.datasets.values()):
        return []
    window, longest = attention_window(speaker.model.decoder.config), manifest.config.limits.max_length
    if window is not None and longest > window:
        return [
            f"share: this build has samples with branches of up to {longest} positions, but branches are not defined "
            f"for the sliding windows of the model's decoder, which are {window}; rebuild without share, or with "
            f"limits: {{max_length: {window}}}, or measure no loss, with --no-loss"
        ]
    try:
        speaker.model.expect_branches()
    except ConfigError as error:
        return [f"{problem}, or measure no loss, with --no-loss" for problem in error.problems]
    return []
