"""Everything the trainer needs of bitsandbytes: frozen linear layers in 4 bits. Run with 0.50.2, on a CPU.

Its weights are quantized by NF4 in blocks of 64, and the blocks' scales are quantized as well (double quantization), as
in QLoRA (https://arxiv.org/abs/2305.14314). `Linear4bit` is a torch Linear, so peft adapts it as any other.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import nn

_PACKAGE = "bitsandbytes"  # an extra of its own, so not imported by name


def quantized(layer: nn.Linear, *, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """The layer in 4 bits, on this device, which computes in `dtype`."""
    library = importlib.import_module(_PACKAGE)
    new: Any = library.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    new.weight = library.nn.Params4bit(
        layer.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4", module=new
    )
    new.bias = layer.bias
    plain: nn.Linear = new.to(device)
    return plain


def num_weights(parameter: nn.Parameter) -> int:
    """Elements of a parameter; of a quantized one, of what it was made from."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
