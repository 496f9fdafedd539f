"""Checkpoints: what is in them, and reading them with any number of ranks at any ZeRO stage.

trainer.checkpoint.writer writes them.

A checkpoint is a folder `checkpoints/step-00000500` below the run's folder:

    checkpoint.json             version, step, config, manifest hash, loader state, loss scale, where each piece lies
    rank-00000-000.safetensors  pieces of one rank: `weight/<parameter>`, `exp_avg/...`, `exp_avg_sq/...`, fp32 [count]
    buffers.safetensors         the model's buffers, if it has any that are saved

Rules
- Only trained parameters are in it; frozen ones are made again from the config, and have to be the same again, see
  trainer.checkpoint.frozen_fingerprint. Nothing in it is unpickled.
- Each rank writes the pieces it holds and reads the pieces it needs, so a run goes on with other ranks, another ZeRO
  stage or another precision; nothing has to be converted.
- There is no generator to save: randomness is keyed by seed, step and row, see trainer.training.loop. Learning rates
  are a function of the step.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dst.errors import ConfigError
from trainer.checkpoint.frozen_fingerprint import other_weights
from trainer.checkpoint.init_from import other_start
from trainer.compat.deepspeed import MOMENTS, EngineState, flats, parts, restore_loss_scale, restore_step
from trainer.distributed.ranks import Ranks
from trainer.errors import TrainError

VERSION = 1
"""Rises when a program of the old version would misread a new checkpoint."""

FOLDER = "checkpoints"
LATEST, BEST = "latest", "best"
CONTENT = "checkpoint.json"
PLACES = f"a run's `out` folder, one of its {FOLDER}/step-... folders, or {FOLDER}/{BEST} of it"
BUFFERS = "buffers.safetensors"

_NEEDED = ("step", "config", "manifest", "loader", "loss_scale", "parameters", "adam_step", "frozen")
"""Of checkpoint.json"""

_NAME = re.compile(r"step-(\d{8,})")
_APART = ("build", "out", "expect", "checkpoints", "logging", "evaluation")
"""Parts of the config that no step depends on"""
_MATTERS = ("model", "learning_rates", "lora", "seed")
"""Parts of the config that a checkpoint fits or does not; all others may change when a run goes on."""

_RATES = {f"learning_rates.{part}" for part in ("encoder", "projector", "embeddings", "decoder", "lora")}
_FREE = {"model.decoder.attn_implementation", "model.init_from"}
"""What only speeds up, and where something lies, see trainer.checkpoint.init_from"""


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
        lacking = [name for name in _NEEDED if name not in content]
        if lacking:
            raise ConfigError([f"{folder / CONTENT}: lacks {', '.join(lacking)}; go on from another checkpoint"])
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
                if path in _FREE and was is not None and now is not None:
                    continue
                problems.append(
                    f"{path}: is {now!r}, the checkpoint {self.folder} was made with {was!r}; set it back, or start "
                    "anew with another `out`"
                )
        problems += other_start(config["model"]["init_from"], self.content.get("init_from"))
        if manifest != self.manifest:
            problems.append(
                f"build: its manifest is {manifest[:12]}, the checkpoint {self.folder} was made with "
                f"{self.manifest[:12]}; go on with that build, or start anew with another `out`"
            )
        return problems

    def changes(self, config: Mapping[str, Any]) -> list[str]:
        """What changed in a run's config since the checkpoint and alters steps: `batch.global_batch_size 4 to 8`."""
        sections = [name for name in config if name not in _APART]
        found = (each for name in sections for each in _differences(self.config.get(name), config[name], name))
        return [f"{path} {was!r} to {now!r}" for path, was, now in found if path not in _FREE]

    def _damaged(self, file: str, why: str) -> TrainError:
        return TrainError(
            f"{self.folder / file}: the checkpoint is damaged ({why}); go on from another one with checkpoints.resume"
        )


def folder_of(out: Path, step: int) -> Path:
    return out / FOLDER / f"step-{step:08d}"


def locate(location: Path) -> Path | None:
    """The folder of a checkpoint that is given itself, as a run's folder (the newest), or as a run's file `best`."""
    if (location / CONTENT).is_file():
        return location
    if location.name == BEST and (found := best(location.parent.parent)):
        return found[0]
    return latest(location)


