"""DeepSpeed: starting and ending its process group, its configuration, and the engine around a model.

Rules: no operator is compiled unless `optimizer.kind: cpu` asks for one. trainer.training.loop sets the learning rate
of every group before each step, so DeepSpeed gets no scheduler. DeepSpeed's checkpoint files are not used: see
trainer.checkpoint.reader.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch

from dst.errors import ConfigError
from trainer.compat.deepspeed import DeepSpeedEngine, quiet_deepspeed
from trainer.config.run import DistributedConfig, TrainConfig, accumulation
from trainer.distributed.failures import sharing_fate, telling_failures
from trainer.distributed.launcher_environment import become_single_rank, check_devices, world_size_of
from trainer.distributed.meeting import Address, meet
from trainer.distributed.ranks import Ranks

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others, which may be decoding images or writing a checkpoint"""

_BUCKET = 50_000_000
"""Elements that are reduced and gathered at once; DeepSpeed's default of 500 million takes 2 GB"""


@contextlib.contextmanager
def process_group(limits: DistributedConfig, stopped: Callable[[], bool] = lambda: False) -> Iterator[Ranks]:
    """The ranks of this run. A process that no launcher started is a run with one rank.

    stopped: whether the run was asked to stop, while ranks wait for each other. Raises Stopped then, and LostRankError
    if a rank does not come, or is lost in this context; the other errors of the context are reported to all ranks.
    """
    world_size = world_size_of(os.environ)
    if world_size is None:
        become_single_rank()
    deepspeed = quiet_deepspeed()
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        with telling_failures(os.environ):
            if problems := check_devices(os.environ, accelerator.device_count()):
                raise ConfigError(problems)
            accelerator.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    heartbeats = None
    if (world_size or 1) > 1:
        address = Address.of(os.environ)
        meeting = meet(address, limits, stopped)
        heartbeats = meeting.heartbeats
    with sharing_fate(heartbeats):
        if heartbeats is not None:
            on_cuda = accelerator.device_name() == "cuda"
            torch.distributed.init_process_group(
                accelerator.communication_backend_name(),
                store=meeting.store,
                rank=address.rank,
                world_size=address.world_size,
                timeout=TIMEOUT,
                device_id=torch.device(accelerator.current_device_name()) if on_cuda else None,
            )
        deepspeed.init_distributed(timeout=TIMEOUT, verbose=False)
        try:
            yield Ranks(
                rank=torch.distributed.get_rank(),
                world_size=torch.distributed.get_world_size(),
                device=torch.device(accelerator.current_device_name()),
                heartbeats=heartbeats,
            )
        finally:
            torch.distributed.destroy_process_group()


def check_device(config: TrainConfig) -> list[str]:
    """Problems between the config and the device of this process."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    device, problems = accelerator.device_name(), []
    supported = {"bf16": accelerator.is_bf16_supported, "fp16": accelerator.is_fp16_supported, "fp32": lambda: True}
    if not supported[config.precision]():
        others = [name for name, works in supported.items() if works()]
        problems.append(f"precision: {device} cannot train in {config.precision}; expected {' or '.join(others)}")
    kernel = config.model.decoder.attn_implementation
    if kernel == "flex_attention" and config.model.attention == "causal" and device == "cpu":
        problems.append(f"model.decoder.attn_implementation: {kernel} has no backward pass on a CPU; expected sdpa")
    return problems


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run."""
    zero: dict[str, Any] = {
        "stage": config.zero.stage,
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
    }
    if config.zero.stage == 3:
        zero["stage3_prefetch_bucket_size"] = _BUCKET
        if config.zero.param_persistence_threshold is not None:
            zero["stage3_param_persistence_threshold"] = config.zero.param_persistence_threshold
    pinned = torch.cuda.is_available()
    if config.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if config.zero.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_accumulation_steps": accumulation(config, world_size),
        "gradient_clipping": config.optimizer.max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if config.precision != "fp32":
        settings[config.precision] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def make_optimizer(config: TrainConfig, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW over parameter groups that carry `name`, `lr` and `weight_decay`; `initial_lr` is what schedules scale."""
    groups = [{**group, "initial_lr": group["lr"]} for group in groups]
    betas, eps = (config.optimizer.betas[0], config.optimizer.betas[1]), config.optimizer.eps
    if config.optimizer.kind == "cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        try:
            optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, betas=betas, eps=eps)
        except (ImportError, RuntimeError, OSError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                [f"optimizer.kind: cpu could not be compiled ({why}); install a C++ compiler, or use adamw"]
            ) from None
        return optimizer
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=config.optimizer.kind == "fused" or None)


def initialize(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, world_size: int
) -> DeepSpeedEngine:
    """DeepSpeed's engine around a model; the model is cast, moved and partitioned."""
    import deepspeed

    engine: DeepSpeedEngine
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config, world_size), dist_init_required=False
    )
    return engine
