"""Tiny decoders of every tested architecture with MMCA, and ids for them."""

# ruff: noqa: E402 - torch and transformers may be missing, and torchvision is fixed before they look at it

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

import torch
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.models.gptj import modeling_gptj

from trainer.attention.layout import build_layout
from trainer.attention.mmca import MMCA

VOCABULARY = 40
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=4),
    "smollm3": lambda: SmolLM3Config(**SIZES),
}
if hasattr(modeling_gptj, "ALL_ATTENTION_FUNCTIONS"):  # its own attention until 5.23, transformers' interface since
    CONFIGS["gptj"] = lambda: GPTJConfig(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, rotary_dim=4, n_positions=128, eos_token_id=None
    )
# transformers renames gradient to activation checkpointing; peft, and the oldest transformers we support, say gradient.
RENAMED = pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated and will be removed in v6:FutureWarning")


def on_one_thread() -> Iterator[None]:
    """A fixture's body: tensors are tiny, and waiting for a second core takes longer than the work."""
    MMCA.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def without_gradients() -> Iterator[None]:
    """A fixture's body."""
    with torch.no_grad():
        yield


def of_every_kind(request: pytest.FixtureRequest) -> Any:
    """A fixture's body: one of every architecture; tests leave it as it was."""
    return make(request.param)


def make(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config).double().eval()
    model.set_attn_implementation("mmca")
    for parameter in model.parameters():  # biases and norms start at 0 and 1, where a mistake could hide
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def positions(segment_ids: torch.Tensor) -> torch.Tensor:
    """Each sample counts from 0; padding stays at 0."""
    actual = torch.zeros_like(segment_ids)
    for row, segments in enumerate(segment_ids):
        for sample in set(segments.tolist()) - {0}:
            where = segments == sample
            actual[row, where] = torch.arange(int(where.sum()))
    return actual


def logits(
    model: Any, ids: torch.Tensor, is_image: torch.Tensor, segment_ids: torch.Tensor | None = None
) -> torch.Tensor:
    segment_ids = torch.ones_like(ids) if segment_ids is None else segment_ids
    layout = build_layout(is_image, segment_ids)
    actual: torch.Tensor = model(
        input_ids=ids, position_ids=positions(segment_ids), attention_layout=layout, use_cache=False
    ).logits
    return actual


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(5))


def kinds(*rows: str) -> torch.Tensor:
    """`t` text, `i` image."""
    return torch.tensor([[letter == "i" for letter in row] for row in rows])


def with_lora(name: str) -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(make(name), config)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter)
    return model
