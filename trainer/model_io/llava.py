"""A causal model as a standard LLaVA folder of transformers.

LLaVA (https://arxiv.org/abs/2310.03744) is a CLIP or SigLIP tower, a projector of two linear layers, and a decoder with
plain causal attention and a linear head. `refusals` says why a model is not a LLaVA model.

Rules
- `vision_feature_layer` is -2, as in LLaVA-1.5. Our towers end with the layer that is read, so one more layer of zeros
  is written after it. Nothing reads its output, and -2 means the same layer in every release of transformers and in
  other programs that read LLaVA folders.
- Names are those of LLaVA-1.5's published folder.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import torch

from trainer.compat.transformers import bare, base_model_class
from trainer.config.model import ModelConfig
from trainer.model.decoder_logits import finish_logits
from trainer.model.decoder_protocol import CausalDecoder
from trainer.model.encoders.registry import Encoder
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.converted_encoder import num_layers
from trainer.model_io.llava_encoder import standard_encoder, tower_refusals
from trainer.model_io.llava_folder import FEATURE_LAYER, without_origin
from trainer.model_io.older_keys import older_dtype, older_text_keys


def refusals(model: VisionChatModel, config: ModelConfig) -> list[str]:
    """Why a model is not a LLaVA model, a clause each; empty if it is."""
    reasons = []
    if model.attention == "mmca":
        reasons.append("its text attends to text and to images separately (MMCA)")
    if config.projector.kind != "mlp":
        reasons.append(f"its projector is {config.projector.kind}, LLaVA's is mlp")
    reasons += decoder_refusals(model.decoder)
    return reasons + tower_refusals(model.encoder)


def as_llava(model: VisionChatModel) -> VisionChatModel:
    """The same model with its encoder as in transformers' LLaVA; the other parts are shared with `model`.

    Raises TrainError if that encoder computes something else, as with an incompatible release of a library.
    """
    encoder = copy.copy(standard_encoder(model.encoder))
    hf_config = {**encoder.portable.config, "num_hidden_layers": num_layers(encoder) + 1, "vision_use_head": False}
    if hf_config["model_type"] == "clip_vision_model":
        del hf_config["vision_use_head"]
    encoder.portable = dataclasses.replace(encoder.portable, config=hf_config, layer=FEATURE_LAYER, image_size=None)
    converted = VisionChatModel(
        encoder, model.projector, model.decoder, image_id=model.image_id, attention=model.attention
    )
    return converted.train(model.training)


def llava_config(model: VisionChatModel, *, dtype: str) -> dict[str, Any]:
    """config.json of a model that `as_llava` returned."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": dtype,
        **older_dtype(dtype),
        "image_token_index": model.image_id,
        "image_seq_length": model.image_tokens,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": text_config(model.decoder),
        "tie_word_embeddings": is_tied(model.decoder),
        "vision_config": without_origin(model.encoder.portable.config),
        "vision_feature_layer": FEATURE_LAYER,
        "vision_feature_select_strategy": _strategy(model.encoder),
    }


def llava_expansion(model: VisionChatModel) -> dict[str, Any]:
    """The settings from which LLaVA's processor computes the tokens per image."""
    has_cls = model.encoder.portable.config["model_type"] == "clip_vision_model"
    return {
        "patch_size": int(model.encoder.portable.config["patch_size"]),
        "num_additional_image_tokens": int(has_cls),
        "vision_feature_select_strategy": _strategy(model.encoder),
    }


def llava_names(model: VisionChatModel) -> dict[str, str]:
    """Our name of every tensor -> LLaVA's."""
    base = f"decoder.{model.decoder.base_model_prefix}."
    head = model.decoder.get_output_embeddings().weight
    names = {}
    for name, tensor in own_tensors(model):
        if name.startswith("encoder.tower.model."):
            names[name] = "vision_tower.vision_model." + bare(name.removeprefix("encoder.tower.model."))
        elif name.startswith("projector."):
            names[name] = "multi_modal_projector." + name.removeprefix("projector.")
        elif name.startswith(base):
            names[name] = "language_model.model." + name.removeprefix(base)
        else:
            assert tensor is head, name
            names[name] = "language_model.lm_head.weight"
    return names


def module_path(model: VisionChatModel, name: str) -> str:
    """The path in transformers' LlavaForConditionalGeneration of a parameter or module, by our name.

    The tower's has no level `vision_model`, which only some releases have.
    """
    base, head = f"decoder.{model.decoder.base_model_prefix}.", model.decoder.get_output_embeddings()
    (head_name,) = (
        f"decoder.{each}" for each, module in model.get_submodule("decoder").named_modules() if module is head
    )
    for own, theirs in (
        ("encoder.tower.model.", "model.vision_tower."),
        ("projector.", "model.multi_modal_projector."),
        (base, "model.language_model."),
        (f"{head_name}.", "lm_head."),
    ):
        if f"{name}.".startswith(own):
            return f"{theirs}{bare(f'{name}.'.removeprefix(own))}".rstrip(".")
    raise ValueError(f"{name} is not a part of a LLaVA model")


def llava_tensors(model: VisionChatModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of what `as_llava` returned, by LLaVA's names, with the unused ones of its tower."""
    names = llava_names(model)
    last_layer = f"vision_tower.vision_model.encoder.layers.{model.encoder.portable.config['num_hidden_layers'] - 2}."
    for name, tensor in own_tensors(model):
        yield names[name], tensor
        if names[name].startswith(last_layer):
            yield _next_layer(names[name], last_layer), torch.zeros_like(tensor)
    for name, fill in (("weight", torch.ones), ("bias", torch.zeros)):
        yield f"vision_tower.vision_model.post_layernorm.{name}", fill(model.encoder.width)


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


def _next_layer(name: str, layer: str) -> str:
    """The name of the same tensor in the layer after `layer`."""
    start, _, number = layer.rstrip(".").rpartition(".")
    return f"{start}.{int(number) + 1}.{name.removeprefix(layer)}"


def _strategy(encoder: Encoder) -> str:
    drops_cls = encoder.portable.config["model_type"] == "clip_vision_model" and not encoder.portable.class_token
    return "default" if drops_cls else "full"
