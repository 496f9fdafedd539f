"""What the trainer uses of a causal language model of transformers, as types.

transformers declares no type that all causal language models share with these attributes, so the two protocols name
them. Every CausalDecoder is a torch Module as well: code that needs its modules gets them with
`get_submodule("decoder")` of the model that contains it.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol, Self

import torch
from torch import nn

from trainer.config.model import DecoderConfig


class HfConfig(Protocol):
    """A decoder's configuration. Attributes that only some architectures have are read with `getattr`."""

    num_hidden_layers: int
    vocab_size: int

    @property
    def model_type(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...
    def get_text_config(self, decoder: bool = ...) -> HfConfig: ...
    def to_json_string(self, use_diff: bool = ...) -> str: ...


class CausalDecoder(Protocol):
    """A causal language model: a base model that computes hidden states, and a head that computes logits from them."""

    training: bool
    base_model_prefix: str
    """Attribute of the base model; the names of its parameters begin with it."""

    @property
    def config(self) -> HfConfig: ...

    @property
    def base_model(self) -> nn.Module:
        """Called with `inputs_embeds` [B, T, H] and more; its output has `last_hidden_state` [B, T, H]."""

    def get_input_embeddings(self) -> nn.Embedding: ...
    def get_output_embeddings(self) -> nn.Linear: ...
    def resize_token_embeddings(self, new_num_tokens: int, *, mean_resizing: bool) -> object: ...
    def set_attn_implementation(self, attn_implementation: str) -> None: ...
    def train(self, mode: bool = ...) -> Self: ...
    def eval(self) -> Self: ...

    def __call__(self, *, use_cache: bool, **inputs: torch.Tensor) -> Any:
        """An output with `logits` [B, T, V], of a class that depends on the architecture."""


def takes_positions(decoder: CausalDecoder) -> bool:
    """Whether the base model takes `position_ids`; those with positions by distance alone do not."""
    return "position_ids" in inspect.signature(decoder.base_model.forward).parameters


def decoder_title(config: DecoderConfig) -> str:
    """The decoder as errors name it."""
    return config.name or config.preset or f"a {config.config.get('model_type')} of these sizes"
