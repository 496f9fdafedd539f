"""A fingerprint of a run's frozen weights: a few elements of each, kept in checkpoints next to the trained weights.

Rule: frozen weights are loaded again when a run resumes and when it is exported. If a hub or a folder has other weights
by then, that is an error. Elements are compared with a tolerance of 1 percent: computed ones (embeddings of new tokens)
may differ in the last bit between machines. For quantized weights the elements are those of the original ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

_NUM_ELEMENTS = 8
_ORIGINAL = "original_elements"
"""Attribute of a module whose weight was quantized"""


def frozen_elements(model: nn.Module) -> dict[str, list[float]]:
    """Frozen parameter -> elements evenly spread over it; without parameters on the meta device."""
    originals = {
        f"{name}.weight": elements
        for name, module in model.named_modules()
        if (elements := getattr(module, _ORIGINAL, None)) is not None
    }
    return {
        name: originals[name] if name in originals else _spread(parameter.detach())
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and parameter.numel() and not parameter.is_meta
    }


def remember_elements(module: nn.Module, weight: torch.Tensor) -> None:
    """Let the fingerprint have the elements of `weight` instead of those of the module's quantized weight."""
    setattr(module, _ORIGINAL, _spread(weight.detach()))


def changed_parameters(model: nn.Module, fingerprint: Mapping[str, Sequence[float]]) -> list[str]:
    """Names of the model's frozen parameters that differ from what `frozen_elements` returned."""
    current = frozen_elements(model)
    return [name for name in current if name not in fingerprint or not _alike(current[name], fingerprint[name])]


def is_unchanged(name: str, value: torch.Tensor, fingerprint: Mapping[str, Sequence[float]]) -> bool:
    """Whether the frozen parameter of this name had this value when `frozen_elements` was called."""
    return not value.numel() or (name in fingerprint and _alike(_spread(value), fingerprint[name]))


def _spread(parameter: torch.Tensor) -> list[float]:
    last = parameter.numel() - 1
    indices = [number * last // (_NUM_ELEMENTS - 1) for number in range(_NUM_ELEMENTS)]
    return [float(value) for value in parameter.flatten()[indices]]


def _alike(current: Sequence[float], recorded: Sequence[float]) -> bool:
    return torch.allclose(torch.tensor(current), torch.tensor(recorded), rtol=0.01, atol=1e-7)
