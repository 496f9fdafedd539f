"""`generate` for a model with MMCA: every forward of a generation gets its layout, tokens in the KV cache included.

The rule: the caller says once, for the whole conversation so far, which tokens are images; what is generated is text.

    enable_generation(model)               # once, on the transformers model, before peft wraps it
    cache = DynamicCache(config=model.config)
    model.generate(inputs_embeds=all_embeddings, attention_mask=mask, is_image=is_image, cache=cache, ...)

transformers before 5.24 names the cache `past_key_values`. In a later round pass the same cache and the full
conversation again, `is_image` and `attention_mask` with it; `generate` itself skips what the cache holds. `is_image`
[B, T] is bool, as wide as the prompt; where the attention mask is 0 is padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from trainer.attention.layout import build_layout
from trainer.compat.transformers import wrap_generation_inputs


def enable_generation(model: Any) -> None:
    """Teach the `generate` of a transformers decoder the argument `is_image`; without MMCA it changes nothing."""
    wrap_generation_inputs(model, "is_image", _add_layout)


def _add_layout(
    inputs: dict[str, Any],
    num_cached: int,
    is_prompt: bool,
    is_image: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> None:
    new = inputs["inputs_embeds"] if inputs.get("inputs_embeds") is not None else inputs["input_ids"]
    inputs["mmca_layout"] = build_layout(
        _with_generated_text(is_image, num_cached + new.shape[1], is_prompt=is_prompt),
        attention_mask,
        num_queries=new.shape[1],
    )


def _with_generated_text(is_image: torch.Tensor | None, num_tokens: int, *, is_prompt: bool) -> torch.Tensor:
    if is_image is None:
        raise ValueError("generate() with MMCA needs is_image [rows, tokens]; pass zeros if there is no image")
    if is_image.shape[1] > num_tokens or (is_prompt and is_image.shape[1] < num_tokens):
        raise ValueError(
            f"is_image has {is_image.shape[1]} tokens a row, but {num_tokens} go into the model, those in the cache "
            "included; give it for the whole conversation so far, as the attention mask is given"
        )
    return functional.pad(is_image, (0, num_tokens - is_image.shape[1]))
