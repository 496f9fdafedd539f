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
    """A sum of the bits of each parameter and buffer as integers, each row times a number of its own.

    So rows that are exchanged change it too; values that are exchanged within a row do not.
    """
    sums = list(_sums(model))
    return tuple(torch.stack([each.to(sums[0].device) for each in sums]).tolist()) if sums else ()


def _sums(model: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        bits = tensor.detach()
        if bits.is_complex():
            bits = torch.view_as_real(bits)
        rows = bits.reshape(len(bits) if bits.ndim > 1 else bits.numel(), -1).contiguous()
        sums = rows.view(_INTEGERS[rows.element_size()]).sum(1, dtype=torch.int64)
        yield (sums * torch.arange(1, 2 * len(sums), 2, device=sums.device)).sum()
