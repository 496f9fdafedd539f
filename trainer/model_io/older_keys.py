"""Keys of config.json for programs that read the form of transformers 4, as inference servers do.

transformers 5 writes the rotary embedding as `rope_parameters`. transformers 4 (run with 4.57.6) ignores that key and
would take its default base in silence; it reads `rope_theta`, `rope_scaling` and others next to it.

The rule: both forms say the same, and transformers 5 reads what it would read without the older keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_APART = ("rope_theta", "partial_rotary_factor")
"""Keys of rope_parameters that transformers 4 has outside rope_scaling"""

_OTHER_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""model_type -> key -> its name in transformers 4"""

_PHI3_LONGROPE = ("short_factor", "long_factor")
"""All that Phi-3's rope_scaling may have besides its type, in transformers 4"""


def older_text_keys(text_config: Mapping[str, Any], *, architecture: str) -> dict[str, Any]:
    """Keys to add to `text_config`. architecture: the decoder's class, which vLLM looks for."""
    return {"architectures": [architecture], **_rope_keys(text_config)}


def older_dtype(dtype: str) -> dict[str, str]:
    """The precision by its older name."""
    return {"torch_dtype": dtype}


def _rope_keys(text_config: Mapping[str, Any]) -> dict[str, Any]:
    rope = text_config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    by_layer_type = "full_attention" in rope
    full = rope["full_attention"] if by_layer_type else rope
    names = _OTHER_NAMES.get(str(text_config.get("model_type")), {})
    keys = {names.get(key, key): full[key] for key in _APART if full.get(key) is not None}
    keys["rope_scaling"] = _scaling(full, text_config.get("model_type"))
    if by_layer_type and "sliding_attention" in rope:  # Gemma 3
        keys["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    return keys


def _scaling(rope: Mapping[str, Any], model_type: object) -> dict[str, Any] | None:
    if rope.get("rope_type", "default") == "default":
        return None
    if model_type == "phi3":
        return {"type": rope["rope_type"], **{key: rope[key] for key in _PHI3_LONGROPE}}
    return {key: value for key, value in rope.items() if key not in _APART and value is not None}
