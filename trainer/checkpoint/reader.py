"""Checkpoints: what they contain, and reading them with any number of ranks at any ZeRO stage.

trainer.checkpoint.writer writes them; trainer.checkpoint.discovery finds them in a run's folder.

A checkpoint is a folder `checkpoints/step-00000500` in the run's folder:

    checkpoint.json             version, step, config, manifest hash, loader state, loss scale, index of all pieces;
                                the code of extensions, if the model has any; the digests of all files and its own
    rank-00000-000.safetensors  pieces of one rank: `weight/<parameter>`, `exp_avg/...`, `exp_avg_sq/...`, fp32 [count]
    buffers.safetensors         the model's persistent buffers, if it has any

Rules
- A checkpoint contains trained parameters only. Frozen ones are rebuilt from the config and must have the same values
  again, see trainer.checkpoint.frozen_fingerprint. Nothing is unpickled.
- A file is compared with its digest before its content is used, see trainer.model_io.digests.
- Each rank writes the pieces it holds and reads the pieces it needs. So a run can resume with another number of ranks,
  another ZeRO stage or another precision, without a conversion.
- No random generator is saved: randomness is keyed by seed, step and sequence (trainer.training.loop). Learning rates
  are a function of the step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dst.common.extensions import ExtensionOrigin
from dst.errors import ConfigError
from trainer.checkpoint.content import CONTENT, StoredPiece, read_content
from trainer.checkpoint.frozen_fingerprint import changed_parameters
from trainer.compat.deepspeed import MOMENTS, EngineState, flats, parameter_pieces, restore_loss_scale, restore_step
from trainer.distributed.ranks import Ranks
from trainer.errors import TrainError
from trainer.model_io.digests import CheckedFiles

BUFFERS = "buffers.safetensors"

_ELEMENT_BYTES = 4
"""Of fp32"""

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run, apart from weights and optimizer."""

    step: int
    """Optimizer steps done"""
    loader: Mapping[str, Any]
    """What shards.loader.Loader.load_state_dict takes"""
    loss_scale: Mapping[str, float]
    """The loss scale of fp16, by attribute of its scaler"""


