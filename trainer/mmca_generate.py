"""`generate` for a model with MMCA: every forward of a generation gets its layout, tokens in the KV cache included.

The rule: the caller says once, for the whole conversation so far, which tokens are images; what is generated is text.

    enable_generation(model)               # once, on the transformers model, before peft wraps it
    cache = DynamicCache(config=model.config)
    model.generate(inputs_embeds=all_embeddings, attention_mask=mask, is_image=is_image, past_key_values=cache, ...)

In a later round pass the same cache and the full conversation again, `is_image` and `attention_mask` with it;
`generate` itself leaves out what the cache holds. `is_image` [B, T] is bool, as wide as the prompt; where the attention
mask is 0 is padding.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn import functional

from trainer.mmca_layout import build_layout


def enable_generation(model: Any) -> None:
    """Teach the `generate` of a transformers decoder the argument `is_image`; without MMCA it changes nothing."""
    original = model.prepare_inputs_for_generation

    def prepare_inputs_for_generation(
        *arguments: Any, is_image: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = original(*arguments, attention_mask=attention_mask, **others)
        new = inputs["inputs_embeds"] if inputs.get("inputs_embeds") is not None else inputs["input_ids"]
        cache = inputs.get("past_key_values")
        num_keys = new.shape[1] + (0 if cache is None else cache.get_seq_length())
        inputs["mmca_layout"] = build_layout(
            _with_generated_text(is_image, num_keys, is_prompt=others.get("is_first_iteration") is True),
            attention_mask,
            num_queries=new.shape[1],
        )
        return inputs

    prepare_inputs_for_generation.__signature__ = _with_is_image(inspect.signature(original))  # type: ignore[attr-defined]
    model.prepare_inputs_for_generation = prepare_inputs_for_generation


def _with_is_image(signature: inspect.Signature) -> inspect.Signature:
    """`generate` reads from the signature which arguments it may pass on, and refuses all others."""
    parameters = list(signature.parameters.values())
    rest = [each for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD]
    named = [each for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    added = inspect.Parameter("is_image", inspect.Parameter.KEYWORD_ONLY, default=None)
    return signature.replace(parameters=[*named, added, *rest])


def _with_generated_text(is_image: torch.Tensor | None, num_tokens: int, *, is_prompt: bool) -> torch.Tensor:
    if is_image is None:
        raise ValueError("generate() with MMCA needs is_image [rows, tokens]; pass zeros if there is no image")
    if is_image.shape[1] > num_tokens or (is_prompt and is_image.shape[1] < num_tokens):
        raise ValueError(
            f"is_image has {is_image.shape[1]} tokens a row, but {num_tokens} go into the model, those in the cache "
            "included; give it for the whole conversation so far, as the attention mask is given"
        )
    return functional.pad(is_image, (0, num_tokens - is_image.shape[1]))
