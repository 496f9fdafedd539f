"""Whether transformers can use a model as one of a family: its own class is tried before a folder is called one.

Two checks, both with little memory. Before the weights are written, a small copy of the model (the same decoder with
one layer, a few tokens, random weights) has to give the same logits in transformers' class as here. Afterwards the
written folder is opened without its data: names and shapes have to be those that the class expects.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dst.errors import ConfigError
from shards.loader import normalize
from shards.loader.fields import IGNORE, BatchFields
from trainer.compat.transformers import LIBRARY_ERRORS, load_pretrained, reason
from trainer.config.model import DecoderConfig, ModelConfig
from trainer.model.build_model import join_decoder
from trainer.model.decoder import build_decoder
from trainer.model.decoder_logits import nearly_equal
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.standard_models import StandardModel
from trainer.model_io.standard_parts import hf_config_dict

_VOCABULARY = 16
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_ERRORS = (ImportError, OSError, *LIBRARY_ERRORS)
"""What a class raises that was not made for the decoder"""


def copy_refusal(model: VisionChatModel, config: ModelConfig, standard: StandardModel) -> str | None:
    """Why a small copy of a model that `standard.convert` returned is not one in transformers; None if it is.

    Only the sizes of `model` are read. A decoder that cannot be built with one layer is not tried.
    """
    small = _small_copy(model, config)
    if small is None:
        return None
    batch, pixels = _batch(small)
    try:
        with torch.no_grad():
            logits = _as_transformers_builds_it(small, standard)(input_ids=batch.input_ids, pixel_values=pixels).logits
            expected = small.logits(batch)
    except _ERRORS as error:
        return _refusal(model, standard, f"fails there: {reason(error)}")
    return None if nearly_equal(logits, expected) else _refusal(model, standard, "has other logits there")


def folder_refusal(folder: Path, model: VisionChatModel, standard: StandardModel) -> str | None:
    """Why transformers' class does not open the folder that `model` was written to; None if it does. Reads no data."""
    try:
        load_pretrained(_model_class(standard), str(folder), device_map={"": "meta"})
    except _ERRORS as error:
        return _refusal(model, standard, f"cannot be opened there: {reason(error)}")
    return None


def _refusal(model: VisionChatModel, standard: StandardModel, why: str) -> str:
    return f"transformers' {standard.title} cannot use its decoder {type(model.decoder).__name__}, which {why}"


def _small_copy(model: VisionChatModel, config: ModelConfig) -> VisionChatModel | None:
    decoder = DecoderConfig(
        config=_small_decoder(model), attn_implementation=config.decoder.portable_attn_implementation
    )
    portable = model.encoder.portable
    encoder = replace(portable, config={**portable.config, "num_hidden_layers": 2})
    parts = replace(config, init_from=None, encoder=encoder, decoder=decoder)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            language = build_decoder(decoder, _VOCABULARY, "causal", weights=False)
        except ConfigError:
            return None
        chat = join_decoder(parts, language, image_id=_VOCABULARY - 1, weights=False, dtype=torch.float32)
    # LLaVA's is without the layer that nothing reads, as models are while they are trained; llava_config says so.
    chat.encoder.portable = replace(encoder, layer=portable.layer)
    return chat.eval()


def _small_decoder(model: VisionChatModel) -> dict[str, Any]:
    """The decoder's configuration with one layer and few tokens."""
    hf_config: Any = model.decoder.config
    names: Mapping[str, str] = hf_config.attribute_map
    num_layers = hf_config.num_hidden_layers
    tree = {
        key: value[:1] if isinstance(value, list) and len(value) == num_layers else value
        for key, value in hf_config_dict(model.decoder).items()
    }
    for key in _SPECIAL:
        if tree.get(key) is not None:
            tree[key] = 0
    tree[names.get("num_hidden_layers", "num_hidden_layers")] = 1
    tree[names.get("vocab_size", "vocab_size")] = _VOCABULARY
    return tree


def _as_transformers_builds_it(small: VisionChatModel, standard: StandardModel) -> Any:
    model_class = _model_class(standard)
    config = model_class.config_class(**standard.config(small, dtype="float32"))
    tensors = {name: tensor.detach() for name, tensor in standard.tensors(small)}
    return load_pretrained(model_class, None, config=config, state_dict=tensors).eval()


def _model_class(standard: StandardModel) -> Any:
    return getattr(importlib.import_module("transformers"), standard.class_name)


def _batch(small: VisionChatModel) -> tuple[BatchFields[torch.Tensor], torch.Tensor]:
    """A text with an image, and the image's normalised pixels."""
    random = torch.Generator().manual_seed(0)
    side = small.encoder.image_size
    image = torch.randint(256, (1, 3, side, side), dtype=torch.uint8, generator=random)
    ids = torch.tensor([[1, *[small.image_id] * small.image_tokens, 2, 3]])
    zeros = torch.zeros_like(ids, dtype=torch.int32)
    batch = BatchFields(
        input_ids=ids,
        labels=torch.full_like(ids, IGNORE),
        position_ids=torch.arange(ids.shape[1])[None],
        segment_ids=zeros + 1,
        branch_ids=zeros,
        images=image,
        image_slots=torch.tensor([[0, 1]]),
    )
    return batch, normalize(image, small.encoder.mean, small.encoder.std)
