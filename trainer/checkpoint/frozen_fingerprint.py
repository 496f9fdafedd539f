"""What a run's frozen weights were: a few elements of each, kept in its checkpoints, which hold trained weights alone.

Rule: frozen weights are read anew where a run goes on and where it is exported. If a hub or a folder gives others by
then, that is an error and not another model. Elements are compared by 1 percent: what is computed on the way (rows of
new tokens) may differ in its last bit from machine to machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

_ELEMENTS = 8


def frozen_elements(model: nn.Module) -> dict[str, list[float]]:
    """Parameter that does not learn -> elements evenly spread over it."""
    return {
        name: _spread(parameter.detach())
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and parameter.numel()
    }


def other_weights(model: nn.Module, kept: Mapping[str, Sequence[float]]) -> list[str]:
    """Frozen parameters of the model that are not those that were kept."""
    found = frozen_elements(model)
    return [name for name in found if name not in kept or not _alike(found[name], kept[name])]


def _spread(parameter: torch.Tensor) -> list[float]:
    last = parameter.numel() - 1
    places = [number * last // (_ELEMENTS - 1) for number in range(_ELEMENTS)]
    return [float(value) for value in parameter.flatten()[places]]


def _alike(found: Sequence[float], kept: Sequence[float]) -> bool:
    return torch.allclose(torch.tensor(found), torch.tensor(kept), rtol=0.01, atol=1e-7)
