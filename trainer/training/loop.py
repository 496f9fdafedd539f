"""Optimizer steps over a build: the loss, its gradient, and when to stop.

Rules
- A step trains on `batch.global_batch_size` sequences, the same ones for any number of ranks and any
  `micro_batch_size`; each rank takes its share of every micro-batch.
- The loss of a step is the sum over its trained tokens divided by their number, over all ranks and micro-batches. So
  the tokens are counted before the first forward pass, and every micro-batch's sum is divided by that one number:
  gradients are those of one large batch, not means of means.
- Randomness (dropout) is keyed by seed, step and the micro-batch's index in the step. So a resumed run draws what the
  interrupted run would have drawn, also on another number of ranks.
- A batch that cannot be read and a NaN or infinite loss end the run on all ranks, before weights change.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch

from dst import IGNORE
from shards.errors import ShardError
from shards.loader import Batch, Loader
from trainer.compat.deepspeed import DeepSpeedEngine, optimizer_step
from trainer.config.run import ScheduleConfig
from trainer.distributed.ranks import Ranks
from trainer.distributed.stop_signal import StopFlag, Stopped
from trainer.errors import TrainError
from trainer.model.vision_chat import Loss

_MAX_NAMED = 20
"""Most samples that an error names"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One optimizer step, over all ranks."""

    step: int
    loss_sum: float
    """Over the trained tokens"""
    trained_tokens: int
    positions: int
    tokens: int
    """Positions that are not padding"""
    images: int
    records: int
    """Samples, each branch counted as one"""
    grad_norm: float
    """Before clipping; NaN where fp16 overflowed and the step was skipped"""
    wait_seconds: float
    """How long this rank waited for its batches"""
    loader: Mapping[str, Any]
    """Loader state after this step's sequences"""
    stopping: bool
    """A rank was asked to stop; this step is the last"""

    @property
    def loss(self) -> float:
        return self.loss_sum / self.trained_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Mean loss over the trained tokens of the held-out split."""

    loss: float
    datasets: Mapping[str, float]
    """By dataset, for those with held-out samples"""


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor of all learning rates in step `step` (from 1) of `steps`."""
    warmup = math.ceil(schedule.warmup_ratio * steps)
    if step <= warmup:
        return step / warmup
    if schedule.kind == "constant":
        return 1.0
    done = (step - warmup) / (steps - warmup + 1)  # below 1, so that the last step still trains
    remaining = 1 - done if schedule.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * remaining


def train(
    engine: DeepSpeedEngine,
    loader: Loader,
    *,
    first_step: int,
    steps: int,
    micro_batches: int,
    schedule: ScheduleConfig,
    seed: int,
    ranks: Ranks,
    stop: StopFlag,
) -> Generator[StepResult, None, None]:
    """Make steps `first_step` to `steps` (numbers from 1); yields the result of each. The caller closes the generator.

    Raises ShardError (a batch cannot be read) or TrainError (loss or gradient not finite), the same on all ranks.
    """
    batches = cast(Generator[Batch, None, None], iter(loader))
    with closing(batches):  # ends the loader's workers, which ignore signals
        for step in range(first_step, steps + 1):
            ranks.begin_step(step)
            fetched = _fetch(batches, micro_batches, ranks, stop)
            if fetched is None:
                return
            engine.train()
            set_learning_rates(engine.basic_optimizer, learning_rate_factor(schedule, step, steps))
            loss_sum = _forward_backward(engine, fetched, step, seed, ranks)
            try:
                grad_norm = optimizer_step(engine)
            except OverflowError:
                _give_up(f"step {step}: the gradient overflows fp16 at its smallest scale", fetched.batches, ranks)
            if not math.isfinite(grad_norm) and not engine.fp16_enabled():
                _give_up(f"step {step}: the gradient is {grad_norm}", fetched.batches, ranks)
            yield StepResult(
                step=step,
                loss_sum=loss_sum,
                trained_tokens=fetched.trained_tokens,
                positions=fetched.positions,
                tokens=fetched.tokens,
                images=fetched.images,
                records=fetched.records,
                grad_norm=grad_norm,
                wait_seconds=fetched.wait_seconds,
                loader=loader.state_dict(),
                stopping=fetched.stopping,
            )
            if fetched.stopping:
                return


