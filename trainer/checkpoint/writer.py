"""Writing checkpoints: complete or not at all, by all ranks together. trainer.checkpoint.reader describes the contents.

Rule: everything is written under a temporary name and flushed to disk before the folder gets its name; then `latest`
names it. If a run is killed or out of disk space at any moment, earlier checkpoints stay as they were.
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
from shards.typed_json import to_json
from trainer.checkpoint.content import CONTENT, VERSION
from trainer.checkpoint.discovery import BEST, FOLDER, LATEST, best, checkpoint_folder, complete, latest
from trainer.checkpoint.reader import BUFFERS, RunState
from trainer.compat.deepspeed import MOMENTS, EngineState, flats, parameter_pieces, state_of
from trainer.distributed.ranks import Ranks
from trainer.errors import TrainError
from trainer.model_io.digests import FileFacts, file_facts, sealed
from trainer.model_io.safetensors_files import save_tensors

_FILE_BYTES = 2 << 30
"""A rank begins a new file from this size on; bounds the memory that writing takes."""

Pieces = dict[str, list[tuple[str, int, int]]]
"""Parameter -> (file, first element, number of elements) of each piece."""


def save(
    engine: EngineState,
    out: Path,
    state: RunState,
    *,
    ranks: Ranks,
    run_facts: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and remove old ones; all ranks call this. Raises TrainError on all ranks if one fails.

    run_facts: what is the same in all checkpoints of a run: config, manifest (its hash), frozen (see
    trainer.checkpoint.frozen_fingerprint), init_from (see trainer.checkpoint.init_from) and extensions (see
    trainer.config.extensions). keep: how many of the newest checkpoints stay, in addition to the best.
    """
    folder = checkpoint_folder(out, state.step)
    partial = folder.with_name(f".{folder.name}.partial")
    own_pieces: list[tuple[Pieces, dict[str, FileFacts]]] = []

    def together(work: Callable[[], None], *, by_all: bool = False) -> None:
        """One stage. Every rank raises if it failed on any."""
        failures = ranks.gather(_failure(work) if by_all or ranks.is_first else None)
        problems = [failure for failure in failures if failure is not None]
        if problems:
            if ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise TrainError(f"{folder}: cannot be written: {problems[0]}; {_what_is_left(out)}")

    together(lambda: _make_partial(partial))
    together(lambda: own_pieces.append(_write_pieces(engine, partial, ranks.rank)), by_all=True)
    written_by_ranks = ranks.gather(own_pieces[0])
    together(lambda: _finish(engine, partial, folder, state, run_facts, written_by_ranks))
    together(lambda: _prune(out, keep))
    return folder


def mark_best(out: Path, folder: Path, loss: float, *, ranks: Ranks, keep: int) -> None:
    """Record the checkpoint with the lowest evaluation loss. Raises TrainError on all ranks if that fails."""

    def mark() -> None:
        replace_file(out / FOLDER / BEST, (json.dumps({"checkpoint": folder.name, "loss": loss}) + "\n").encode())
        _prune(out, keep)

    problem = ranks.gather(_failure(mark) if ranks.is_first else None)[0]
    if problem is not None:
        raise TrainError(f"{out / FOLDER / BEST}: cannot be written: {problem}; {_what_is_left(out)}")


