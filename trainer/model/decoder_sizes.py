"""Sizes of a decoder that do not fit each other, which transformers reports late, or by the shape of some tensor."""

from __future__ import annotations


def size_problem(hf_config: object) -> str | None:
    """What is wrong between widths and heads, as the rest of an error: the key, got, expected; None if they fit.

    hf_config: transformers' configuration, or any object with its attributes.
    Some architectures allow what others do not, so this explains an error of the library and is not one by itself.
    """
    width, heads = (_size(hf_config, name) for name in ("hidden_size", "num_attention_heads"))
    key_heads, head_width = (_size(hf_config, name) for name in ("num_key_value_heads", "head_dim"))
    if width and heads and width % heads and (head_width is None or head_width == width // heads):
        return (
            f"num_attention_heads is {heads}, which does not divide hidden_size {width}; expected a divisor of {width}"
        )
    if heads and key_heads and heads % key_heads:
        return (
            f"num_key_value_heads is {key_heads}, which does not divide num_attention_heads {heads}; expected a "
            f"divisor of {heads}"
        )
    if head_width and head_width % 2:
        return f"head_dim is {head_width}; expected an even number, since rotary embedding rotates pairs"
    return None


def _size(hf_config: object, name: str) -> int | None:
    value = getattr(hf_config, name, None)
    return value if isinstance(value, int) and value > 0 else None
