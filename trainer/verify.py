"""`dsvl-train verify`: compare every byte of a run's checkpoints, of an export or of an adapter with its digests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dst.errors import ConfigError, DsvlError
from trainer.checkpoint.content import CONTENT
from trainer.checkpoint.discovery import BEST, FOLDER, LATEST, best
from trainer.checkpoint.reader import BUFFERS, Checkpoint
from trainer.model_io.adapter_record import ADAPTER_RECORD, read_adapter_record
from trainer.model_io.digests import CheckedFiles, FileFacts
from trainer.model_io.record import AGAIN, RECORD, WEIGHTS_SUFFIX, model_config, read_record, unchecked_note


@dataclass(slots=True)
class VerifiedFolder:
    """What was read of a folder, and what is wrong with it, a line for each problem."""

    files: int = 0
    size_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Of folders without digests"""


def verify_folder(folder: Path) -> VerifiedFolder:
    """Read a run, a checkpoint, an export or an adapter. Raises ConfigError if the folder is none of them."""
    verified = VerifiedFolder()
    checkpoints = folder / FOLDER
    if checkpoints.is_dir():
        _verify_run(folder, verified)
    elif (folder / CONTENT).is_file() or (folder.parent.name == FOLDER and folder.name.startswith("step-")):
        _verify_checkpoint(folder, verified)
    elif (folder / RECORD).is_file():
        _verify_export(folder, verified)
    elif (folder / ADAPTER_RECORD).is_file():
        _verify_adapter(folder, verified)
    else:
        raise ConfigError(
            [
                f"{folder}: nothing to verify there; expected a run's `out` folder (with {FOLDER}/), a checkpoint "
                f"(with {CONTENT}), an export (with {RECORD}) or an exported adapter (with {ADAPTER_RECORD})"
            ]
        )
    return verified


def _verify_run(out: Path, verified: VerifiedFolder) -> None:
    folders = sorted(path for path in (out / FOLDER).iterdir() if path.name.startswith("step-"))
    if not folders:
        verified.notes.append(f"{out / FOLDER}: has no checkpoint")
    for folder in folders:
        _verify_checkpoint(folder, verified)
    for name in (LATEST, BEST):
        pointer = out / FOLDER / name
        if pointer.is_file():
            verified.files += 1
            verified.size_bytes += pointer.stat().st_size
            if not _points_to_checkpoint(out, name):
                verified.problems.append(
                    f"{pointer}: is damaged: it names no checkpoint of the run; remove the file, or copy it again"
                )


def _points_to_checkpoint(out: Path, name: str) -> bool:
    if name == BEST:
        return best(out) is not None
    try:
        named = (out / FOLDER / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return False
    return Path(named).name == named and (out / FOLDER / named / CONTENT).is_file()


def _verify_checkpoint(folder: Path, verified: VerifiedFolder) -> None:
    try:
        checkpoint = Checkpoint(folder)
    except DsvlError as error:
        verified.problems.append(str(error))
        return
    verified.notes += checkpoint.notes
    pieces = (piece.file for parameter in checkpoint.content.parameters.values() for piece in parameter.pieces)
    buffers = (BUFFERS,) if not checkpoint.files.has_digests and (folder / BUFFERS).is_file() else ()
    names = dict.fromkeys((*(checkpoint.content.files or ()), *pieces, *buffers))
    _read(checkpoint.files, names, verified)
    verified.problems += checkpoint.foreign()
    _count(folder, (CONTENT,), verified)


def _verify_export(folder: Path, verified: VerifiedFolder) -> None:
    try:
        record = read_record(folder)
        model_config(record.model)
    except DsvlError as error:
        verified.problems.append(str(error))
        return
    verified.notes += unchecked_note(folder, record)
    _verify_listed(folder, {**record.files, **(record.other_files or {})}, record.has_digests, RECORD, verified)


def _verify_adapter(folder: Path, verified: VerifiedFolder) -> None:
    try:
        record = read_adapter_record(folder)
    except DsvlError as error:
        verified.problems.append(str(error))
        return
    _verify_listed(folder, record.files, True, ADAPTER_RECORD, verified)


def _verify_listed(
    folder: Path, listed: Mapping[str, FileFacts], has_digests: bool, record_name: str, verified: VerifiedFolder
) -> None:
    files = CheckedFiles(folder, listed, has_digests=has_digests, next_step=AGAIN)
    _read(files, listed, verified)
    verified.problems += files.foreign((*listed, record_name))
    _count(folder, (record_name,), verified)


def _read(files: CheckedFiles, names: Iterable[str], verified: VerifiedFolder) -> None:
    """Compare files with their digests; of files without digests, look at the structure of the weights."""
    for name in names:
        problem = files.problem(name)
        if problem is None and not files.has_digests and name.endswith(WEIGHTS_SUFFIX):
            problem = _structure_problem(files.folder / name)
        if problem is not None:
            verified.problems.append(problem)
        _count(files.folder, (name,), verified)


def _structure_problem(path: Path) -> str | None:
    try:
        with safe_open(str(path), framework="numpy"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{path}: is damaged ({error}); copy it again"


def _count(folder: Path, names: Iterable[str], verified: VerifiedFolder) -> None:
    for path in (folder / name for name in names):
        if path.is_file():
            verified.files += 1
            verified.size_bytes += path.stat().st_size
