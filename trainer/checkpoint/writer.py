"""Writing checkpoints: whole or not at all, by all ranks together. trainer.checkpoint.reader says what is in them.

Rule: everything is written under another name and flushed to disk before the folder gets its name; then `latest` names
it. A run that is killed or out of disk at any moment leaves the checkpoints before it as they were.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from shards.files import replace_file, sync_folder
from trainer.checkpoint.reader import (
    BEST,
    BUFFERS,
    CONTENT,
    FOLDER,
    LATEST,
    VERSION,
    Progress,
    best,
    finished,
    folder_of,
    latest,
)
from trainer.compat.deepspeed import MOMENTS, EngineState, flats, parts, state_of
from trainer.distributed.ranks import Ranks
from trainer.errors import TrainError
from trainer.model_io.safetensors_files import save_tensors

_FILE_BYTES = 2 << 30
"""Size of a rank's file from which on the next one is begun: a bound on memory while it is written."""

Pieces = dict[str, list[tuple[str, int, int]]]
"""Parameter -> (file, first element, number of elements) of each piece."""


def save(
    engine: EngineState,
    out: Path,
    progress: Progress,
    *,
    ranks: Ranks,
    about: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint by all ranks together, and remove old ones. Raises TrainError on all if one rank cannot.

    about: what all checkpoints of a run say: config, manifest (its hash), frozen (see
    trainer.checkpoint.frozen_fingerprint) and start (see trainer.checkpoint.init_from).
    """
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
    together(lambda: _finish(engine, partial, folder, progress, about, everyone))
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


def _fresh(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    for left in partial.parent.glob(".step-*.partial"):  # what a killed run began
        shutil.rmtree(left)
    partial.mkdir()


def _write_pieces(engine: EngineState, folder: Path, rank: int) -> Pieces:
    """This rank's files, and what is in them."""
    places: Pieces = {}
    tensors: dict[str, torch.Tensor] = {}
    files = 0

    def flush() -> None:
        nonlocal files
        if tensors:
            save_tensors(tensors, folder / f"rank-{rank:05d}-{files:03d}.safetensors")
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
    engine: EngineState,
    partial: Path,
    folder: Path,
    progress: Progress,
    about: Mapping[str, Any],
    everyone: Sequence[Pieces],
) -> None:
    """The first rank's part: what is common, then the name."""
    saved = {
        name for module_name, module in engine.module.named_modules() for name in _saved_buffers(module_name, module)
    }
    buffers = {name: value.to("cpu").contiguous() for name, value in engine.module.named_buffers() if name in saved}
    if buffers:
        save_tensors(buffers, partial / BUFFERS)
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
        "loader": dict(progress.loader),
        **about,
        "parameters": {name: {"shape": shapes[name], "pieces": pieces[name]} for name in shapes},
    }
    replace_file(partial / CONTENT, (json.dumps(content, indent=1) + "\n").encode())
    sync_folder(partial)
    if folder.exists():  # a run that went on from an earlier checkpoint comes by again
        shutil.rmtree(folder)
    os.rename(partial, folder)
    sync_folder(folder.parent)
    replace_file(folder.parent / LATEST, f"{folder.name}\n".encode())


def _adam_step(engine: EngineState) -> int:
    """Steps Adam made; fewer than the run's where fp16 skipped some."""
    for flat in flats(engine):
        step = state_of(engine, flat).get("step", 0)
        return int(step)
    return 0


def _saved_buffers(prefix: str, module: torch.nn.Module) -> list[str]:
    own = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    return [f"{prefix}.{name}" if prefix else name for name in own]


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


def _prune(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the best; those of later steps, from before a run went back, are old."""
    found = finished(out)
    newest, top = latest(out), best(out)
    by_age = sorted(found, key=lambda step: (newest is not None and found[step] <= newest, step))
    for step in by_age[:-keep]:
        if top is None or found[step] != top[0]:
            (found[step] / CONTENT).unlink()  # what a crash leaves of it is no checkpoint
            shutil.rmtree(found[step])
