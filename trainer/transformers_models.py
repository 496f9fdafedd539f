"""What loading and running any transformers model takes here: strictly, quietly, and alike in all releases."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def load_pretrained(auto: Any, name: str, *, unread: Collection[str] = (), **options: Any) -> Any:
    """`auto.from_pretrained`, but weights that the files lack are an error: they would be random.

    Weights that the model has no place for are left out in silence; `unread`: parts of names that may be lacking too.
    Raises ValueError, and what transformers raises.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = auto.from_pretrained(name, output_loading_info=True, trust_remote_code=False, **options)
    finally:
        logging.set_verbosity(verbosity)
    lacking = sorted(key for key in report["missing_keys"] if not any(part in key for part in unread))
    other = [entry if isinstance(entry, str) else str(entry[0]) for entry in report["mismatched_keys"]]
    for problem, keys in (("lack", lacking), ("have another shape of", sorted(other))):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(f"its files {problem} {', '.join(keys[:3])}{more}; download it again")
    return model


def reason(error: Exception) -> str:
    """Why a library could not build a model, on one line."""
    text = str(error)
    if "trust_remote_code" in text:
        return "it brings code of its own, which is never run here; wanted an architecture that the library knows"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])[:600] or type(error).__name__


def checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward pass; newer releases have another name for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
