"""A number of a model's weights, which changes when any of them does, however they were changed.

Training and loading write into weights in ways that torch does not count (`.data`), so the weights themselves are read:
once for each batch of prompts, where each new token reads them as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of an element"""


@torch.no_grad()
def weights_mark(model: nn.Module) -> tuple[int, ...]:
    """The sums of the bits of all parameters and buffers, as integers; one for each."""
    sums = list(_sums(model))
    return tuple(torch.stack([each.to(sums[0].device) for each in sums]).tolist()) if sums else ()


def _sums(model: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        bits = tensor.detach().flatten()
        if bits.is_complex():
            bits = torch.view_as_real(bits).flatten()
        yield bits.view(_INTEGERS[bits.element_size()]).sum(dtype=torch.int64)
