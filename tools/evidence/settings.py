"""What is compared, and how long it trains. Every setting trains on the same build, with the same seeds and steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

IMAGE_SIZE = 84
"""6 x 6 patches of DINOv2"""
LAYER = 9
"""Of DINOv2's 12, whose output is read: what pixels show is more plainly there than in the last"""
ATTENTIONS: tuple[Literal["causal", "mmca"], ...] = ("causal", "mmca")
PROJECTORS: tuple[Literal["pixel_shuffle", "perceiver"], ...] = ("pixel_shuffle", "perceiver")


PROJECTOR_RATES = {"pixel_shuffle": (3e-3, 3e-3), "perceiver": (1e-4, 3e-4)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """image_size: pixels. image_tokens: of an image. sequences: of a step. length: tokens of each. projector_rates: in
    the first stage and in the second. questions: held-out records of each dataset that are asked."""

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    tokenizer: Path
    image_size: int = IMAGE_SIZE
    image_tokens: int = 9
    heads: int = 12
    held_out: float = 0.2
    sequences: int = 2
    length: int = 256
    projector_steps: int = 20
    lora_steps: int = 80
    projector_rates: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(PROJECTOR_RATES))
    lora_rate: float = 1e-3
    rank: int = 16
    seeds: int = 3
    questions: int = 60
    precision: str = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    attention: Literal["causal", "mmca"]
    projector: Literal["pixel_shuffle", "perceiver"]
    seed: int

    @property
    def name(self) -> str:
        return f"{self.attention}-{self.projector}-{self.seed}"


def settings(plan: Plan) -> Iterator[Setting]:
    """Seed by seed, so that what is finished early is a complete comparison."""
    for seed in range(plan.seeds):
        for attention in ATTENTIONS:
            for projector in PROJECTORS:
                yield Setting(attention=attention, projector=projector, seed=seed)


def projector_stage(plan: Plan, setting: Setting, *, build: Path, out: Path) -> dict[str, Any]:
    """train.yaml of the first stage: only the projector is trained."""
    projector: dict[str, Any] = {"kind": setting.projector}
    if setting.projector == "perceiver":
        projector |= {"num_queries": plan.image_tokens, "num_heads": plan.heads}
    model = {
        "encoder": plan.encoder,
        "projector": projector,
        "decoder": plan.decoder,
        "attention": setting.attention,
    }
    rates = {"projector": plan.projector_rates[setting.projector][0]}
    stage = _stage(plan, setting, build=build, out=out, model=model, rates=rates, steps=plan.projector_steps)
    return stage | {"evaluation": {"every": plan.projector_steps}}


def lora_stage(plan: Plan, setting: Setting, *, build: Path, out: Path, start: Path) -> dict[str, Any]:
    """train.yaml of the second stage: LoRA in the decoder, and the projector, from the export of the first."""
    rates = {"projector": plan.projector_rates[setting.projector][1], "lora": plan.lora_rate}
    model = {"init_from": str(start)}
    stage = _stage(plan, setting, build=build, out=out, model=model, rates=rates, steps=plan.lora_steps)
    return stage | {"lora": {"decoder": {"rank": plan.rank, "alpha": 2.0 * plan.rank}}}


def _stage(
    plan: Plan,
    setting: Setting,
    *,
    build: Path,
    out: Path,
    model: dict[str, Any],
    rates: dict[str, float],
    steps: int,
) -> dict[str, Any]:
    return {
        "build": str(build),
        "out": str(out),
        "seed": setting.seed,
        "precision": plan.precision,
        "model": model,
        "learning_rates": rates,
        "batch": {
            "global_batch_size": plan.sequences,
            "micro_batch_size": plan.sequences,
            "max_length": plan.length,
            "workers": 0,
        },
        "schedule": {"steps": steps},
        "checkpoints": {"every": 0},
        "logging": {"every": 5, "tensorboard": False},
    }
