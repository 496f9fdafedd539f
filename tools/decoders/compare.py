"""One decoder against its oracle: three training steps, with the losses and all gradients of each."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from dst.errors import ConfigError, DsvlError
from shards.format.branches import join_branches
from shards.loader.fields import IGNORE
from tests.support.branch_batches import batch_of, sample_of
from tests.support.model_batches import CONFIG, IMAGE, IMAGE_IDS, SAMPLES, facts, layout, random_images
from tools.decoders.oracle import Oracle, in_float64
from trainer.config.model import DecoderConfig, ModelConfig
from trainer.model.build_model import build_model, check_model
from trainer.model.vision_chat import VisionChatModel

Attention = Literal["causal", "mmca"]
Verdict = Literal["exact", "refused", "WRONG", "TRACEBACK"]


class Run(NamedTuple):
    """A way of training."""

    attention: Attention
    packed: bool = False
    branches: bool = False


RUNS = {
    "causal, packed": Run("causal", packed=True),
    "causal, `packed: false`": Run("causal"),
    "MMCA, packed": Run("mmca", packed=True),
    "causal, branches": Run("causal", branches=True),
}
STEPS = 3
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}
"""Most difference of a loss, relative to it, and of a gradient, relative to that of all parameters"""
SINGLE_PRECISION = ("inkling2_loop_text", "inkling2_text", "nemotron_h", "xglm")
"""Model types that transformers cannot compute in float64"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    verdict: Verdict
    text: str
    """The refusal, the difference or the error, on one line"""


def compare(config: dict[str, Any], run: Run) -> Outcome:
    """Train a decoder of these sizes and compare it with its oracle."""
    try:
        model = _model(config, run)
    except DsvlError as error:
        text = str(error)
        return Outcome(verdict="refused" if "\n" not in text else "TRACEBACK", text=text)
    except Exception as error:  # whatever is wrong with one architecture, the others are still compared
        return Outcome(verdict="TRACEBACK", text=_origin(error))
    try:
        with in_float64():
            difference = _train(model, run)
    except Exception as error:
        return Outcome(verdict="TRACEBACK", text=_origin(error))
    verdict: Verdict = "exact" if difference <= TOLERANCE[_precision(config)] else "WRONG"
    return Outcome(verdict=verdict, text=f"differs by {difference:.0e}")


def _model(config: dict[str, Any], run: Run) -> VisionChatModel:
    """Built as a run builds it, with weights large enough for a mistake to show. Raises ConfigError."""
    parts: dict[str, Any] = {"encoder": CONFIG.encoder, "projector": CONFIG.projector, "attention": run.attention}
    try:
        model = _built(ModelConfig(decoder=DecoderConfig(config=config), **parts))
    except ConfigError as error:
        if "attn_implementation" not in str(error):
            raise
        model = _built(ModelConfig(decoder=DecoderConfig(config=config, attn_implementation="eager"), **parts))
    if run.packed:
        model.expect_packed()
    if run.branches:
        model.expect_branches()
    model = model.to(_precision(config))
    _compute_experts_in_float64(model.decoder)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.train()


def _built(config: ModelConfig) -> VisionChatModel:
    build = facts(max_length=32)
    if problems := check_model(config, build):
        raise ConfigError(problems)
    return build_model(config, build)


def _precision(config: dict[str, Any]) -> torch.dtype:
    return torch.float32 if config["model_type"] in SINGLE_PRECISION else torch.float64


def _compute_experts_in_float64(decoder: Any) -> None:
    """The kernel of mixtures of experts has no float64."""
    if hasattr(decoder, "set_experts_implementation"):
        decoder.set_experts_implementation("eager")


def _train(model: VisionChatModel, run: Run) -> float:
    """The largest difference in three steps."""
    oracle = Oracle(model)
    if run.branches:
        samples, batch, images = _branches()
    else:
        samples, images = SAMPLES, random_images(3)
        sequences = [[SAMPLES[0], SAMPLES[1]], [SAMPLES[2]]] if run.packed else [[sample] for sample in SAMPLES]
        batch = {**layout(sequences), "images": images}
    worst = 0.0
    for _ in range(STEPS):
        loss = model(**batch).total
        expected = oracle(samples, images)
        for each, total in ((model, loss), (oracle, expected)):
            each.zero_grad()
            total.backward()
        worst = max(worst, ((loss - expected).abs() / expected.abs()).item(), _difference(model, oracle))
        for each in (model, oracle):
            _step(each)
    return worst


def _branches() -> tuple[list[list[int]], dict[str, torch.Tensor], torch.Tensor]:
    """Two samples that differ behind their image, apart and as branches of one; and the image of each."""
    beginning = [1, IMAGE]
    records = [[*beginning, 5, 6, 7], [*beginning, 8, 9]]
    joined = join_branches([np.array([ids, [IGNORE] * 2 + ids[2:]], np.int32) for ids in records], len(beginning))
    batch = batch_of([[sample_of(joined)]], image_numbers=[0])
    return [[1, *IMAGE_IDS, *ids[2:]] for ids in records], batch, batch["images"][[0, 0]]


def _difference(model: torch.nn.Module, oracle: torch.nn.Module) -> float:
    """Of all gradients, the largest difference relative to the norm of all together; infinite if one is missing."""
    ours, theirs = (
        {name: parameter.grad for name, parameter in each.named_parameters() if parameter.grad is not None}
        for each in (model, oracle)
    )
    whole = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    worst = 0.0
    for name in ours.keys() | theirs.keys():
        none = torch.zeros((), dtype=whole.dtype)
        worst = max(worst, ((ours.get(name, none) - theirs.get(name, none)).norm() / whole).item())
    return worst


def _step(model: torch.nn.Module) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    whole = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    torch.optim.SGD(trained, lr=0.01 / whole.item()).step()


def _origin(error: Exception) -> str:
    """The error and the innermost line of this project that it passed."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__} at {frame.filename.rpartition('/')[2]}:{frame.lineno}: {text}"
