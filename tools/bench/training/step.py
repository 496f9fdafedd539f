"""Training as users run it: `dsvl-train run` on a build of generated images, read from the log that the run writes.

Each configuration is a run of its own, from random weights of the real sizes. Its first steps load kernels and fill
the loader's workers, so they do not count.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tools.bench.data import ROOT, make_images
from tools.bench.training.goals import Goal
from tools.bench.training.packing import compiled
from trainer.training.metrics import read_journal

SAMPLES = 512
ANSWER_WORDS = 24  # with the question and the template about 190 tokens of the example tokenizer
LENGTH = 4096
WARM_UP = 5
EXPECTED_WAIT = 0.02

VIT_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": LENGTH,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LARGE = {
    "model": {
        "encoder": {"kind": "hf", "config": VIT_L_336},
        "projector": {"kind": "mlp"},
        "decoder": {"config": LLAMA_1B},
    },
    "precision": "bf16",
    "batch": {"global_batch_size": 16, "micro_batch_size": 2, "workers": 4},
}
COLUMNS = (
    "model",
    "attention",
    "precision",
    "rows, at once",
    "step, s",
    "tokens/s",
    "trained tokens/s",
    "images/s",
    "padding",
    "MFU",
    "data wait",
    "peak memory",
)
LORA = {"learning_rates": {"projector": 1e-3}, "lora": {"decoder": {}}}
FULL = {"learning_rates": {"encoder": 2e-6, "projector": 1e-3, "embeddings": 2e-5, "decoder": 2e-5}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    title: str
    tree: Mapping[str, Any]


CONFIGURATIONS = {
    "tiny": Configuration(
        title="tiny decoder + tiny ViT, full",
        tree={
            "model": {
                "encoder": {"kind": "tiny"},
                "projector": {"kind": "mlp"},
                "decoder": {"preset": "tiny_llama"},
            },
            "learning_rates": {"encoder": 1e-3, "projector": 1e-3, "embeddings": 1e-3, "decoder": 1e-3},
            "precision": "fp32",
            "batch": {"global_batch_size": 2, "micro_batch_size": 1, "workers": 1},
        },
    ),
    "lora": Configuration(title="1.1B Llama + ViT-L-336, LoRA", tree={**LARGE, **LORA}),
    "full": Configuration(title="1.1B Llama + ViT-L-336, full", tree={**LARGE, **FULL}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Over the steps of a run that count."""

    config: Mapping[str, Any]
    """The run's, resolved"""
    seconds: float
    """Of a step"""
    tokens: float
    """A second, as all that follow"""
    trained_tokens: float
    images: float
    padding: float
    wait: float
    mfu: float | None
    memory: int


def bench_step(
    scratch: Path,
    names: Sequence[str],
    *,
    device: str,
    ranks: int,
    build: str | None,
    steps: int,
    settings: Sequence[str],
) -> tuple[list[Goal], bool]:
    """The goals, and whether all runs went well.

    build: one that was made elsewhere, by make_step_build. settings: `a.b=value` for all runs.
    """
    torch.cuda.empty_cache()  # what was measured before may have left some
    if build is None:
        build = str(make_step_build(scratch / "step"))
    print(
        f"\n{steps} steps after {WARM_UP} that do not count; sequences of {LENGTH:,}; ZeRO-2, {ranks} x {device}"
        f"{'; ' * bool(settings)}{' '.join(settings)}\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    goals, well = [], True
    for name in names:
        title = CONFIGURATIONS[name].title
        measured = measure(scratch, CONFIGURATIONS[name].tree, device, ranks, build, steps, settings)
        if measured is None:
            well = False
            print(f"| {title} | the run failed; stderr has what it said |", flush=True)
        else:
            _print(title, measured)
        if device != "cpu":
            wait = measured.wait if measured else math.nan
            goals.append(Goal(what=f"data wait, {title}", got=wait, expected=EXPECTED_WAIT, unit="%"))
    return goals, well


def measure(
    scratch: Path,
    tree: Mapping[str, Any],
    device: str,
    ranks: int,
    build: str,
    steps: int,
    settings: Sequence[str],
) -> Measured | None:
    """Train, and read the run's log; None if the run failed, whose words are then passed on."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:  # a checkpoint of a full run has 20 GB
        out = Path(folder) / "run"
        path = Path(folder) / "train.yaml"
        whole = {
            **tree,
            "build": build,
            "out": str(out),
            "batch": {**tree["batch"], "max_length": LENGTH},
            "zero": {"stage": 2},
            "schedule": {"steps": WARM_UP + steps},
            "checkpoints": {"every": 0},
            "logging": {"every": 1, "tensorboard": False},
        }
        path.write_text(yaml.safe_dump(whole), encoding="utf-8")
        command = [sys.executable, "-m", "trainer.cli", "run", "--config", str(path)]
        command += ["--num-gpus", str(ranks)] * (ranks > 1)
        hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if device == "cpu" else {}
        done = subprocess.run(
            [*command, *(f"--set={setting}" for setting in settings)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | hidden,
        )
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr, flush=True)
            return None
        config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
        return summary(config, [entry for entry in read_journal(out) if entry["kind"] == "train"][WARM_UP:])


def summary(config: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Measured:
    """Rates over all the time of the steps, not means of rates."""
    seconds = sum(entry["seconds_per_step"] for entry in entries)

    def rate(name: str) -> float:
        return float(sum(entry[name] * entry["seconds_per_step"] for entry in entries) / seconds)

    tokens = rate("tokens_per_second")
    positions = sum(
        entry["tokens_per_second"] * entry["seconds_per_step"] / (1 - entry["padding_share"]) for entry in entries
    )
    return Measured(
        config=config,
        seconds=seconds / len(entries),
        tokens=tokens,
        trained_tokens=rate("trained_tokens_per_second"),
        images=rate("images_per_second"),
        padding=1 - tokens * seconds / positions,
        wait=rate("data_wait_share"),
        mfu=None if entries[0]["mfu"] is None else rate("mfu"),
        memory=max(entry["memory_bytes"] for entry in entries),
    )


def make_step_build(folder: Path) -> Path:
    """A build of LLaVA-like samples of one 336-pixel image, 576 tokens, each."""
    make_images(folder, SAMPLES, ANSWER_WORDS)
    blend = {
        "tokenizer": str(ROOT / "examples/tokenizer"),
        "image_tokens": 576,
        "image": {"store": "resized", "size": 336},
        "limits": {"max_length": LENGTH},
        "datasets": [{"name": "bench", "adapter": "llava", "root": str(folder), "samples": "all"}],
    }
    compiled(blend, folder / "compiled")
    return folder / "compiled/build"


def _print(title: str, found: Measured) -> None:
    batch = found.config["batch"]
    cells = (
        title,
        found.config["model"]["attention"],
        found.config["precision"],
        f"{batch['global_batch_size']}, {batch['micro_batch_size']}",
        f"{found.seconds:.2f}",
        *(f"{value:,.0f}" for value in (found.tokens, found.trained_tokens, found.images)),
        f"{found.padding:.1%}",
        "" if found.mfu is None else f"{found.mfu:.1%}",
        f"{found.wait:.1%}",
        f"{found.memory / 2**30:,.1f} GiB",
    )
    print(f"| {' | '.join(cells)} |", flush=True)
