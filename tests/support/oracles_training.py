"""A training loop as plain as can be: all sequences of a step in one batch, torch's AdamW, no DeepSpeed."""

from __future__ import annotations

import json
import math
from pathlib import Path


def plain_losses(config_path: str, result: str) -> None:
    """Write the loss and the gradient's norm of every step of a config as JSON."""
    import torch

    import shards
    from shards.loader import Loader
    from trainer.config.run import load_config
    from trainer.training.assemble import assemble

    torch.set_num_threads(1)
    config = load_config(Path(config_path))
    build = shards.open(config.build)
    made = assemble(config, build.manifest.facts())
    steps, optimizer = config.schedule.steps, config.optimizer
    assert steps is not None
    assert optimizer.max_grad_norm is not None
    adam = torch.optim.AdamW(made.groups, betas=(optimizer.betas[0], optimizer.betas[1]), eps=optimizer.eps)
    rates = [group["lr"] for group in adam.param_groups]
    batches = iter(Loader(build, batch_size=config.batch.global_batch_size, max_length=128, seed=config.seed))
    losses_and_norms = []
    warmup = math.ceil(config.schedule.warmup_ratio * steps)
    for step in range(1, steps + 1):
        done = (step - warmup) / (steps - warmup + 1)
        factor = step / warmup if step <= warmup else 0.5 + 0.5 * math.cos(math.pi * done)
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        loss = made.model(**next(batches).tensors())
        mean = loss.total / loss.tokens
        adam.zero_grad()
        mean.backward()
        parameters = [parameter for parameter in made.model.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, optimizer.max_grad_norm)
        adam.step()
        losses_and_norms.append((mean.item(), norm.item()))
    Path(result).write_text(json.dumps(losses_and_norms))