def find(out: Path, resume: str) -> Checkpoint | None:
    """The checkpoint to go on from: the newest of a run's folder (`auto`), or one by its folder.

    Another run's is where this one begins; as soon as there are checkpoints of its own, it goes on from them.
    Raises ConfigError: `never` where there are checkpoints, no checkpoint where one is named, one of a newer release.
    """
    newest = latest(out)
    if resume not in ("auto", "never"):
        folder = locate(Path(resume))
        if folder is None:
            raise ConfigError([f"checkpoints.resume: {resume}: no checkpoint there; wanted {PLACES}"])
        named = Checkpoint(folder)
        goes_back = folder.resolve().parent == (out / FOLDER).resolve()
        return named if goes_back or newest is None else Checkpoint(newest)
    if newest is not None and resume == "never":
        raise ConfigError(
            [f"checkpoints.resume: is never, but {newest} is there; choose another `out`, or remove that folder"]
        )
    return Checkpoint(newest) if newest else None


def find_together(out: Path, resume: str, config: Mapping[str, Any], manifest: str, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to go on from. Raises ConfigError on all ranks if it does not fit, or if they see another each."""
    found, problems = None, []
    try:
        found = find(out, resume)
        if found is not None:
            problems = found.check(config, manifest)
    except ConfigError as error:
        problems = error.problems
    everyone = ranks.gather((None if found is None else found.folder.name, problems))
    problems = list(dict.fromkeys(problem for _, told in everyone for problem in told))
    seen = sorted({name or "none" for name, _ in everyone})
    if not problems and len(seen) > 1:
        problems = [
            f"out: ranks see different checkpoints in {out}: {', '.join(seen)}; wanted one folder that all nodes share"
        ]
    if problems:
        raise ConfigError(problems)
    return found


def latest(out: Path) -> Path | None:
    """The folder that `latest` names, or the one of the highest step if that is gone."""
    found = finished(out)
    try:
        named = out / FOLDER / (out / FOLDER / LATEST).read_text(encoding="utf-8").strip()
    except OSError:
        named = None
    return named if named in found.values() else found[max(found)] if found else None


def best(out: Path) -> tuple[Path, float] | None:
    """The checkpoint with the lowest evaluation loss so far, and that loss."""
    try:
        found = json.loads((out / FOLDER / BEST).read_text(encoding="utf-8"))
        folder, loss = out / FOLDER / str(found["checkpoint"]), float(found["loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (folder, loss) if (folder / CONTENT).exists() else None


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put the trained weights and buffers into a model that DeepSpeed has not taken yet.

    Raises ConfigError if the model trains other parameters, or others are frozen than those it was trained beside.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    problems = [
        f"{checkpoint.folder}: has {_shape(checkpoint.shapes.get(name))} for {name}, this run trains "
        f"{_shape(tuple(trained[name].shape) if name in trained else None)}; train the same parts of the same model"
        for name in dict.fromkeys((*checkpoint.shapes, *trained))
        if name not in trained or checkpoint.shapes.get(name) != tuple(trained[name].shape)
    ]
    if strange := other_weights(model, checkpoint.content["frozen"]):
        problems.append(
            f"model.{strange[0].partition('.')[0]}: {strange[0]} has other weights now than those that "
            f"{checkpoint.folder} was trained beside; name the weights of then, or start anew with another `out`"
        )
    if problems:
        raise ConfigError(problems)
    with torch.no_grad():
        for name, weight in checkpoint.weights():
            trained[name].copy_(weight)
        buffers = dict(model.named_buffers())
        for name, value in checkpoint.buffers().items():
            buffers[name].copy_(value)


def load_optimizer(engine: EngineState, checkpoint: Checkpoint, *, ranks: Ranks) -> None:
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
    restore_loss_scale(engine, checkpoint.content["loss_scale"])


def finished(out: Path) -> dict[int, Path]:
    """step -> folder."""
    folders = (out / FOLDER).iterdir() if (out / FOLDER).is_dir() else ()
    return {
        int(match[1]): path for path in folders if (match := _NAME.fullmatch(path.name)) and (path / CONTENT).exists()
    }


def _differences(was: object, now: object, path: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*was, *now)):
            yield from _differences(was.get(key), now.get(key), f"{path}.{key}")
    elif was != now:
        yield path, was, now


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape)) or "a number"
