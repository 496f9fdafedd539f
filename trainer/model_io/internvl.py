"""A causal model with pixel shuffle as a standard InternVL folder of transformers.

InternVL (https://arxiv.org/abs/2404.16821) is an InternViT tower, a projector that joins 2 x 2 patches (pixel shuffle),
and a decoder with plain causal attention and a linear head. `internvl_refusals` says why a model is not an InternVL
model.

Rules
- transformers builds an InternVLVisionModel whatever `vision_config` says, so other towers are refused.
- Our towers end with the layer that is read, without the final norm: `vision_feature_layer` is -1, `use_mean_pooling`
  true. Unlike in LLaVA, no layer is added.
- Names are those of the published folders (InternVL3-1B-hf).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from trainer.config.model import ModelConfig
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.converted_encoder import num_layers
from trainer.model_io.internvl_encoder import internvl_encoder, internvl_tower_refusals
from trainer.model_io.llava_folder import without_origin
from trainer.model_io.older_keys import older_dtype
from trainer.model_io.standard_parts import (
    decoder_refusals,
    family_names,
    is_tied,
    own_tensors,
    text_config,
    with_tower,
)

LAST_LAYER = -1


def internvl_refusals(model: VisionChatModel, config: ModelConfig) -> list[str]:
    """Why a model with pixel shuffle is not an InternVL model, a clause each; empty if it is."""
    reasons = []
    if model.attention == "mmca":
        reasons.append("its text attends to text and to images separately (MMCA)")
    reasons += decoder_refusals(model.decoder, "InternVL")
    reasons += internvl_tower_refusals(model.encoder)
    return [f"its projector is {config.projector.kind}, LLaVA's is mlp", *reasons] if reasons else []


def as_internvl(model: VisionChatModel) -> VisionChatModel:
    """The same model with its encoder as in transformers' InternVL; the other parts are shared with `model`.

    Raises TrainError if that encoder computes something else, as with an incompatible release of a library.
    """
    encoder = internvl_encoder(model.encoder)
    hf_config = {**encoder.portable.config, "num_hidden_layers": num_layers(encoder), "use_mean_pooling": True}
    return with_tower(model, encoder, hf_config, layer=LAST_LAYER)


def internvl_config(model: VisionChatModel, *, dtype: str) -> dict[str, Any]:
    """config.json of a model that `as_internvl` returned."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "dtype": dtype,
        **older_dtype(dtype),
        "downsample_ratio": 0.5,
        "image_token_id": model.image_id,
        "image_seq_length": model.image_tokens,
        "projector_hidden_act": "gelu",
        "text_config": text_config(model.decoder),
        "tie_word_embeddings": is_tied(model.decoder),
        "vision_config": without_origin(model.encoder.portable.config),
        "vision_feature_layer": LAST_LAYER,
        "vision_feature_select_strategy": "default",  # without the class token
    }


def internvl_names(model: VisionChatModel) -> dict[str, str]:
    """Our name of every tensor -> InternVL's."""
    return family_names(
        model,
        tower=lambda name: f"vision_tower.{name}",
        projector=lambda name: f"layer_{name}" if name.startswith("norm.") else name,
    )


def internvl_tensors(model: VisionChatModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of what `as_internvl` returned, by InternVL's names."""
    names = internvl_names(model)
    for name, tensor in own_tensors(model):
        yield names[name], tensor
