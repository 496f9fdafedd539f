"""Everything the trainer needs of transformers that has changed between releases or is not documented.

The rule: other modules import only public names of transformers and never ask for its version. Differences between
releases are detected by inspecting the library, not by comparing version numbers. Run with 5.16.0, 5.23.0 and 5.24.0:

    cache argument      `past_key_values` until 5.23, `cache` since 5.24 (the old name warns until 5.40 and 6.0)
    checkpointing       `gradient_checkpointing_enable` until 5.x, `activation_checkpointing_enable` since
    loading report      mismatched keys are tuples in some releases, strings in others
    cache layers        their abstract methods: `get_max_cache_shape` became `get_max_length`; arguments differ as well
    attention           AttentionInterface and AttentionMaskInterface; a mask function must accept any keyword

Nothing here imports transformers before it is called.

Shapes: B rows, K key-value heads, Q new tokens, D head width.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

Function = Callable[..., Any]

LIBRARY_ERRORS = (
    StrictDataclassError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
)
"""What a model of transformers raises if its sizes do not fit, or if it is called in a way that it does not support"""


def cache_argument() -> str:
    """The name of `forward`'s argument for the KV cache in the installed release."""
    from transformers import GenerationMixin

    parameters = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def new_cache(config: Any) -> Any:
    """An empty, growing KV cache for a decoder of this configuration."""
    from transformers import DynamicCache

    return DynamicCache(config=config)


def crop_cache(cache: Any, tokens: int) -> bool:
    """Remove the last `tokens` tokens. False if the cache cannot do that; then it must not be used any more.

    Sliding windows and recurrent layers are the reasons: they have already dropped earlier tokens.
    """
    try:
        kept: int = cache.get_seq_length() - tokens
        cache.crop(-tokens)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return int(cache.get_seq_length()) == kept


class KeyValueStore(Protocol):
    """Keys and values of one forward that are kept outside transformers; `own_cache` passes them to it."""

    @property
    def num_before(self) -> int:
        """Keys before the first query"""

    @property
    def num_keys(self) -> int:
        """Keys that queries may see, their own included"""

    def update(self, layer: int, key_BKQD: torch.Tensor, value_BKQD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep what a layer has computed; returns the keys and values [B, K, num_keys, D] that it attends to."""


def own_cache(store: KeyValueStore, num_layers: int) -> Any:
    """A KV cache for one forward whose layers keep everything in `store`."""
    return _own_cache_class()(store, num_layers)


Rotate = Callable[[torch.Tensor], torch.Tensor]
"""Keys [K, Q, D] as they are after position 0 -> as they are after the positions that the function was made for"""


def rotary(base_model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], Rotate] | None:
    """The rotation of keys, by the decoder's own module and function: (any key, positions [Q]) -> Rotate.

    None if there are none of the usual names, or if the angles depend on the length of the sequence. Whether the
    decoder's layers use them is for the caller to try.
    """
    angles = getattr(base_model, "rotary_emb", None)
    apply = getattr(sys.modules[type(base_model).__module__], "apply_rotary_pos_emb", None)
    kind = str(getattr(angles, "rope_type", ""))
    if angles is None or apply is None or kind not in ("default", "linear", "llama3", "yarn"):
        return None
    is_unscaled = getattr(angles, "attention_scaling", 1.0) == 1

    def rotation(like: torch.Tensor, positions_Q: torch.Tensor) -> Rotate:
        cos, sin = angles(like, positions_Q[None])
        width = cos.shape[-1]
        scale = None if is_unscaled else angles(like, positions_Q[None, :1] * 0)[0]  # position 0 is not rotated

        def rotate(key_KQD: torch.Tensor) -> torch.Tensor:
            turned = key_KQD[None, ..., :width]
            turned = turned if scale is None else turned / scale
            _, rotated = apply(turned[:, :0], turned, cos, sin)  # of no queries
            return torch.cat([rotated[0], key_KQD[..., width:]], dim=-1) if width < key_KQD.shape[-1] else rotated[0]

        return rotate

    return rotation


@functools.cache
def _own_cache_class() -> type:
    from transformers import Cache
    from transformers.cache_utils import CacheLayerMixin

    class Layer(CacheLayerMixin):
        is_sliding = False

        def __init__(self, store: KeyValueStore, index: int) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.store, self.index, self.is_initialized = store, index, True

        def lazy_initialization(self, *arguments: Any, **options: Any) -> None: ...

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any, **options: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self.store.update(self.index, key_states, value_states)

        def get_mask_sizes(self, query: object) -> tuple[int, int]:
            return self.store.num_keys, 0

        def get_seq_length(self, *arguments: Any) -> int:
            return self.store.num_before

        def get_max_length(self) -> int:
            return -1

        get_max_cache_shape = get_max_length  # its name until 5.17

    class OwnCache(Cache):
        def __init__(self, store: KeyValueStore, num_layers: int) -> None:
            super().__init__(layers=[Layer(store, index) for index in range(num_layers)])

    return OwnCache


def register_attention(name: str, attention: Function, mask: Function) -> None:
    """Register the functions for `attn_implementation=name`; registering again replaces them."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)


def load_pretrained(auto: Any, name: str | None, *, unread: Collection[str] = (), **options: Any) -> Any:
    """`auto.from_pretrained`, but weights missing from the files are an error, since they would be random.

    Weights in the files that the model does not have are ignored. unread: parts of names that may be missing. Raises
    ValueError, and what transformers raises.
    """
    with quiet():
        model, report = auto.from_pretrained(name, output_loading_info=True, trust_remote_code=False, **options)
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in unread))
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None and missing and all(model.get_parameter(key) is head.weight for key in missing):
        raise ValueError(
            f"its files have no output head ({missing[0]}), so it is a base model, and its head would be random; "
            "expected a causal language model"
        )
    mismatched = [entry if isinstance(entry, str) else str(entry[0]) for entry in report["mismatched_keys"]]
    for problem, keys in (("lack", missing), ("have another shape of", sorted(mismatched))):
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
        return "it has code of its own, which is never run here; expected an architecture that the library knows"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])[:600] or type(error).__name__


