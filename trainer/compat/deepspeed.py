"""Everything the trainer needs of DeepSpeed that DeepSpeed does not document.

Run with 0.19.4 and 0.19.8. With 0.18.0 two ranks of ZeRO 1 have other losses than one rank, and other ones each time;
0.18.4 has another optimizer for bf16 at stage 1, whose weights cannot be located; up to 0.19.2 gradient checkpointing
fails at stage 3.

    start-up            by default its collectives for one CPU host are compiled when the process group starts, and
                        torch's compiler is imported for an optimizer that is not used
    loss scale          the attributes of its dynamic loss scaler; what it raises when the scale cannot be lowered
    weights             where each trained parameter is: `parameter_pieces`, `flats`, `state_of`, `restore_step`

DeepSpeed keeps trained weights in flat fp32 tensors, one or more per rank, and Adam's state in tensors of the same
layout. A ParameterPiece is part of one parameter: its elements [start, start + count) are at [offset, offset + count)
of `flat`. The pieces of all ranks cover every trained parameter exactly once. They come from the bookkeeping that
`deepspeed.utils.tensor_fragment` uses. `state_of` returns Adam's moments, which exist from the first step on.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class EngineState(Protocol):
    """What checkpoints and metrics read of an engine."""

    @property
    def module(self) -> torch.nn.Module:
        """The model that is trained."""

    @property
    def optimizer(self) -> Any:
        """ZeRO's own, of another class at each stage, of which this module alone reads anything."""

    @property
    def basic_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the engine was made with."""

    def zero_optimization_stage(self) -> int: ...
    def fp16_enabled(self) -> bool: ...


class DeepSpeedEngine(EngineState, Protocol):
    """What the trainer uses of DeepSpeed's engine, which DeepSpeed declares no types for."""

    def __call__(self, **batch: torch.Tensor) -> Any:
        """What the model's forward returns."""

    def train(self, mode: bool = ...) -> object: ...
    def backward(self, loss: torch.Tensor) -> object: ...
    def step(self) -> object: ...
    def get_global_grad_norm(self) -> float: ...


MOMENTS = ("exp_avg", "exp_avg_sq")
_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def quiet_deepspeed() -> Any:
    """Import DeepSpeed without compiling anything at start-up and without log lines; returns its module."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no accelerator
    # torch renamed collectives that DeepSpeed still calls by their old names
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed
    from deepspeed.utils import logger

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # takes a minute or more to compile; gloo works too
    logger.setLevel(logging.ERROR)
    _import_muon_uncompiled()
    return deepspeed


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's optimizer Muon, whose functions stay as they are.

    0.19.8 imports it in every `initialize`, to see whether it is in use. That decorates functions with torch.compile,
    which imports torch's inductor: 1.5 s of each rank's start. 0.19.4 does it while it is imported itself.
    """
    from deepspeed.runtime import compiler

    compile_function = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_function


def loss_scale(engine: EngineState) -> dict[str, float]:
    """The loss scale of fp16 and the counters it depends on; empty for other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not engine.fp16_enabled():
        return {}
    return {name: float(getattr(scaler, name)) for name in _LOSS_SCALE if hasattr(scaler, name)}


def restore_loss_scale(engine: EngineState, saved: Mapping[str, float]) -> None:
    """Restore what `loss_scale` returned."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in saved.items():
        if hasattr(scaler, name):
            setattr(scaler, name, type(getattr(scaler, name))(value))


@torch.no_grad()  # ZeRO gathers updated weights in place, which gloo of torch 2.9 refuses where gradients are recorded
def optimizer_step(engine: DeepSpeedEngine) -> float:
    """Make an optimizer step; returns the gradient's norm before clipping, NaN where fp16 overflowed.

    Raises OverflowError on all ranks if fp16 overflowed until its loss scale could not be lowered any further.
    """
    if engine.zero_optimization_stage() == 0:  # at stage 0 DeepSpeed clips but stores no norm
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        engine.step()
        return norm
    try:
        engine.step()
    except Exception as error:  # DeepSpeed has no class of its own for it
        if "loss scale already at minimum" not in str(error):
            raise
        raise OverflowError(str(error)) from error
    norm = float(engine.get_global_grad_norm())
    return norm if norm >= 0 else math.nan  # DeepSpeed returns -1 for a norm that is not finite


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterPiece:
    """A piece of a trained parameter that this rank holds."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter"""
    start: int
    """First element in the flattened parameter"""
    count: int
    """Number of elements"""
    flat: torch.Tensor
    """The fp32 tensor that the optimizer updates"""
    offset: int
    """First element in `flat`"""

    @property
    def weight(self) -> torch.Tensor:
        """fp32 [count], a view"""
        return self.flat.detach().reshape(-1).narrow(0, self.offset, self.count)

    def view(self, state: torch.Tensor) -> torch.Tensor:
        """The same piece of a state tensor that is laid out as `flat` is."""
        return state.detach().reshape(-1).narrow(0, self.offset, self.count)


