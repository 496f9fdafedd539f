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

from collections.abc import Iterator
from typing import Any

import torch

from trainer.compat.transformers import bare
from trainer.config.model import ModelConfig
from trainer.model.encoders.registry import Encoder
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.converted_encoder import num_layers
from trainer.model_io.llava_encoder import standard_encoder, tower_refusals
from trainer.model_io.llava_folder import FEATURE_LAYER, without_origin
from trainer.model_io.older_keys import older_dtype
from trainer.model_io.standard_parts import (
    decoder_refusals,
    family_names,
    is_tied,
    own_tensors,
    text_config,
    with_tower,
)


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
    encoder = standard_encoder(model.encoder)
    hf_config = {**encoder.portable.config, "num_hidden_layers": num_layers(encoder) + 1, "vision_use_head": False}
    if hf_config["model_type"] == "clip_vision_model":
        del hf_config["vision_use_head"]
    return with_tower(model, encoder, hf_config, layer=FEATURE_LAYER)


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
    return family_names(
        model, tower=lambda name: f"vision_tower.vision_model.{bare(name)}", projector=lambda name: name
    )


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


def _next_layer(name: str, layer: str) -> str:
    """The name of the same tensor in the layer after `layer`."""
    start, _, number = layer.rstrip(".").rpartition(".")
    return f"{start}.{int(number) + 1}.{name.removeprefix(layer)}"


def _strategy(encoder: Encoder) -> str:
    drops_cls = encoder.portable.config["model_type"] == "clip_vision_model" and not encoder.portable.class_token
    return "default" if drops_cls else "full"
