"""What the standard families of transformers share: the decoder, and the names of its weights and the projector's."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from trainer.compat.transformers import base_model_class
from trainer.model.decoder_logits import finish_logits
from trainer.model.decoder_protocol import CausalDecoder
from trainer.model.encoders.registry import Encoder
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.llava_folder import without_origin
from trainer.model_io.older_keys import older_text_keys

Rename = Callable[[str], str]


def with_tower(
    model: VisionChatModel, encoder: Encoder, hf_config: Mapping[str, Any], *, layer: int
) -> VisionChatModel:
    """The same model with a copy of an encoder that is described otherwise; the other parts are shared with `model`.

    hf_config, layer: of the tower, as the family writes them.
    """
    encoder = copy.copy(encoder)
    encoder.portable = dataclasses.replace(encoder.portable, config=dict(hf_config), layer=layer, image_size=None)
    converted = VisionChatModel(
        encoder, model.projector, model.decoder, image_id=model.image_id, attention=model.attention
    )
    return converted.train(model.training)


def family_names(model: VisionChatModel, *, tower: Rename, projector: Rename) -> dict[str, str]:
    """Our name of every tensor -> the family's. tower, projector: how names inside these parts change."""
    base = f"decoder.{model.decoder.base_model_prefix}."
    head = model.decoder.get_output_embeddings().weight
    names = {}
    for name, tensor in own_tensors(model):
        if name.startswith("encoder.tower.model."):
            names[name] = tower(name.removeprefix("encoder.tower.model."))
        elif name.startswith("projector."):
            names[name] = f"multi_modal_projector.{projector(name.removeprefix('projector.'))}"
        elif name.startswith(base):
            names[name] = f"language_model.model.{name.removeprefix(base)}"
        else:
            assert tensor is head, name
            names[name] = "language_model.lm_head.weight"
    return names


def own_tensors(model: VisionChatModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers by our names; tied ones once."""
    seen = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def is_tied(decoder: CausalDecoder) -> bool:
    """Whether the head has the weights of the input embeddings."""
    return decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight


def text_config(decoder: CausalDecoder) -> dict[str, Any]:
    """The section of config.json for the decoder, for this generation of transformers and the one before."""
    hf_config = hf_config_dict(decoder)
    return {**hf_config, **older_text_keys(hf_config, architecture=type(decoder).__name__)}


def hf_config_dict(decoder: CausalDecoder) -> dict[str, Any]:
    """The decoder's configuration as JSON values."""
    hf_config: dict[str, Any] = json.loads(decoder.config.to_json_string(use_diff=False))
    return without_origin(hf_config)


def decoder_refusals(decoder: CausalDecoder, title: str = "LLaVA") -> list[str]:
    """Why the classes of the family compute something else with this decoder, a clause each; empty if they do not."""
    reasons = []
    name = type(decoder).__name__
    if base_model_class(decoder.config) is not type(decoder.base_model):
        reasons.append(f"its decoder {name} is not what transformers builds for {title}")
    if getattr(decoder.get_output_embeddings(), "bias", None) is not None:
        reasons.append(f"the head of its decoder {name} has a bias, {title}'s has none")
    probe = torch.tensor([-300.0, 2.0, 300.0])
    if not torch.equal(finish_logits(decoder.config, probe), probe):
        reasons.append(f"its decoder {name} scales its logits, {title} does not")
    return reasons