def evaluate(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    datasets: Sequence[str],
    *,
    ranks: Ranks,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """The loss on batches; every rank has the same number of them. Raises as `train` does, and Stopped."""
    model.eval()
    numbers = {name: number for number, name in enumerate(datasets)}
    sums = torch.zeros(len(datasets), dtype=torch.float64)
    counts = torch.zeros(len(datasets), dtype=torch.float64)
    remaining = iter(batches)
    while True:
        failure, batch = _next(remaining)
        of_all_ranks = ranks.gather((failure, stop()))
        if any(asked_to_stop for _, asked_to_stop in of_all_ranks):
            raise Stopped
        _raise_any([rank_failure for rank_failure, _ in of_all_ranks])
        if batch is None:
            break
        with torch.no_grad():
            loss: Loss = model(**batch.to(ranks.device).tensors(), reduction="sample")
        assert loss.per_sample is not None  # since reduction is "sample"
        assert loss.per_sample_tokens is not None
        owners = torch.tensor(
            [numbers[dataset] for sequence in batch.samples for dataset, _ in sequence], dtype=torch.int64
        )
        sums.index_add_(0, owners, loss.per_sample.cpu().double())
        counts.index_add_(0, owners, loss.per_sample_tokens.cpu().double())
    totals = ranks.sums([*sums.tolist(), *counts.tolist()])
    losses, tokens = totals[: len(datasets)], totals[len(datasets) :]
    if not all(map(math.isfinite, losses)):
        names = [name for name, loss_sum in zip(datasets, losses, strict=True) if not math.isfinite(loss_sum)]
        raise TrainError(f"evaluation: the loss of {', '.join(names)} is NaN or infinite; lower the learning rate")
    return Evaluation(
        loss=sum(losses) / max(sum(tokens), 1),
        datasets={
            name: loss_sum / count for name, loss_sum, count in zip(datasets, losses, tokens, strict=True) if count
        },
    )


def _torch_seed(*key: int) -> int:
    """A seed for torch's generators."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetched:
    """A step's micro-batches of this rank; counts are over all ranks."""

    batches: list[Batch]
    trained_tokens: int
    positions: int
    tokens: int
    images: int
    records: int
    wait_seconds: float
    stopping: bool


def _fetch(batches: Iterator[Batch], count: int, ranks: Ranks, stop: StopFlag) -> _Fetched | None:
    """A step's micro-batches; None if a rank was asked to stop and the loader's workers are gone."""
    start = time.perf_counter()
    failure: str | None = None
    micro: list[Batch] = []
    while len(micro) < count and failure is None:
        failure, batch = _next(batches)
        if batch is not None:
            micro.append(batch)
    wait_seconds = time.perf_counter() - start
    trained, positions, tokens, images, records, stopping, failed = ranks.sums(
        [
            sum(int((batch.labels != IGNORE).sum()) for batch in micro),
            sum(batch.labels.numel() for batch in micro),
            sum(int((batch.segment_ids != 0).sum()) for batch in micro),
            sum(len(batch.images) for batch in micro),
            sum(batch.num_records for batch in micro),
            stop(),
            failure is not None,
        ]
    )
    if failed and stopping:
        return None
    if failed:
        _raise_any(ranks.gather(failure))
    return _Fetched(
        batches=micro,
        trained_tokens=int(trained),
        positions=int(positions),
        tokens=int(tokens),
        images=int(images),
        records=int(records),
        wait_seconds=wait_seconds,
        stopping=bool(stopping),
    )


def _next(batches: Iterator[Batch]) -> tuple[str | None, Batch | None]:
    """(what went wrong, the batch); both None at the end."""
    try:
        return None, next(batches, None)
    except ShardError as error:
        return str(error), None


def _raise_any(failures: Sequence[str | None]) -> None:
    """Raises ShardError with the failures of all ranks, each once."""
    texts = dict.fromkeys(failure for failure in failures if failure is not None)
    if texts:
        raise ShardError("\n".join(texts))


def _forward_backward(engine: DeepSpeedEngine, fetched: _Fetched, step: int, seed: int, ranks: Ranks) -> float:
    """Accumulate the gradient of the step's mean loss; returns the sum of the loss over all ranks."""
    # DeepSpeed takes the mean over ranks and micro-batches; the sum over them is needed.
    scale = ranks.world_size * len(fetched.batches) / fetched.trained_tokens
    sums: list[torch.Tensor] = []
    for number, batch in enumerate(fetched.batches):
        torch.manual_seed(_torch_seed(seed, step, number * ranks.world_size + ranks.rank))
        loss: Loss = engine(**batch.to(ranks.device).tensors())
        sums.append(loss.total.detach())
        engine.backward(loss.total * scale)
        if number + 1 < len(fetched.batches):
            engine.step()
    own_sums = torch.stack(sums).double().tolist()
    (loss_sum,) = ranks.sums([sum(own_sums)])
    if not math.isfinite(loss_sum):
        causes = [batch for batch, value in zip(fetched.batches, own_sums, strict=True) if not math.isfinite(value)]
        _give_up(f"step {step}: the loss is {loss_sum / fetched.trained_tokens}", causes, ranks)
    return loss_sum


def _give_up(what: str, batches: Sequence[Batch], ranks: Ranks) -> NoReturn:
    """Raises TrainError with the samples of these batches of all ranks."""
    own_names = [key for batch in batches for sequence in batch.samples for _, key in sequence]
    names = list(dict.fromkeys(name for rank_names in ranks.gather(own_names) for name in rank_names))
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    raise TrainError(
        f"{what}; it came from the samples {', '.join(names[:_MAX_NAMED])}{more}; look at them with dsvl-prep inspect, "
        "or lower the learning rate; the newest checkpoint is from before that step"
    )
