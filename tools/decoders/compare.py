"""One decoder against its oracle: three training steps, with the losses and all gradients of each."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dst.errors import DsvlError
from tests.support.model_batches import CONFIG, SAMPLES, facts, layout, random_images
from tools.decoders.oracle import Oracle, in_float64
from trainer.config.model import DecoderConfig, ModelConfig
from trainer.model.build_model import build_model, check_model
from trainer.model.vision_chat import VisionChatModel

Attention = Literal["causal", "mmca"]
Verdict = Literal["exact", "refused", "WRONG", "TRACEBACK"]
STEPS = 3
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}
"""Most difference of a loss, relative to it, and of a gradient, relative to that of all parameters"""
SINGLE_PRECISION = ("inkling2_loop_text", "inkling2_text", "xglm")
"""Model types that transformers cannot compute in float64"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    verdict: Verdict
    text: str
    """The refusal, the difference or the error, on one line"""


def compare(config: dict[str, Any], attention: Attention, *, packed: bool) -> Outcome:
    """Train a decoder of these sizes and compare it with its oracle."""
    try:
        model = _model(config, attention, packed=packed)
    except DsvlError as error:
        text = str(error)
        return Outcome(verdict="refused" if "\n" not in text else "TRACEBACK", text=text)
    except Exception as error:  # whatever is wrong with one architecture, the others are still compared
        return Outcome(verdict="TRACEBACK", text=_origin(error))
    try:
        with in_float64():
            difference = _train(model, packed=packed)
    except Exception as error:
        return Outcome(verdict="TRACEBACK", text=_origin(error))
    verdict: Verdict = "exact" if difference <= TOLERANCE[_precision(config)] else "WRONG"
    return Outcome(verdict=verdict, text=f"differs by {difference:.0e}")


def _model(config: dict[str, Any], attention: Attention, *, packed: bool) -> VisionChatModel:
    """Built as a run builds it, with weights large enough for a mistake to show. Raises ConfigError."""
    from dst.errors import ConfigError

    last: DsvlError | None = None
    for kernel in ("sdpa", "eager"):
        decoder = DecoderConfig(config=config, attn_implementation=kernel)
        model_config = ModelConfig(
            encoder=CONFIG.encoder, projector=CONFIG.projector, decoder=decoder, attention=attention
        )
        if problems := check_model(model_config, facts(max_length=32)):
            raise ConfigError(problems)
        try:
            model = build_model(model_config, facts(max_length=32)).to(_precision(config))
        except ConfigError as error:
            last = error
            if "attn_implementation" not in str(error):
                raise
        else:
            if packed:
                model.expect_packed()
            break
    else:
        raise last
    _compute_experts_in_float64(model.decoder)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.train()


def _precision(config: dict[str, Any]) -> torch.dtype:
    return torch.float32 if config["model_type"] in SINGLE_PRECISION else torch.float64


def _compute_experts_in_float64(decoder: Any) -> None:
    """The kernel of mixtures of experts has no float64."""
    if hasattr(decoder, "set_experts_implementation"):
        decoder.set_experts_implementation("eager")


def _train(model: VisionChatModel, *, packed: bool) -> float:
    """The largest difference in three steps. Raises AssertionError if the oracle cannot follow."""
    oracle = Oracle(model)
    sequences = [[SAMPLES[0], SAMPLES[1]], [SAMPLES[2]]] if packed else [[sample] for sample in SAMPLES]
    batch, images = layout(sequences), random_images(3)
    worst = 0.0
    for _ in range(STEPS):
        loss = model(**batch, images=images).total
        expected = oracle(SAMPLES, images)
        for each, total in ((model, loss), (oracle, expected)):
            each.zero_grad()
            total.backward()
        worst = max(worst, ((loss - expected).abs() / expected.abs()).item(), _difference(model, oracle))
        for each in (model, oracle):
            _step(each)
    return worst


def _difference(model: torch.nn.Module, oracle: torch.nn.Module) -> float:
    """Of all gradients, the largest difference relative to the norm of all together; infinite if one is missing."""
    ours, theirs = (
        {name: parameter.grad for name, parameter in each.named_parameters() if parameter.grad is not None}
        for each in (model, oracle)
    )
    whole = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    worst = 0.0
    for name in ours.keys() | theirs.keys():
        size = [torch.zeros(()) if each is None else each for each in (ours.get(name), theirs.get(name))]
        worst = max(worst, ((size[0] - size[1]).norm() / whole).item())
    return worst


def _step(model: torch.nn.Module) -> None:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    whole = torch.stack([gradient.norm() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad / whole


def _origin(error: Exception) -> str:
    """The error and the innermost line of this project that it passed."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__} at {frame.filename.rpartition('/')[2]}:{frame.lineno}: {text}"
