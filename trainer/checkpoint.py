"""Checkpoints: written whole or not at all, and read by any number of ranks at any ZeRO stage.

A checkpoint is a folder `checkpoints/step-00000500` below the run's folder:

    checkpoint.json             version, step, config, manifest hash, loader state, loss scale, where each piece lies
    rank-00000-000.safetensors  pieces of one rank: `weight/<parameter>`, `exp_avg/...`, `exp_avg_sq/...`, fp32 [count]
    buffers.safetensors         the model's buffers, if it has any that are saved

Rules
- Only trained parameters are in it; frozen ones are made again from the config. Nothing in it is unpickled.
- Each rank writes the pieces it holds and reads the pieces it needs, so a run goes on with other ranks, another ZeRO
  stage or another precision; nothing has to be converted.
- Everything is written under another name and flushed to disk before the folder gets its name; then `latest` names it.
  A run that is killed or out of disk at any moment leaves the checkpoints before it as they were.
- There is no generator to save: randomness is keyed by seed, step and row, see trainer.loop. Learning rates are a
  function of the step.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dst.errors import ConfigError
from shards.files import replace_file, sync_folder
from trainer.errors import TrainError
from trainer.partitions import MOMENTS, flats, parts, restore_step, state_of
from trainer.ranks import Ranks

VERSION = 1
"""Rises when a program of the old version would misread a new checkpoint."""

FOLDER = "checkpoints"
LATEST, BEST = "latest", "best"
CONTENT = "checkpoint.json"
BUFFERS = "buffers.safetensors"

_NAME = re.compile(r"step-(\d{8,})")
_FILE_BYTES = 2 << 30
"""Size of a rank's file from which on the next one is begun: a bound on memory while it is written."""

Pieces = dict[str, list[tuple[str, int, int]]]
"""Parameter -> (file, first element, number of elements) of each piece."""

_MATTERS = ("model", "train", "seed")
"""Parts of the config that a checkpoint fits or does not; all others may change when a run goes on."""

