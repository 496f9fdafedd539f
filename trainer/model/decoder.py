"""Decoders: any causal language model of transformers, fitted to a build's tokenizer.

The rule: every token of the build has an input embedding and a row of the output head. Pretrained rows are kept, and
new ones are initialised to the mean of the pretrained ones. Embeddings and head stay one tensor where the model ties
them, and two where it does not.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from dst.common.suggest import nearest
from dst.errors import ConfigError
from trainer.attention.layout import build_layout
from trainer.attention.mmca import MMCA
from trainer.compat.transformers import lacks_attention, load_pretrained, new_model, reason
from trainer.config.model import DecoderConfig
from trainer.model.decoder_protocol import CausalDecoder, HfConfig

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
    try:
        if config.name is not None:
            hf_config = AutoConfig.from_pretrained(config.name, trust_remote_code=False)
        else:
            settings = dict(_preset(config.preset) if config.preset is not None else config.config)
            hf_config = AutoConfig.for_model(settings.pop("model_type"), **{"vocab_size": tokenizer_size, **settings})
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError([f"model.decoder: {_what(config)} cannot be read: {reason(error)}"]) from error
    text = hf_config.get_text_config(decoder=True)
    if text is not hf_config:
        raise ConfigError(
            [
                f"model.decoder: {_what(config)} is a {hf_config.model_type}, which contains a text decoder "
                f"({text.model_type}) and more; expected a language model alone"
            ]
        )
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
    cannot be loaded, or does not work with this attention.
    """
    hf_config = load_hf_config(config, tokenizer_size)
    from transformers import AutoModelForCausalLM

    model: CausalDecoder
    try:
        name = config.name if renamed is None else renamed.name
        if weights and name is not None:
            model = load_pretrained(
                AutoModelForCausalLM,
                name,
                key_mapping=renamed and dict(renamed.key_mapping),
                config=hf_config,
                dtype=dtype,
                attn_implementation=config.attn_implementation,
            )
        else:
            model = new_model(
                AutoModelForCausalLM, hf_config, dtype=dtype, attn_implementation=config.attn_implementation
            )
        if weights:
            _check_behaviour(model, config)
    except (OSError, ImportError, KeyError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        if lacks_attention(error):
            raise ConfigError([_without_attention(config)]) from None
        raise ConfigError([f"model.decoder: {_what(config)} cannot be loaded: {reason(error)}"]) from error
    fit_vocabulary(model, tokenizer_size)
    if attention == "mmca":
        MMCA.register()
        model.set_attn_implementation(MMCA.name)
        if weights:
            _check_mmca(model, config)
    return model


def check_decoder(model: CausalDecoder, config: DecoderConfig, attention: str) -> None:
    """Raises ConfigError unless the decoder works with this attention. For weights that build_decoder did not load."""
    if attention == "mmca":
        _check_mmca(model, config)
    else:
        _check_behaviour(model, config)


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


def finish_logits(hf_config: HfConfig, logits: torch.Tensor) -> torch.Tensor:
    """Scale the head's output as some models do: Granite divides, Cohere multiplies, Gemma 2 caps."""
    if (divisor := getattr(hf_config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(hf_config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(hf_config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def _check_behaviour(model: CausalDecoder, config: DecoderConfig) -> None:
    """Raises ConfigError unless the decoder behaves as VisionChatModel assumes; tested on a sequence of two samples.

    The assumptions: logits are the head applied to the last hidden states, and positions that restart keep samples
    apart. On the meta device there is nothing to compare.
    """
    head, base = model.get_output_embeddings(), model.base_model
    if not isinstance(head, nn.Module) or not hasattr(model, model.base_model_prefix):
        raise ConfigError([f"model.decoder: {_what(config)} has no output head; expected a causal language model"])
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise ConfigError(
            [f"model.decoder: {type(model).__name__} takes no position_ids and mixes samples; choose another"]
        )
    if head.weight.is_meta:
        return
    was_training = model.training
    model.eval()
    with torch.no_grad():
        embedded = model.get_input_embeddings()(torch.tensor([[0, 1]]))
        restarting = torch.zeros(1, 2, dtype=torch.int64)
        packed = model(inputs_embeds=embedded, position_ids=restarting, use_cache=False).logits
        hidden = base(inputs_embeds=embedded, position_ids=restarting, use_cache=False).last_hidden_state
        alone = model(inputs_embeds=embedded[:, 1:], position_ids=restarting[:, 1:], use_cache=False).logits
        by_head = finish_logits(model.config, head(hidden))
    model.train(was_training)
    name = type(model).__name__
    if not nearly_equal(by_head, packed):
        raise ConfigError(
            [
                f"model.decoder: {name} computes its logits in another way than its head and known scalings do; "
                "choose another"
            ]
        )
    if not nearly_equal(packed[:, 1:], alone):
        raise ConfigError([f"model.decoder: {name} lets samples that share a sequence see each other; choose another"])


def _check_mmca(model: CausalDecoder, config: DecoderConfig) -> None:
    """Raises ConfigError unless every layer attends through MMCA; tested on two tokens.

    An architecture with its own attention code would silently keep that; one that adds to attention (soft caps, sinks)
    refuses the layout. Sliding windows are checked in trainer.model.build_model.check_model.
    """
    if model.get_input_embeddings().weight.is_meta:
        return
    change = "choose another decoder, or set model.attention: causal"
    embedded = model.get_input_embeddings()(torch.tensor([[0, 1]]))
    was_training = model.training
    model.eval()
    try:
        with MMCA.counted() as calls, torch.no_grad():
            layout = build_layout(torch.tensor([[True, False]]))
            model.base_model(inputs_embeds=embedded, use_cache=False, attention_layout=layout)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"model.attention: {_what(config)} cannot do mmca: {reason(error)}; {change}"]) from None
    finally:
        model.train(was_training)
    num_mmca = len(calls)
    num_layers, name = model.config.num_hidden_layers, type(model).__name__
    if num_mmca != num_layers:
        raise ConfigError(
            [
                f"model.attention: {num_mmca} of {num_layers} layers of {name} attend through transformers' attention "
                f"interface, which mmca needs; {change}"
            ]
        )


def nearly_equal(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal within the rounding of the type."""
    tolerance = 1e-4 if actual.dtype in (torch.float32, torch.float64) else 0.02
    return bool((actual - expected).float().norm() <= tolerance * expected.float().norm())


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        hint = nearest(name, PRESETS) or f"; expected one of {', '.join(PRESETS)}"
        raise ConfigError([f"model.decoder.preset: unknown preset {name!r}{hint}"])
    return PRESETS[name]


def _without_attention(config: DecoderConfig) -> str:
    return (
        f"model.decoder.attn_implementation: {_what(config)} has no {config.attn_implementation} attention in this "
        "release of transformers; set model.decoder.attn_implementation: eager"
    )


def _what(config: DecoderConfig) -> str:
    """The decoder as errors name it."""
    return config.name or config.preset or f"a {config.config.get('model_type')} of these sizes"
