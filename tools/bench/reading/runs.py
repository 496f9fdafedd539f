"""Training and evaluating as users do it: `dsvl-train run`, `export` and `eval`, one after the other, on one core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.bench.data import ROOT
from tools.bench.reading.pages import SIDE
from trainer.training.metrics import read_journal

NEW_MODEL: dict[str, Any] = {
    "attention": "mmca",
    "encoder": {
        "kind": "tiny",
        "config": {"image_size": SIDE, "patch_size": 8, "width": 64, "layers": 3, "heads": 2},
        "layer": -1,
        "mean": [1.0, 1.0, 1.0],  # so that white, most of a page, is zero
        "std": [0.3, 0.3, 0.3],
    },
    "projector": {"kind": "pixel_shuffle"},
    "decoder": {
        "config": {
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "initializer_range": 0.08,  # about 1 / sqrt(hidden_size)
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
    },
}
"""A million random parameters"""
BATCH = 32
RATE = 1e-3
_ONE_CORE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run did."""

    out: Path
    cpu_seconds: float
    """Of the whole command, its start included"""
    tokens: int
    """All positions that were trained on, those of tiles included"""
    images: int
    """Tiles that the encoder saw"""


def train(out: Path, build: Path, model: dict[str, Any], *, steps: int, seed: int = 1) -> Trained:
    """Train all parts of `model` for `steps` steps of BATCH samples. Ends the program with stderr if the run fails."""
    config = {
        "build": str(build),
        "out": str(out),
        "seed": seed,
        "model": model,
        "precision": "fp32",
        "learning_rates": dict.fromkeys(("encoder", "projector", "embeddings", "decoder"), RATE),
        "batch": {"global_batch_size": BATCH, "micro_batch_size": BATCH, "packed": False, "workers": 0},
        "optimizer": {"betas": [0.9, 0.98]},
        "schedule": {"steps": steps, "kind": "cosine", "min_lr_ratio": 0.1},
        "zero": {"stage": 0},
        "checkpoints": {"every": 0},
        "logging": {"every": 20, "tensorboard": False},
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    start = _children_s()
    _command("run", "--config", str(path))
    cpu_seconds = _children_s() - start
    tokens = images = 0.0
    before = 0
    for entry in (entry for entry in read_journal(out) if entry["kind"] == "train"):
        interval = entry["seconds_per_step"] * (entry["step"] - before)
        tokens += entry["tokens_per_second"] * interval
        images += entry["images_per_second"] * interval
        before = entry["step"]
    return Trained(out=out, cpu_seconds=cpu_seconds, tokens=round(tokens), images=round(images))


def export(run: Trained, out: Path) -> Path:
    """The run's model as a folder that another run can begin with."""
    _command("export", "--model", str(run.out), "--out", str(out))
    return out


def exact_match(run: Trained) -> tuple[float, int]:
    """The share of right answers to the held-out questions, and how many these are."""
    output = _command(
        "eval",
        "--model",
        str(run.out),
        "--no-loss",
        "--json",
        "--batch",
        "32",
        "--max-new-tokens",
        "8",
        "--workers",
        "0",
    )
    (score,) = json.loads(output.strip().splitlines()[-1])["scores"]
    return score["metrics"]["exact_match"], score["num_answers"]


def _children_s() -> float:
    """CPU seconds of all commands that have ended: other work on the machine does not count."""
    times = os.times()
    return times.children_user + times.children_system


def _command(*arguments: str) -> str:
    """stdout of a `dsvl-train` command."""
    command = [sys.executable, "-m", "trainer.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | _ONE_CORE)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done.stdout