class Checkpoint:
    """A complete checkpoint, opened for reading."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder is not a checkpoint, if it is damaged, or if a newer release wrote it."""
        self.folder = folder
        self._next_step = _next_step(folder)
        self.content = read_content(folder, self._next_step)
        self.step, self.config, self.manifest_hash = self.content.step, self.content.config, self.content.manifest
        self.files = CheckedFiles(
            folder,
            self.content.files or {},
            has_digests=self.content.files is not None,
            next_step=self._next_step,
        )

    @property
    def state(self) -> RunState:
        return RunState(step=self.step, loader=self.content.loader, loss_scale=self.content.loss_scale)

    @property
    def extensions(self) -> Mapping[str, ExtensionOrigin]:
        """The code of the model's extensions, by part."""
        return self.content.extensions or {}

    @property
    def notes(self) -> list[str]:
        """A line if an earlier release wrote the checkpoint, without digests."""
        if self.files.has_digests:
            return []
        return [f"{self.folder}: has no digests, since an earlier release wrote it; damage would go unnoticed"]

    def check_listed(self) -> None:
        """Raises TrainError if a file is missing, has another size, or was not written by the run; reads none."""
        for name in self.content.files or ():
            self.files.check_size(name)
        for problem in self.foreign():
            raise TrainError(problem)

    def foreign(self) -> list[str]:
        """A line for each file that no rank wrote."""
        return list(self.files.foreign((*(self.content.files or ()), CONTENT)))

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Trained parameter -> shape, in the model's order."""
        return {name: entry.shape for name, entry in self.content.parameters.items()}

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Trained parameters one by one: name, fp32 tensor. Raises TrainError for a damaged file."""
        for name in self.shapes:
            yield name, self.weight(name)

    def weight(self, name: str) -> torch.Tensor:
        """A trained parameter, fp32. Raises TrainError for a damaged file."""
        shape = self.shapes[name]
        return self.elements("weight", name, 0, math.prod(shape)).reshape(shape)

    def elements(self, kind: str, name: str, start: int, count: int) -> torch.Tensor:
        """Elements [start, start + count) of a parameter or of one of its moments, fp32 [count].

        kind: weight, exp_avg or exp_avg_sq. Raises TrainError for a damaged file.
        """
        needed = []
        for piece in self.content.parameters[name].pieces:
            begin, end = max(start, piece.first), min(start + count, piece.first + piece.count)
            if begin < end:
                self._check_size(piece, name)
                needed.append((piece, begin, end))
        num_read = sum(end - begin for _, begin, end in needed)
        if num_read != count:
            raise self._damaged(CONTENT, f"{name} has {num_read} of {count} elements")
        out = torch.empty(count, dtype=torch.float32)
        for piece, begin, end in needed:
            try:
                with safe_open(str(self.folder / piece.file), framework="pt") as opened:
                    values = opened.get_slice(f"{kind}/{name}")[begin - piece.first : end - piece.first]
            except (OSError, SafetensorError) as error:
                raise self._damaged(piece.file, str(error)) from None
            if values.shape != (end - begin,):
                shape = f"shape {list(values.shape)}, expected {[end - begin]}"
                raise self._damaged(CONTENT, f"{kind}/{name} in {piece.file} has {shape}")
            out[begin - start : end - start] = values
        return out

    def _check_size(self, piece: StoredPiece, name: str) -> None:
        """Raises TrainError if the file is damaged, or cannot hold the piece: a count is not trusted to allocate by."""
        self.files.check(piece.file)
        try:
            size = (self.folder / piece.file).stat().st_size
        except OSError as error:
            raise self._damaged(piece.file, str(error)) from None
        if piece.count * _ELEMENT_BYTES > size:
            raise self._damaged(CONTENT, f"{piece.file} has {size} bytes, too few for {piece.count} elements of {name}")

    def buffers(self) -> dict[str, torch.Tensor]:
        """The model's persistent buffers by name. Raises TrainError for a damaged file."""
        is_listed = self.content.files is not None and BUFFERS in self.content.files
        if not is_listed and not (self.folder / BUFFERS).exists():
            return {}
        self.files.check(BUFFERS)
        try:
            with safe_open(str(self.folder / BUFFERS), framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
        except (OSError, SafetensorError) as error:
            raise self._damaged(BUFFERS, str(error)) from None

    def _damaged(self, file: str, why: str) -> TrainError:
        return TrainError(f"{self.folder / file}: the checkpoint is damaged ({why}); {self._next_step}")


def steps_in(checkpoints: Path) -> dict[int, Path]:
    """Step -> folder of each complete checkpoint in a run's folder of checkpoints."""
    folders = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return {
        int(match[1]): path for path in folders if (match := _NAME.fullmatch(path.name)) and (path / CONTENT).exists()
    }


def _next_step(folder: Path) -> str:
    """What to do about a damaged checkpoint."""
    own = _NAME.fullmatch(folder.name)
    before = [path for step, path in sorted(steps_in(folder.parent).items()) if own and step < int(own[1])]
    if not before:
        return "copy it again, or start a new run: no checkpoint comes before it"
    return f"copy it again, or resume from the one before: checkpoints.resume={before[-1]}"


def check_together(checkpoint: Checkpoint, *, ranks: Ranks) -> None:
    """Check all files of a checkpoint, each by one rank. Raises TrainError on all ranks if one is damaged."""
    names = sorted(checkpoint.content.files or ())
    own = names[ranks.rank :: ranks.world_size]
    problems = [problem for name in own if (problem := checkpoint.files.problem(name)) is not None]
    if ranks.is_first:
        problems += checkpoint.foreign()
    for problem in (problem for of_rank in ranks.gather(problems) for problem in of_rank):
        raise TrainError(problem)
    checkpoint.files.assume_checked(names)


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the trained weights and buffers into a model, before DeepSpeed takes it.

    Parameters on the meta device stay as they are. Raises ConfigError if the model trains other parameters, or if
    frozen parameters have changed since then.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    problems = [
        f"{checkpoint.folder}: has {_shape(checkpoint.shapes.get(name))} for {name}, this run trains "
        f"{_shape(tuple(trained[name].shape) if name in trained else None)}; train the same parts of the same model"
        for name in dict.fromkeys((*checkpoint.shapes, *trained))
        if name not in trained or checkpoint.shapes.get(name) != tuple(trained[name].shape)
    ]
    if changed := changed_parameters(model, checkpoint.content.frozen):
        problems.append(other_weights(changed[0], checkpoint))
    if problems:
        raise ConfigError(problems)
    with torch.no_grad():
        for name in checkpoint.shapes:
            if not trained[name].is_meta:
                trained[name].copy_(checkpoint.weight(name))
        buffers = dict(model.named_buffers())
        for name, value in checkpoint.buffers().items():
            buffers[name].copy_(value)


def other_weights(name: str, checkpoint: Checkpoint) -> str:
    """The problem of a frozen parameter that has changed."""
    return (
        f"model.{name.partition('.')[0]}: {name} is frozen and has other weights now than when {checkpoint.folder} was "
        "written; use the original weights, or start a new run with another `out`"
    )


def load_optimizer(engine: EngineState, checkpoint: Checkpoint, *, ranks: Ranks) -> None:
    """Copy fp32 weights, Adam's moments and its step count into an engine that has made no step."""
    steps = checkpoint.content.adam_step
    with torch.no_grad():
        is_replicated = engine.zero_optimization_stage() == 0  # without ZeRO every rank holds everything
        moments = {id(flat): restore_step(engine, flat, steps) for flat in flats(engine)} if steps else {}
        for piece in parameter_pieces(engine, rank=0 if is_replicated else ranks.rank):
            piece.weight.copy_(checkpoint.elements("weight", piece.name, piece.start, piece.count))
            for kind in MOMENTS if steps else ():
                moment = piece.view(moments[id(piece.flat)][kind])
                moment.copy_(checkpoint.elements(kind, piece.name, piece.start, piece.count))
    restore_loss_scale(engine, checkpoint.content.loss_scale)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape)) or "a scalar"
