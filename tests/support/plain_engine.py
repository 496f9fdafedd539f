"""A model and its optimizer as far as checkpoints use DeepSpeed's engine, and checkpoints of it."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.checkpoint import writer as checkpoint_writer
from trainer.checkpoint.frozen_fingerprint import frozen_elements
from trainer.checkpoint.reader import Checkpoint, RunState
from trainer.distributed.ranks import Ranks


class PlainEngine:
    """As much of DeepSpeed's engine as a checkpoint uses, without ZeRO."""

    def __init__(self, *, steps: int) -> None:
        torch.manual_seed(steps)
        self.module = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
        self.module.get_parameter("0.bias").requires_grad_(False)
        self.optimizer = self.basic_optimizer = torch.optim.AdamW(self.module.parameters())
        for _ in range(steps):
            self.module(torch.randn(4, 7)).square().sum().backward()
            self.optimizer.step()

    def zero_optimization_stage(self) -> int:
        return 0

    def fp16_enabled(self) -> bool:
        return False


ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def save_plain(out: Path, engine: PlainEngine, step: int = 3, keep: int = 2) -> Checkpoint:
    state = RunState(step=step, loader={"cursor": 5}, loss_scale={})
    run_facts = {"config": {"seed": 1}, "manifest": "abc", "frozen": frozen_elements(engine.module), "init_from": None}
    return Checkpoint(checkpoint_writer.save(engine, out, state, ranks=ALONE, run_facts=run_facts, keep=keep))
