"""Decoders: any causal language model of transformers, fitted to a build's tokenizer.

The rule: every token of the build has an input embedding and a row of the output head. Pretrained rows are kept, and
new ones are initialised to the mean of the pretrained ones. Embeddings and head stay one tensor where the model ties
them, and two where it does not.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError

from dst.common.suggest import nearest
from dst.errors import ConfigError
from trainer.attention.mmca import MMCA
from trainer.compat.transformers import LIBRARY_ERRORS, lacks_attention, load_pretrained, new_model, quiet, reason
from trainer.config.model import DecoderConfig
from trainer.model.decoder_checks import failure
from trainer.model.decoder_protocol import CausalDecoder, HfConfig, decoder_title
from trainer.model.decoder_sizes import size_problem

_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny_llama": {"model_type": "llama", **_TINY},
    "tiny_mistral": {"model_type": "mistral", **_TINY, "sliding_window": None},
    "tiny_qwen2": {"model_type": "qwen2", **_TINY, "tie_word_embeddings": True},
    "tiny_qwen3": {"model_type": "qwen3", **_TINY, "head_dim": 16, "tie_word_embeddings": True},
    "tiny_smollm3": {"model_type": "smollm3", **_TINY, "tie_word_embeddings": True},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RenamedWeights:
    """Weights that are part of a larger model."""

    name: str
    """A folder or a hub id"""
    key_mapping: Mapping[str, str]
    """Regex -> its replacement, from the names in the files to those of the decoder alone"""


def load_hf_config(config: DecoderConfig, tokenizer_size: int) -> HfConfig:
    """transformers' configuration of the decoder. Raises ConfigError if it cannot be read or is not a decoder's."""
    from transformers import AutoConfig

    hf_config: HfConfig
    settings = dict(_preset(config.preset) if config.preset is not None else config.config)
    try:
        with quiet():
            if config.name is not None:
                hf_config = AutoConfig.from_pretrained(config.name, trust_remote_code=False)
            else:
                sizes = {"vocab_size": tokenizer_size, **settings}
                hf_config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    except (OSError, *LIBRARY_ERRORS) as error:
        raise ConfigError([_unreadable(config, settings, error)]) from error
    text = hf_config.get_text_config(decoder=True)
    if text is not hf_config:
        raise ConfigError([_larger(config, hf_config, text)])
    return hf_config


def max_positions(hf_config: HfConfig) -> int | None:
    """The most positions that the decoder allows; None if its configuration sets no limit."""
    limit = getattr(hf_config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def attention_window(hf_config: HfConfig) -> int | None:
    """The sliding window of the decoder's layers in tokens; None if all layers see everything."""
    layer_types = getattr(hf_config, "layer_types", None)
    window = getattr(hf_config, "sliding_window", None)
    return window if isinstance(window, int) and (layer_types is None or "sliding_attention" in layer_types) else None


def build_decoder(
    config: DecoderConfig,
    tokenizer_size: int,
    attention: str,
    *,
    weights: bool = True,
    dtype: torch.dtype = torch.float32,
    renamed: RenamedWeights | None = None,
) -> CausalDecoder:
    """A transformers model with embeddings for `tokenizer_size` tokens; `weights=False` leaves all weights random.

    attention: mmca or causal. renamed: what holds the weights, instead of `config`. Raises ConfigError if the model
    cannot be loaded. `trainer.model.decoder_checks.check_decoder` tries whether it does what training assumes.
    """
    hf_config = load_hf_config(config, tokenizer_size)
    from transformers import AutoModelForCausalLM

    model: CausalDecoder
    kernel = "eager" if attention == "mmca" else config.attn_implementation  # every decoder has it; MMCA replaces it
    try:
        name = config.name if renamed is None else renamed.name
        if weights and name is not None:
            model = load_pretrained(
                AutoModelForCausalLM,
                name,
                key_mapping=renamed and dict(renamed.key_mapping),
                config=hf_config,
                dtype=dtype,
                attn_implementation=kernel,
            )
        else:
            model = new_model(AutoModelForCausalLM, hf_config, dtype=dtype, attn_implementation=kernel)
    except (OSError, ImportError, SafetensorError, pickle.UnpicklingError, *LIBRARY_ERRORS) as error:
        if lacks_attention(error):
            raise ConfigError([_without_attention(config)]) from None
        raise ConfigError([failure(config, hf_config, error, "cannot be loaded")]) from error
    fit_vocabulary(model, tokenizer_size)
    if attention == "mmca":
        MMCA.register()
        model.set_attn_implementation(MMCA.name)
    return model


def fit_vocabulary(model: CausalDecoder, tokenizer_size: int) -> None:
    """Add embeddings for new tokens, each the mean of all others; a table that is large enough is unchanged."""
    num_old = model.get_input_embeddings().weight.shape[0]
    if tokenizer_size <= num_old:
        return
    model.resize_token_embeddings(tokenizer_size, mean_resizing=False)
    tensors = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head.weight is not tensors[0]:
        tensors.append(head.weight)
    if getattr(head, "bias", None) is not None:
        tensors.append(head.bias)
    with torch.no_grad():
        for tensor in tensors:
            tensor[num_old:] = mean_row(tensor[:num_old])


def mean_row(rows: torch.Tensor) -> torch.Tensor:
    """What a new token begins with: the mean of all rows of a table."""
    return rows.float().mean(0).to(rows.dtype)


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        hint = nearest(name, PRESETS) or f"; expected one of {', '.join(PRESETS)}"
        raise ConfigError([f"model.decoder.preset: unknown preset {name!r}{hint}"])
    return PRESETS[name]


def _unreadable(config: DecoderConfig, settings: Mapping[str, Any], error: Exception) -> str:
    computed = next((key for key in settings if str(error).startswith(f"property {key!r} of")), None)
    if computed is not None:
        return (
            f"model.decoder.config.{computed}: got {settings[computed]!r}, but a {settings['model_type']} computes "
            "it from its other sizes; remove the key"
        )
    problem = size_problem(SimpleNamespace(**settings))
    return f"model.decoder: {decoder_title(config)} cannot be read: {problem or reason(error)}"


def _larger(config: DecoderConfig, hf_config: HfConfig, text: HfConfig) -> str:
    """Why a model is more than a decoder."""
    what = f"model.decoder: {decoder_title(config)} is a {hf_config.model_type}, which"
    if text.model_type == hf_config.model_type:
        return f"{what} has an encoder of texts as well; expected a decoder alone"
    start = f"set model.init_from: {config.name} to train it, or " if hf_config.model_type == "llava" else ""
    return (
        f"{what} contains a text decoder ({text.model_type}) and more; expected a language model alone; {start}name "
        "the folder of its language model"
    )


def _without_attention(config: DecoderConfig) -> str:
    return (
        f"model.decoder.attn_implementation: {decoder_title(config)} has no {config.attn_implementation} attention in "
        "this release of transformers; set model.decoder.attn_implementation: eager"
    )
