"""Optimizer steps over one and the same data: all records of a build, forward, backward, and an update of all weights.

    python one_step.py '{"build": "...", "attention": "mmca", "precision": "fp32", "steps": 3}'

It uses only interfaces that older commits have too, so that it can run with the packages of another checkout. The last
line is JSON: seconds of each step, peak memory, and the images that went through the encoder in one step.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import shards
from shards.loader import Batch, Loader
from trainer.config.run import config_from
from trainer.training.assemble import assemble

M_MMAP_THRESHOLD = -3  # glibc's malloc.h

VIT_6M = {
    "model_type": "clip_vision_model",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "image_size": 336,
    "patch_size": 14,
}
LLAMA_30M = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 9,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SIZES = {
    "30M": (LLAMA_30M, VIT_6M),
    "0.5M": (
        LLAMA_30M
        | {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"num_key_value_heads": 2},
        VIT_6M | {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1},
    ),
}
"""Parameters of the decoder -> the decoder, and an encoder of a fifth of them.

The small ones are for bf16 on a CPU without AVX-512, whose matrix products take fifty times as long as in fp32.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTask:
    build: str
    attention: str
    precision: str
    size: str = "30M"
    steps: int = 1
    at_once: bool = False
    """Whether all sequences are one micro-batch, or each is one"""
    max_length: int = 4096
    threads: int = 2
    memory: bool = False
    """Whether memory is measured, which takes time: freed memory goes back to the system at once"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    seconds: list[float]
    """Of each step but the first"""
    peak_bytes: int
    """Of weights, gradients, optimizer state and activations; 0 if it was not measured"""
    images: int
    """Through the encoder in a step"""
    loss: float
    """Sum over the trained tokens of the first step"""


class TrainingStep:
    """A model with random weights, its optimizer, and the batches of a step, which are decoded beforehand."""

    def __init__(self, task: StepTask) -> None:
        build = shards.open(task.build)
        decoder, vit = SIZES[task.size]
        tree = {
            "build": task.build,
            "out": "unused",
            "model": {
                "encoder": {"kind": "hf", "config": vit},
                "projector": {"kind": "mlp"},
                "decoder": {"config": decoder},
                "attention": task.attention,
            },
            "learning_rates": dict.fromkeys(("encoder", "projector", "embeddings", "decoder"), 1e-5),
            "precision": task.precision,
        }
        self.batches = [*_batches(build, task)]
        assembled = assemble(config_from(tree, "one_step.py"), build.manifest.facts())
        self.model = assembled.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.trained = sum(int((batch.labels != -100).sum()) for batch in self.batches)

    def run(self) -> float:
        """One step; returns the sum of the losses of all trained tokens."""
        total = 0.0
        for batch in self.batches:
            loss = self.model(**batch.tensors()).total
            (loss / self.trained).backward()
            total += float(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


def _batches(build: shards.Build, task: StepTask) -> Iterator[Batch]:
    """All samples of the build, packed; sequences are cut to their tokens, so no padding is counted."""
    settings: dict[str, Any] = {"max_length": task.max_length, "epochs": 1}
    sequences = Loader(build, batch_size=1, decode="none", **settings).count_sequences(1)
    for batch in Loader(build, batch_size=sequences if task.at_once else 1, **settings):
        length = int((batch.segment_ids != 0).any(0).nonzero().max()) + 1
        cut: dict[str, Any] = {
            name: tensor[:, :length] for name, tensor in batch.tensors().items() if tensor.shape == batch.labels.shape
        }
        yield replace(batch, **cut)


def measure(task: StepTask) -> StepReport:
    torch.set_num_threads(task.threads)
    if task.memory:
        # What is freed goes back at once: else freed memory that is used again would not be seen to grow.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    before = _resident("VmRSS")
    step = TrainingStep(task)
    images = 0

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal images
        images += len(arguments[0])

    hook = step.model.encoder.register_forward_pre_hook(count)
    loss = step.run()  # loads kernels, and makes the optimizer's state
    hook.remove()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets earlier peaks
    seconds = []
    for _ in range(task.steps):
        start = time.perf_counter()
        step.run()
        seconds.append(time.perf_counter() - start)
    peak = _resident("VmHWM") - before if task.memory else 0
    return StepReport(seconds=seconds, peak_bytes=peak, images=images, loss=loss)


def _resident(name: str) -> int:
    """Bytes of a line of Linux's status file."""
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert match
    return int(match[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(asdict(measure(StepTask(**json.loads(sys.argv[1]))))))
