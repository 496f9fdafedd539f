"""The optimizer steps of a train.yaml as a hand-written loop: the same model, batches and optimizer, and nothing else.

    python bare_loop.py TRAIN_YAML

It uses only interfaces that older commits have too, so that it can run with the packages of another checkout. It reads
schedule.steps and expects one rank, AdamW of torch and constant learning rates without a warmup. The last line is JSON:
the tokens and the loss of each step.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import shards
from shards.loader import Loader
from trainer.config.run import TrainConfig, accumulation, load_config, sequence_length
from trainer.training.assemble import assemble

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopReport:
    """Of each step"""

    tokens: list[int]
    """Positions that are not padding"""
    trained_tokens: list[int]
    losses: list[float]
    """Mean over the trained tokens"""


def train(config: TrainConfig) -> LoopReport:
    build = shards.open(config.build)
    assembled = assemble(config, build.manifest.facts())
    model: Any = assembled.model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(assembled.groups, betas=config.optimizer.betas, eps=config.optimizer.eps)
    batches = iter(_loader(config, build))
    report = LoopReport(tokens=[], trained_tokens=[], losses=[])
    assert config.schedule.steps is not None
    for _ in range(config.schedule.steps):
        of_step = list(itertools.islice(batches, accumulation(config, 1)))
        trained_tokens = sum(int((batch.labels != IGNORED).sum()) for batch in of_step)
        loss = 0.0
        for batch in of_step:
            share = model(**batch.tensors()).total / trained_tokens
            share.backward()
            loss += float(share.detach())
        if config.optimizer.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(weights, config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        report.tokens.append(sum(int((batch.segment_ids != 0).sum()) for batch in of_step))
        report.trained_tokens.append(trained_tokens)
        report.losses.append(loss)
    return report


def _loader(config: TrainConfig, build: shards.Build) -> Loader:
    """As a run of one rank makes it."""
    return Loader(
        build,
        split="train",
        batch_size=config.batch.micro_batch_size,
        max_length=sequence_length(config, build.manifest),
        packed=config.batch.packed,
        seed=config.seed,
        rank=0,
        world_size=1,
        workers=config.batch.workers,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(train(load_config(Path(sys.argv[1]))))))