_RATES = {f"train.{part}" for part in ("encoder", "projector", "embeddings", "decoder", "lora")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, beside weights and optimizer."""

    step: int
    """Optimizer steps done"""
    loader: Mapping[str, Any]
    """What shards.loader.Loader.load_state_dict takes"""
    loss_scale: Mapping[str, float]
    """fp16's, by attribute of its scaler"""


class Checkpoint:
    """A finished checkpoint, for reading."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if there is none, or if a newer release wrote it."""
        self.folder = folder
        try:
            content = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError([f"{folder}: no checkpoint there: it has no {CONTENT}"]) from None
        except (OSError, ValueError) as error:
            raise ConfigError(
                [f"{folder / CONTENT}: cannot be read ({error}); go on from another checkpoint"]
            ) from None
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION:
            newer = isinstance(version, int) and version > VERSION
            step = "update dsvl, or go on from another checkpoint" if newer else "start anew"
            age = "newer" if newer else "older"
            raise ConfigError(
                [f"{folder}: the checkpoint is {age}: version {version!r}, this program reads {VERSION}; {step}"]
            )
        self.content: Mapping[str, Any] = content
        self.step = int(content["step"])
        self.config: Mapping[str, Any] = content["config"]
        self.manifest = str(content["manifest"])

    @property
    def progress(self) -> Progress:
        return Progress(step=self.step, loader=self.content["loader"], loss_scale=self.content["loss_scale"])

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Trained parameter -> shape, in the model's order."""
        return {name: tuple(entry["shape"]) for name, entry in self.content["parameters"].items()}

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Trained parameters one by one: name, fp32 tensor. Raises TrainError for a damaged file."""
        for name, shape in self.shapes.items():
            yield name, self.piece("weight", name, 0, math.prod(shape)).reshape(shape)

    def piece(self, kind: str, name: str, start: int, count: int) -> torch.Tensor:
        """Elements [start, start + count) of a parameter or of one of its moments, fp32. Raises TrainError."""
        out = torch.empty(count, dtype=torch.float32)
        covered = 0
        for file, first, size in self.content["parameters"][name]["pieces"]:
            begin, end = max(start, first), min(start + count, first + size)
            if begin < end:
                try:
                    with safe_open(str(self.folder / file), framework="pt") as opened:
                        part = opened.get_slice(f"{kind}/{name}")[begin - first : end - first]
                except (OSError, SafetensorError) as error:
                    raise self._damaged(file, str(error)) from None
                out[begin - start : end - start] = part
                covered += end - begin
        if covered != count:
            raise self._damaged(CONTENT, f"{name} lacks {count - covered} of {count} elements")
        return out

    def buffers(self) -> dict[str, torch.Tensor]:
        if not (self.folder / BUFFERS).exists():
            return {}
        try:
            with safe_open(str(self.folder / BUFFERS), framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        except (OSError, SafetensorError) as error:
            raise self._damaged(BUFFERS, str(error)) from None

    def check(self, config: Mapping[str, Any], manifest: str) -> list[str]:
        """What of this run differs from the run that wrote the checkpoint and must not."""
        problems = []
        for section in _MATTERS:
            for path, was, now in _differences(self.config.get(section), config.get(section), section):
                if path in _RATES and was is not None and now is not None:
                    continue  # another learning rate trains the same parameters
                problems.append(
                    f"{path}: is {now!r}, the checkpoint {self.folder} was made with {was!r}; set it back, or start "
                    "anew with another `out`"
                )
        if manifest != self.manifest:
            problems.append(
                f"build: its manifest is {manifest[:12]}, the checkpoint {self.folder} was made with "
                f"{self.manifest[:12]}; go on with that build, or start anew with another `out`"
            )
        return problems

    def _damaged(self, file: str, why: str) -> TrainError:
        return TrainError(
            f"{self.folder / file}: the checkpoint is damaged ({why}); go on from another one with checkpoints.resume"
        )


def folder_of(out: Path, step: int) -> Path:
    return out / FOLDER / f"step-{step:08d}"


def find(out: Path, resume: str) -> Checkpoint | None:
    """The checkpoint to go on from: the newest of a run's folder (`auto`), or one by its folder.

    Raises ConfigError: `never` where there are checkpoints, no checkpoint where one is named, one of a newer release.
    """
    if resume not in ("auto", "never"):
        return Checkpoint(Path(resume))
    newest = latest(out)
    if newest is not None and resume == "never":
        raise ConfigError(
            [f"checkpoints.resume: is never, but {newest} is there; choose another `out`, or remove that folder"]
        )
    return Checkpoint(newest) if newest else None


def latest(out: Path) -> Path | None:
    """The folder that `latest` names, or the one of the highest step if that is gone."""
    found = _finished(out)
    try:
        named = out / FOLDER / (out / FOLDER / LATEST).read_text(encoding="utf-8").strip()
    except OSError:
        named = None
    return named if named in found.values() else found[max(found)] if found else None


def save(
    engine: Any,
    out: Path,
    progress: Progress,
    *,
    ranks: Ranks,
    config: Mapping[str, Any],
    manifest: str,
    keep: int,
) -> Path:
    """Write a checkpoint by all ranks together, and remove old ones. Raises TrainError on all if one rank cannot."""
    folder = folder_of(out, progress.step)
    partial = folder.with_name(f".{folder.name}.partial")
    written: list[Pieces] = []

    def together(work: Callable[[], None], *, by_all: bool = False) -> None:
        """One stage. Every rank raises if it failed on any."""
        failures = ranks.gather(_failure(work) if by_all or ranks.is_first else None)
        problems = [failure for failure in failures if failure is not None]
        if problems:
            if ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise TrainError(f"{folder}: cannot be written: {problems[0]}; {_kept(out)}")

    together(lambda: _fresh(partial))
    together(lambda: written.append(_write_pieces(engine, partial, ranks.rank)), by_all=True)
    everyone = ranks.gather(written[0])
    together(lambda: _finish(engine, partial, folder, progress, config, manifest, everyone))
    together(lambda: _prune(out, keep))
    return folder


def mark_best(out: Path, folder: Path, loss: float, *, ranks: Ranks, keep: int) -> None:
    """Name the checkpoint with the lowest evaluation loss. Raises TrainError on all ranks if it cannot be written."""

    def mark() -> None:
        replace_file(out / FOLDER / BEST, (json.dumps({"checkpoint": folder.name, "loss": loss}) + "\n").encode())
        _prune(out, keep)

    problem = ranks.gather(_failure(mark) if ranks.is_first else None)[0]
    if problem is not None:
        raise TrainError(f"{out / FOLDER / BEST}: cannot be written: {problem}; {_kept(out)}")


def best(out: Path) -> tuple[Path, float] | None:
    """The checkpoint with the lowest evaluation loss so far, and that loss."""
    try:
        found = json.loads((out / FOLDER / BEST).read_text(encoding="utf-8"))
        return out / FOLDER / str(found["checkpoint"]), float(found["loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put the trained weights and buffers into a model that DeepSpeed has not taken yet.

    Raises ConfigError if the model trains other parameters.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    problems = [
        f"{checkpoint.folder}: has {_shape(checkpoint.shapes.get(name))} for {name}, this run trains "
        f"{_shape(tuple(trained[name].shape) if name in trained else None)}; train the same parts of the same model"
        for name in dict.fromkeys((*checkpoint.shapes, *trained))
        if name not in trained or checkpoint.shapes.get(name) != tuple(trained[name].shape)
    ]
    if problems:
        raise ConfigError(problems)
    with torch.no_grad():
        for name, weight in checkpoint.weights():
            trained[name].copy_(weight)
        buffers = dict(model.named_buffers())
        for name, value in checkpoint.buffers().items():
            buffers[name].copy_(value)


def load_optimizer(engine: Any, checkpoint: Checkpoint, *, ranks: Ranks) -> None:
    """Put fp32 weights, Adam's moments and its step count into an engine that has made no step."""
    steps = int(checkpoint.content["adam_step"])
    with torch.no_grad():
        whole = engine.zero_optimization_stage() == 0
        held = parts(engine, rank=0 if whole else ranks.rank)  # without ZeRO every rank holds everything
        moments = {id(flat): restore_step(engine, flat, steps) for flat in flats(engine)} if steps else {}
        for part in held:
            part.weight.copy_(checkpoint.piece("weight", part.name, part.start, part.count))
            for kind in MOMENTS if steps else ():
                target = part.view(moments[id(part.flat)][kind])
                target.copy_(checkpoint.piece(kind, part.name, part.start, part.count))
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in checkpoint.content["loss_scale"].items():
        if hasattr(scaler, name):
            setattr(scaler, name, type(getattr(scaler, name))(value))


def loss_scale(engine: Any) -> dict[str, float]:
    """fp16's loss scale and what it depends on; empty for other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    return {name: float(getattr(scaler, name)) for name in names if hasattr(scaler, name) and engine.fp16_enabled()}


def _fresh(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    for left in partial.parent.glob(".step-*.partial"):  # what a killed run began
        shutil.rmtree(left)
    partial.mkdir()


def _write_pieces(engine: Any, folder: Path, rank: int) -> Pieces:
    """This rank's files, and what is in them."""
    places: Pieces = {}
    tensors: dict[str, torch.Tensor] = {}
    files = 0

    def flush() -> None:
        nonlocal files
        if tensors:
            _write(tensors, folder / f"rank-{rank:05d}-{files:03d}.safetensors")
            tensors.clear()
            files += 1

    for part in parts(engine, rank=rank):
        state = state_of(engine, part.flat)
        tensors[f"weight/{part.name}"] = part.weight.to("cpu", torch.float32).clone()
        for kind in MOMENTS:
            if kind in state:
                tensors[f"{kind}/{part.name}"] = part.view(state[kind]).to("cpu", torch.float32).clone()
        places.setdefault(part.name, []).append((f"rank-{rank:05d}-{files:03d}.safetensors", part.start, part.count))
        if sum(tensor.nbytes for tensor in tensors.values()) >= _FILE_BYTES:
            flush()
    flush()
    return places


def _finish(
    engine: Any,
    partial: Path,
    folder: Path,
    progress: Progress,
    config: Mapping[str, Any],
    manifest: str,
    everyone: Sequence[Pieces],
) -> None:
    """The first rank's part: what is common, then the name."""
    saved = {
        name for module_name, module in engine.module.named_modules() for name in _saved_buffers(module_name, module)
    }
    buffers = {name: value.to("cpu").contiguous() for name, value in engine.module.named_buffers() if name in saved}
    if buffers:
        _write(buffers, partial / BUFFERS)
    shapes = {
        name: list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }
    pieces = {name: sorted((p for held in everyone for p in held.get(name, ())), key=lambda p: p[1]) for name in shapes}
    for name, shape in shapes.items():
        assert sum(count for _, _, count in pieces[name]) == math.prod(shape), f"{name}: pieces do not cover it"
    content = {
        "version": VERSION,
        "step": progress.step,
        "adam_step": _adam_step(engine),
        "loss_scale": dict(progress.loss_scale),
        "manifest": manifest,
        "loader": dict(progress.loader),
        "config": dict(config),
        "parameters": {name: {"shape": shapes[name], "pieces": pieces[name]} for name in shapes},
    }
    replace_file(partial / CONTENT, (json.dumps(content, indent=1) + "\n").encode())
    sync_folder(partial)
    if folder.exists():  # a run that went on from an earlier checkpoint comes by again
        shutil.rmtree(folder)
    os.rename(partial, folder)
    sync_folder(folder.parent)
    replace_file(folder.parent / LATEST, f"{folder.name}\n".encode())


def _adam_step(engine: Any) -> int:
    """Steps Adam made; fewer than the run's where fp16 skipped some."""
    for flat in flats(engine):
        step = state_of(engine, flat).get("step", 0)
        return int(step)
    return 0


def _saved_buffers(prefix: str, module: torch.nn.Module) -> list[str]:
    own = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    return [f"{prefix}.{name}" if prefix else name for name in own]


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file(dict(tensors), str(path))
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _failure(work: Callable[[], None]) -> str | None:
    """What went wrong on disk, in words; the other ranks must be told of it before anyone stops."""
    try:
        work()
    except OSError as error:
        return f"{error.strerror or error}"
    except SafetensorError as error:
        return str(error)
    return None


def _kept(out: Path) -> str:
    newest = latest(out)
    before = f"the checkpoint {newest} is as it was" if newest else "there is no checkpoint before it"
    return f"{before}; make room and run the same command again"


def _finished(out: Path) -> dict[int, Path]:
    """step -> folder."""
    folders = (out / FOLDER).iterdir() if (out / FOLDER).is_dir() else ()
    return {
        int(match[1]): path for path in folders if (match := _NAME.fullmatch(path.name)) and (path / CONTENT).exists()
    }


def _prune(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the best; those of later steps, from before a run went back, are old."""
    found = _finished(out)
    newest, top = latest(out), best(out)
    by_age = sorted(found, key=lambda step: (newest is not None and found[step] <= newest, step))
    for step in by_age[:-keep]:
        if top is None or found[step] != top[0]:
            (found[step] / CONTENT).unlink()  # what a crash leaves of it is no checkpoint
            shutil.rmtree(found[step])


def _differences(was: Any, now: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*was, *now)):
            yield from _differences(was.get(key), now.get(key), f"{path}.{key}")
    elif was != now:
        yield path, was, now


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape)) or "a number"
