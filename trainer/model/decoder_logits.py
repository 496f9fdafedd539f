"""A decoder's logits: how the head's output becomes them, and when two computations agree."""

from __future__ import annotations

import torch

from trainer.model.decoder_protocol import HfConfig


def nearly_equal(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal within the rounding of the type."""
    tolerance = 1e-4 if actual.dtype in (torch.float32, torch.float64) else 0.02
    return bool((actual - expected).float().norm() <= tolerance * expected.float().norm())


def finish_logits(hf_config: HfConfig, logits: torch.Tensor) -> torch.Tensor:
    """Scale the head's output as some models do: Granite divides, Cohere multiplies, Gemma 2 caps."""
    if (divisor := getattr(hf_config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(hf_config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(hf_config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
