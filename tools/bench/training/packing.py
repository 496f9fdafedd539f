"""How full packed sequences are on the sample blend, against unpacked batches of the same draws.

The blend of examples/blend.yaml is built twice: as it is, and with all amounts multiplied so that its epoch fills a
packing window. Windows end with the epoch: no more than the tokens of a small epoch over
whole sequences can be used.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import shards
from shards import Build
from shards.loader import Loader
from shards.sampling.packed_sequences import WINDOW
from tools.bench.data import ROOT
from tools.bench.training.goals import Goal

LENGTHS = (2048, 4096, 8192)
BATCHES = (4, 16, 64)
WINDOWS = 4
"""Draws that are looked at, about, in windows"""
GOAL_LENGTH = 4096
EXPECTED = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a loader's epochs hold."""

    samples: int
    sequences: int
    tokens: int
    capacity: int
    """tokens that the sequences have room for"""

    @property
    def share(self) -> float:
        return self.tokens / self.capacity


def bench_packing(scratch: Path) -> list[Goal]:
    small = sample_build(scratch / "as-it-is", 1)
    times = max(1, WINDOW // _draws(small))
    large = sample_build(scratch / "multiplied", times)
    print(
        f"\nexamples/blend.yaml draws {_draws(small)} samples an epoch; with its amounts multiplied by {times}, "
        f"{_draws(large):,}. Sequences are packed in windows of {WINDOW:,} draws that end with the epoch.\n"
    )
    print("| | draws of an epoch | draws | sequences | tokens used | padding |\n|---|---|---|---|---|---|")
    goals = []
    for length in LENGTHS:
        for build in (small, large):
            use = sequence_use(build, _epochs(build), max_length=length)
            _print(f"packed, {length:,} tokens", build, use)
            if length == GOAL_LENGTH:
                what = f"tokens used, packed at {length:,}, {_draws(build):,} draws an epoch"
                goals.append(Goal(what=what, got=use.share, expected=EXPECTED, at_least=True, unit="%"))
    for batch in BATCHES:
        use = sequence_use(large, _epochs(large), max_length=max(LENGTHS), padded_batch=batch)
        _print(f"unpacked, batches of {batch} padded to their longest", large, use)
    return goals


def sequence_use(build: Build, epochs: int, *, max_length: int, padded_batch: int | None = None) -> Use:
    """What the loader yields in `epochs` epochs; sequences of unpacked batches without a sample do not count."""
    loader = Loader(
        build,
        batch_size=padded_batch or 1,
        max_length=max_length,
        packed=padded_batch is None,
        epochs=epochs,
        decode="none",
    )
    samples = sequences = tokens = capacity = 0
    for batch in loader:
        filled = sum(bool(sequence) for sequence in batch.samples)
        samples += sum(map(len, batch.samples))
        sequences += filled
        tokens += int((batch.segment_ids != 0).sum())
        capacity += filled * batch.input_ids.shape[1]
    return Use(samples=samples, sequences=sequences, tokens=tokens, capacity=capacity)


def sample_build(folder: Path, times: int) -> Build:
    """The sample blend with every dataset's amount multiplied, compiled."""
    blend = yaml.safe_load((ROOT / "examples/blend.yaml").read_text(encoding="utf-8"))
    blend["tokenizer"] = str(ROOT / "examples" / blend["tokenizer"])
    blend["total"] *= times
    for dataset in blend["datasets"]:
        dataset["root"] = str(ROOT / "examples" / dataset["root"])
        _multiply(dataset, times)
    return compiled(blend, folder)


def compiled(blend: dict[str, Any], folder: Path) -> Build:
    """A blend, compiled by the command."""
    folder.mkdir(parents=True)
    path = folder / "blend.yaml"
    path.write_text(yaml.safe_dump(blend), encoding="utf-8")
    command = [sys.executable, "-m", "preprocess.cli", "build", "--blend", str(path), "--out", str(folder / "build")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    return shards.open(str(folder / "build"))


def _multiply(dataset: dict[str, Any], times: int) -> None:
    """A dataset with a weight is multiplied with the total."""
    if dataset.get("samples") == "all":
        del dataset["samples"]
        dataset["epochs"] = 1
    for amount in ("samples", "epochs"):
        if amount in dataset:
            dataset[amount] *= times


def _draws(build: Build) -> int:
    return len(build.order())


def _epochs(build: Build) -> int:
    return round(WINDOWS * WINDOW / _draws(build))


def _print(what: str, build: Build, use: Use) -> None:
    cells = f"{what} | {_draws(build):,} | {use.samples:,} | {use.sequences:,} | {use.share:.1%} | {1 - use.share:.1%}"
    print(f"| {cells} |", flush=True)
