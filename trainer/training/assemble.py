"""From the config to what DeepSpeed takes: a model with adapters and frozen parts, and the optimizer's groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from shards.format.manifest import BuildFacts
from trainer.compat.bitsandbytes import num_weights
from trainer.config.run import TrainConfig
from trainer.model.build_model import build_model
from trainer.model.lora import add_adapters
from trainer.model.param_groups import ComponentRow, choose_trained, component_rows, parameter_groups
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.load import DTYPES, started_model
from trainer.training.metrics import MultipliedWeights
from trainer.training.quantize import quantize_decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A model ready to be trained."""

    model: VisionChatModel
    groups: list[dict[str, Any]]
    """As torch's optimizers take them, each with a `name`"""
    rows: list[ComponentRow]
    """The table of parameters"""
    weights: MultipliedWeights
    """For counting operations"""


def assemble(config: TrainConfig, facts: BuildFacts, *, weights: bool = True, lazy_decoder: bool = False) -> Assembled:
    """The model of a config for the build with these facts. The same seed gives the same new weights.

    weights: False leaves pretrained weights random. lazy_decoder: as build_model takes it. The config has passed
    trainer.model.build_model.check_model. Raises ConfigError if a part cannot be built or adapted.
    """
    dtype = DTYPES[config.precision]
    if weights and config.model.init_from is not None:
        model = started_model(config.model, facts, dtype=dtype, lazy_decoder=lazy_decoder)
    else:
        model = build_model(
            config.model, facts, weights=weights, seed=config.seed, dtype=dtype, lazy_decoder=lazy_decoder
        )
    if config.batch.packed:
        model.expect_packed()
    if facts.has_branches:
        model.expect_branches()
    if config.lora.quantize_decoder is not None:
        quantize_decoder(model, config.lora, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        add_adapters(model, config.lora)
    choose_trained(model, config.learning_rates)
    if config.gradient_checkpointing:
        model.checkpoint_activations()
    groups = parameter_groups(model, config.learning_rates, config.optimizer.weight_decay)
    return Assembled(
        model=model,
        groups=[group.for_torch() for group in groups],
        rows=component_rows(model, config.learning_rates),
        weights=_multiplied_weights(model),
    )


def _multiplied_weights(model: VisionChatModel) -> MultipliedWeights:
    total = {"encoder": 0, "projector": 0, "decoder": 0}
    trained = dict(total)
    tables = (model.decoder.get_input_embeddings(), model.decoder.get_output_embeddings())
    looked_up = {id(parameter) for table in tables for parameter in table.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in looked_up:  # a lookup is not a multiplication, and the head is counted apart
            module = name.partition(".")[0]
            total[module] += num_weights(parameter)
            trained[module] += num_weights(parameter) * parameter.requires_grad
    head = model.decoder.get_output_embeddings().weight
    return MultipliedWeights(
        encoder=total["encoder"],
        encoder_trained=trained["encoder"],
        encoder_tokens=model.encoder.num_tokens,
        projector=total["projector"],
        projector_trained=trained["projector"],
        decoder=total["decoder"],
        decoder_trained=trained["decoder"],
        head=head.numel(),
        head_trained=head.numel() * head.requires_grad,
    )