def lacks_attention(error: Exception) -> bool:
    """Whether a model could not be built because its architecture does not have the attention that was asked for."""
    return "does not support an attention implementation" in str(error)


def checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def linear_types() -> tuple[type[nn.Module], ...]:
    """Linear layers: torch's, and GPT-2's transposed one."""
    from transformers.pytorch_utils import Conv1D

    return (nn.Linear, Conv1D)


def base_model_class(config: Any) -> type | None:
    """The class that AutoModel, and so LLaVA, builds for a configuration; None if there is none."""
    from transformers import MODEL_MAPPING

    model_class: Any = MODEL_MAPPING.get(type(config), None)
    return model_class if isinstance(model_class, type) else None


def llava_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of the LLaVA in a folder or on the hub, as transformers builds it."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    with torch.device("meta"):
        model = new_model(AutoModelForImageTextToText, config)
    return {path: tuple(parameter.shape) for path, parameter in model.named_parameters(remove_duplicate=False)}


def loads_as_stored(model: Any) -> bool:
    """Whether the loader only casts the weights of such a model: it renames, merges and keeps none in another type."""
    from transformers import conversion_mapping

    conversions: Function = conversion_mapping.get_checkpoint_conversion_mapping
    kept = [getattr(model, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")]
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    return not any(kept) and not is_quantized and conversions(model.config.model_type) is None


def image_processor_settings(name: str) -> dict[str, Any]:
    """preprocessor_config.json of a folder or a hub id; empty if there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return {}
    return dict(settings)


def hub_file(name: str, file: str, *, required: bool = True) -> str | None:
    """The path of one file of a folder or a hub id.

    Raises what transformers raises if there is no such folder or model, or, if it is `required`, no such file.
    """
    from transformers.utils.hub import cached_file

    path: str | None = cached_file(name, file, _raise_exceptions_for_missing_entries=required)
    return path


def bare(name: str) -> str:
    """A vision tower's parameter name without the module level `vision_model`, which some releases have (until 5.x)."""
    return name.removeprefix("vision_model.")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log of transformers, which repeats on many lines what its exceptions say."""
    from transformers.utils import logging as transformers_logging

    verbosity, shows_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
