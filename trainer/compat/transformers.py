"""Everything that the trainer needs of transformers and that has moved between releases, or is not documented there.

The rule: other modules import public names of transformers only, and never ask for its version. What differs between
releases is found by looking at the library, not by comparing numbers. Run with 5.16.0, 5.23.0 and 5.24.0:

    cache argument      `past_key_values` until 5.23, `cache` since 5.24 (the old name warns, and goes in 5.40 and 6.0)
    checkpointing       `gradient_checkpointing_enable` until 5.x, `activation_checkpointing_enable` since
    loading report      mismatched keys are tuples in some releases, strings in others
    attention           AttentionInterface and AttentionMaskInterface; a mask function must accept any keyword

Nothing here imports transformers before it is called.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Function = Callable[..., Any]


def cache_argument() -> str:
    """What `forward` and `generate` call the KV cache in the installed release."""
    from transformers import GenerationMixin

    named = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in named else "past_key_values"


def new_cache(config: Any) -> Any:
    """An empty KV cache that grows, for a decoder of this configuration."""
    from transformers import DynamicCache

    return DynamicCache(config=config)


def crop_cache(cache: Any, tokens: int) -> bool:
    """Remove the last `tokens`. False if the cache cannot do that, and then it must not be used any more.

    A layer with a sliding window has already dropped what came before.
    """
    kept: int = cache.get_seq_length() - tokens
    try:
        cache.crop(-tokens)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return int(cache.get_seq_length()) == kept


def register_attention(name: str, attention: Function, mask: Function) -> None:
    """Make `attn_implementation=name` known; registering again replaces the functions."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)


def load_pretrained(auto: Any, name: str, *, unread: Collection[str] = (), **options: Any) -> Any:
    """`auto.from_pretrained`, but weights that the files lack are an error: they would be random.

    Weights that the model has no place for are ignored; `unread`: parts of names that may be missing too.
    Raises ValueError, and what transformers raises.
    """
    with _quiet():
        model, report = auto.from_pretrained(name, output_loading_info=True, trust_remote_code=False, **options)
    lacking = sorted(key for key in report["missing_keys"] if not any(part in key for part in unread))
    other = [entry if isinstance(entry, str) else str(entry[0]) for entry in report["mismatched_keys"]]
    for problem, keys in (("lack", lacking), ("have another shape of", sorted(other))):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(f"its files {problem} {', '.join(keys[:3])}{more}; download it again")
    return model


def new_model(auto: Any, hf_config: Any, **options: Any) -> Any:
    """`auto.from_config`: a model of this configuration with random weights."""
    return auto.from_config(hf_config, **options)


def reason(error: Exception) -> str:
    """Why a library could not build a model, on one line."""
    text = str(error)
    if "trust_remote_code" in text:
        return "it brings code of its own, which is never run here; wanted an architecture that the library knows"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])[:600] or type(error).__name__


def checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def linear_types() -> tuple[type[nn.Module], ...]:
    """Layers that multiply by a matrix: torch's, and GPT-2's transposed one."""
    from transformers.pytorch_utils import Conv1D

    return (nn.Linear, Conv1D)


def base_model_class(config: Any) -> type | None:
    """The class that AutoModel, and so LLaVA, builds for a configuration."""
    from transformers import MODEL_MAPPING

    model_class: Any = MODEL_MAPPING.get(type(config), None)
    return model_class if isinstance(model_class, type) else None


def image_processor_settings(name: str) -> dict[str, Any]:
    """preprocessor_config.json of a folder or a hub id; empty if there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return {}
    return dict(settings)


def hub_file(name: str, file: str) -> str | None:
    """The path of one file of a folder or a hub id. Raises what transformers raises if it cannot be had."""
    from transformers.utils.hub import cached_file

    path: str | None = cached_file(name, file)
    return path


def bare(name: str) -> str:
    """A vision tower's parameter name without the level of modules that some releases have (until 5.x)."""
    return name.removeprefix("vision_model.")


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
