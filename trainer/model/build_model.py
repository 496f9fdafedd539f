"""From a configuration to a model: whether it fits a build, its construction, and a configuration without paths."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import torch

from dst.errors import ConfigError
from shards.format.manifest import BuildFacts
from trainer.config.kinds import PROJECTOR_KINDS
from trainer.config.model import ModelConfig, check_model_values
from trainer.model.decoder import RenamedWeights, attention_window, build_decoder, load_hf_config, max_positions
from trainer.model.decoder_checks import check_decoder
from trainer.model.decoder_protocol import CausalDecoder
from trainer.model.encoders.registry import build_encoder, encoder_function
from trainer.model.projectors import build_projector, projector_function
from trainer.model.vision_chat import VisionChatModel


def build_model(
    config: ModelConfig,
    facts: BuildFacts,
    *,
    weights: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    renamed: RenamedWeights | None = None,
    lazy_decoder: bool = False,
) -> VisionChatModel:
    """The model for the build with these facts; `weights=False` leaves all of it random.

    renamed: what holds the decoder's weights, instead of `config`. lazy_decoder: leave the decoder on the meta device,
    for trainer.export.streamed. New weights depend on `seed` alone. The caller has run `check_model`, which says what
    of the config does not fit the build. Raises ConfigError if an encoder, projector or decoder cannot be built or
    loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta") if lazy_decoder else nullcontext():
            decoder = build_decoder(
                config.decoder,
                facts.tokenizer.num_embeddings,
                config.attention,
                weights=weights and not lazy_decoder,
                dtype=dtype,
                renamed=renamed,
            )
        has_weights = weights and not lazy_decoder
        separates_samples = check_decoder(decoder, config.decoder, config.attention) if has_weights else None
        torch.manual_seed(seed + 1)  # what the other parts draw is the same whether the decoder was drawn or loaded
        model = join_decoder(config, decoder, image_id=facts.tokenizer.image_id, weights=weights, dtype=dtype)
    if separates_samples is not None:
        model.separates_samples = separates_samples
    return model


def join_decoder(
    config: ModelConfig, decoder: CausalDecoder, *, image_id: int, weights: bool, dtype: torch.dtype
) -> VisionChatModel:
    """The model of this decoder, with a new encoder and projector. Raises ConfigError if they cannot be built."""
    encoder = build_encoder(config.encoder, weights=weights)
    projector = build_projector(
        config.projector,
        encoder_width=encoder.width,
        encoder_tokens=encoder.num_tokens,
        hidden_size=decoder.get_input_embeddings().weight.shape[1],
    )
    return VisionChatModel(
        encoder.to(dtype), projector.to(dtype), decoder, image_id=image_id, attention=config.attention
    )


def check_model(config: ModelConfig, facts: BuildFacts) -> list[str]:
    """Problems of the model's config, and between it and the build with these facts. Loads no weights."""
    problems = check_model_values(config)
    if problems:
        return problems

    def next_step(change: str, rebuild: str) -> str:  # the parts of an export to start with cannot be changed
        return f"rebuild with {rebuild}" if config.init_from else f"{change}, or rebuild with {rebuild}"

    try:
        hf_config = load_hf_config(config.decoder, facts.tokenizer.num_embeddings)
        limit, longest = max_positions(hf_config), facts.limits.max_length
        if limit is not None and longest > limit:
            problems.append(
                f"model.decoder: allows {limit} positions but this build has samples of up to {longest}; "
                + next_step("choose another decoder", f"limits: {{max_length: {limit}}}")
            )
        window = attention_window(hf_config)
        if window is not None and longest > window and (config.attention == "mmca" or facts.has_branches):
            what = "mmca is" if config.attention == "mmca" else "causal attention with branches is"
            other = "" if facts.has_branches else "set model.attention: causal, "
            problems.append(
                f"model.attention: {what} not defined for sliding windows; the decoder's is {window} positions but "
                f"this build has samples of up to {longest}; {other}"
                + next_step("choose another decoder", f"limits: {{max_length: {window}}}")
                + (" or without share" if facts.has_branches else "")
            )
    except ConfigError as error:
        problems += error.problems
    missing = _missing_kinds(config)
    if missing:
        return problems + missing
    try:
        with torch.device("meta"):
            encoder = build_encoder(config.encoder, weights=False)
            projector = build_projector(
                config.projector, encoder_width=encoder.width, encoder_tokens=encoder.num_tokens, hidden_size=8
            )
    except ConfigError as error:
        return problems + error.problems
    side, image_tokens = facts.image.size, facts.image_tokens
    if encoder.image_size != side:
        problems.append(
            f"model.encoder: takes images of {encoder.image_size} pixels but this build's have {side}; "
            + next_step("choose another encoder", f"image: {{size: {encoder.image_size}}}")
        )
    num_tokens = projector.num_tokens
    if num_tokens != image_tokens:
        fix = _fix_num_tokens(config.projector.kind, image_tokens)
        problems.append(
            f"model.projector: makes {num_tokens} tokens per image but this build was compiled with {image_tokens}; "
            + next_step(fix, f"image_tokens: {num_tokens}")
        )
    return problems


def _missing_kinds(config: ModelConfig) -> list[str]:
    """Problems of an encoder and a projector of other packages that cannot be imported."""
    problems = []
    for find, kind in ((encoder_function, config.encoder.kind), (projector_function, config.projector.kind)):
        try:
            find(kind)
        except ConfigError as error:
            problems += error.problems
    return problems


def _fix_num_tokens(kind: str, image_tokens: int) -> str:
    if kind == "perceiver":
        return f"set model.projector.num_queries: {image_tokens}"
    return "use a perceiver" if kind in PROJECTOR_KINDS else "change model.projector.config"


def portable_config(config: ModelConfig, model: VisionChatModel) -> ModelConfig:
    """A config that builds the same architecture with random weights, without folders and hub ids."""
    hf_config = model.decoder.config.to_dict()
    decoder = dataclasses.replace(config.decoder, name=None, preset=None, config=hf_config)
    return dataclasses.replace(config, init_from=None, encoder=model.encoder.portable, decoder=decoder)