def parameter_pieces(engine: EngineState, *, rank: int) -> Iterator[ParameterPiece]:
    """This rank's pieces, parameters in the model's order."""
    names = {parameter: name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    stage = engine.zero_optimization_stage()
    if stage == 3:
        yield from _stage_3(engine.optimizer, names)
    elif stage:
        yield from _stages_1_2(engine.optimizer, names)
    elif rank == 0:
        for parameter, name in names.items():
            yield ParameterPiece(
                name=name,
                shape=tuple(parameter.shape),
                start=0,
                count=parameter.numel(),
                flat=parameter,
                offset=0,
            )


def state_of(engine: EngineState, flat: torch.Tensor) -> dict[str, Any]:
    """Adam's state for a flat tensor: `step`, `exp_avg`, `exp_avg_sq`; empty before the first step."""
    state: dict[str, Any] = engine.basic_optimizer.state[flat]
    return state


def flats(engine: EngineState) -> list[torch.Tensor]:
    """The tensors that this rank's optimizer updates."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if stage:
        return _flat_groups(engine.optimizer)
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def _flat_groups(optimizer: Any) -> list[torch.Tensor]:
    """Stages 1 and 2 have two optimizer classes: bf16 at stage 1 has its own, with other attribute names."""
    of_bf16 = getattr(optimizer, "fp32_groups_flat_partition", None)
    return list(optimizer.single_partition_of_fp32_groups if of_bf16 is None else of_bf16)


def _stages_1_2(optimizer: Any, names: Mapping[torch.nn.Parameter, str]) -> Iterator[ParameterPiece]:
    groups = _flat_groups(optimizer)
    for parameter, name in names.items():
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:  # the parameter is on other ranks
            continue
        yield ParameterPiece(
            name=name,
            shape=tuple(parameter.shape),
            start=mapping.lp_fragment_address.start,
            count=mapping.lp_fragment_address.numel,
            flat=groups[mapping.param_group_index],
            offset=mapping.hp_fragment_address.start,
        )


def _stage_3(optimizer: Any, names: Mapping[torch.nn.Parameter, str]) -> Iterator[ParameterPiece]:
    """Every rank holds the same number of elements of every parameter; the last rank's are padded."""
    import torch.distributed as dist

    for parameter, name in names.items():
        group, offset, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
        num_elements = int(parameter.ds_numel)  # type: ignore[attr-defined]
        start = share * dist.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
        count = min(share, num_elements - start)
        if count <= 0:
            continue
        yield ParameterPiece(
            name=name,
            shape=tuple(parameter.ds_shape),  # type: ignore[attr-defined]
            start=start,
            count=count,
            flat=optimizer.fp32_partitioned_groups_flat[group],
            offset=offset,
        )


def restore_step(engine: EngineState, flat: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
    """Give a flat tensor Adam's state after `step` steps; returns its moments, zeros for the caller to fill."""
    optimizer = engine.basic_optimizer
    state = state_of(engine, flat)
    moments = {name: torch.zeros_like(flat, memory_format=torch.preserve_format).detach() for name in MOMENTS}
    if isinstance(optimizer, torch.optim.AdamW):
        fused = bool(optimizer.defaults.get("fused"))
        state["step"] = torch.tensor(float(step), device=flat.device if fused else "cpu")
    else:
        state["step"] = step
    for name, moment in moments.items():
        if name in state:  # DeepSpeed has views of this tensor
            state[name].zero_()
            moments[name] = state[name]
        else:
            state[name] = moment
    return moments