def _make_partial(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    for leftover in partial.parent.glob(".step-*.partial"):  # of a run that was killed while it wrote
        shutil.rmtree(leftover)
    partial.mkdir()


def _write_pieces(engine: EngineState, folder: Path, rank: int) -> tuple[Pieces, dict[str, FileFacts]]:
    """Write this rank's files; returns what they contain, and their digests."""
    pieces: Pieces = {}
    files: dict[str, FileFacts] = {}
    tensors: dict[str, torch.Tensor] = {}
    num_files = 0

    def file_name() -> str:
        return f"rank-{rank:05d}-{num_files:03d}.safetensors"

    def flush() -> None:
        nonlocal num_files
        if tensors:
            save_tensors(tensors, folder / file_name())
            files[file_name()] = file_facts(folder / file_name())
            tensors.clear()
            num_files += 1

    for piece in parameter_pieces(engine, rank=rank):
        adam = state_of(engine, piece.flat)
        tensors[f"weight/{piece.name}"] = piece.weight.to("cpu", torch.float32).clone()
        for kind in MOMENTS:
            if kind in adam:
                tensors[f"{kind}/{piece.name}"] = piece.view(adam[kind]).to("cpu", torch.float32).clone()
        pieces.setdefault(piece.name, []).append((file_name(), piece.start, piece.count))
        if sum(tensor.nbytes for tensor in tensors.values()) >= _FILE_BYTES:
            flush()
    flush()
    return pieces, files


def _finish(
    engine: EngineState,
    partial: Path,
    folder: Path,
    state: RunState,
    run_facts: Mapping[str, Any],
    written_by_ranks: Sequence[tuple[Pieces, dict[str, FileFacts]]],
) -> None:
    """What the first rank does: write buffers and checkpoint.json, then rename the folder."""
    persistent = {
        name
        for module_name, module in engine.module.named_modules()
        for name in _persistent_buffers(module_name, module)
    }
    buffers = {
        name: value.to("cpu").contiguous() for name, value in engine.module.named_buffers() if name in persistent
    }
    files = {name: file for _, files_of_rank in written_by_ranks for name, file in files_of_rank.items()}
    if buffers:
        save_tensors(buffers, partial / BUFFERS)
        files[BUFFERS] = file_facts(partial / BUFFERS)
    shapes = {
        name: list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }
    of_ranks = [held for held, _ in written_by_ranks]
    pieces = {
        name: sorted((piece for held in of_ranks for piece in held.get(name, ())), key=lambda piece: piece[1])
        for name in shapes
    }
    for name, shape in shapes.items():
        assert sum(count for _, _, count in pieces[name]) == math.prod(shape), f"{name}: pieces do not cover it"
    content = {
        "version": VERSION,
        "step": state.step,
        "adam_step": _adam_step(engine),
        "loss_scale": dict(state.loss_scale),
        "loader": dict(state.loader),
        **run_facts,
        "parameters": {name: {"shape": shapes[name], "pieces": pieces[name]} for name in shapes},
        "files": to_json(files),
    }
    replace_file(partial / CONTENT, sealed(content, indent=1))
    sync_folder(partial)
    if folder.exists():  # the run went back to an earlier checkpoint and makes this step again
        shutil.rmtree(folder)
    os.rename(partial, folder)
    sync_folder(folder.parent)
    replace_file(folder.parent / LATEST, f"{folder.name}\n".encode())


def _adam_step(engine: EngineState) -> int:
    """Steps that Adam made; fewer than the run's if fp16 skipped some."""
    for flat in flats(engine):
        step = state_of(engine, flat).get("step", 0)
        return int(step)
    return 0


def _persistent_buffers(prefix: str, module: torch.nn.Module) -> list[str]:
    names = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    return [f"{prefix}.{name}" if prefix else name for name in names]


def _failure(work: Callable[[], None]) -> str | None:
    """What went wrong on disk, in words; the other ranks must learn of it before any rank stops."""
    try:
        work()
    except OSError as error:
        return f"{error.strerror or error}"
    except SafetensorError as error:
        return str(error)
    return None


def _what_is_left(out: Path) -> str:
    newest = latest(out)
    left = f"the checkpoint {newest} is unchanged" if newest else "there is no earlier checkpoint"
    return f"{left}; free disk space and run the same command again"


def _prune(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the best. Steps after the newest are from before the run went back: old."""
    folders = complete(out)
    newest, best_checkpoint = latest(out), best(out)
    by_age = sorted(folders, key=lambda step: (newest is not None and folders[step] <= newest, step))
    for step in by_age[:-keep]:
        if best_checkpoint is None or folders[step] != best_checkpoint[0]:
            (folders[step] / CONTENT).unlink()  # what a crash leaves behind is then not a checkpoint
            shutil.rmtree(folders[step])
