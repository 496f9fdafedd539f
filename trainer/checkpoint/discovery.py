"""Finding checkpoints in a run's folder: the newest, the best, and the one to resume from.

checkpoints/step-00000500/  a checkpoint; complete if it contains checkpoint.json
checkpoints/latest          the name of the newest
checkpoints/best            JSON: the checkpoint with the lowest evaluation loss, and that loss
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dst.errors import ConfigError
from trainer.checkpoint.compatibility import resume_problems
from trainer.checkpoint.content import CONTENT
from trainer.checkpoint.reader import Checkpoint, steps_in
from trainer.distributed.ranks import Ranks

FOLDER = "checkpoints"
LATEST, BEST = "latest", "best"
PLACES = f"a run's `out` folder, one of its {FOLDER}/step-... folders, or its {FOLDER}/{BEST}"


def checkpoint_folder(out: Path, step: int) -> Path:
    """The folder of the checkpoint of one step."""
    return out / FOLDER / f"step-{step:08d}"


def locate(location: Path) -> Path | None:
    """The folder of the checkpoint at `location`: a checkpoint, a run's folder (its newest), or a run's file `best`."""
    if (location / CONTENT).is_file():
        return location
    if location.name == BEST and (best_checkpoint := best(location.parent.parent)):
        return best_checkpoint[0]
    return latest(location)


def find(out: Path, resume: str) -> Checkpoint | None:
    """The checkpoint to resume from: the newest in a run's folder (`auto`), or the one at the path `resume`.

    A checkpoint of another run is where this run begins; once this run has checkpoints of its own, it resumes from
    them. Raises ConfigError: `never` where there are checkpoints, a path without a checkpoint, a newer release's.
    """
    newest = latest(out)
    if resume not in ("auto", "never"):
        folder = locate(Path(resume))
        if folder is None:
            raise ConfigError([f"checkpoints.resume: {resume}: no checkpoint there; expected {PLACES}"])
        named = Checkpoint(folder)
        is_own = folder.resolve().parent == (out / FOLDER).resolve()
        return named if is_own or newest is None else Checkpoint(newest)
    if newest is not None and resume == "never":
        raise ConfigError(
            [f"checkpoints.resume: is never, but {newest} exists; choose another `out`, or remove that folder"]
        )
    return Checkpoint(newest) if newest else None


def find_together(
    out: Path, resume: str, config: Mapping[str, Any], manifest_hash: str, ranks: Ranks
) -> Checkpoint | None:
    """The checkpoint to resume from; all ranks call this.

    Raises ConfigError on all ranks if the checkpoint does not fit the run, or if ranks see different ones.
    """
    checkpoint, problems = None, []
    try:
        checkpoint = find(out, resume)
        if checkpoint is not None:
            problems = resume_problems(checkpoint, config, manifest_hash)
    except ConfigError as error:
        problems = error.problems
    of_all_ranks = ranks.gather((None if checkpoint is None else checkpoint.folder.name, problems))
    problems = list(dict.fromkeys(problem for _, rank_problems in of_all_ranks for problem in rank_problems))
    names = sorted({name or "none" for name, _ in of_all_ranks})
    if not problems and len(names) > 1:
        problems = [
            f"out: ranks see different checkpoints in {out}: {', '.join(names)}; expected one folder that all nodes "
            "share"
        ]
    if problems:
        raise ConfigError(problems)
    return checkpoint


def latest(out: Path) -> Path | None:
    """The folder that `latest` names, or the one of the highest step if that is gone."""
    folders = complete(out)
    try:
        named = out / FOLDER / (out / FOLDER / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # of a file that is damaged
        named = None
    return named if named in folders.values() else folders[max(folders)] if folders else None


def best(out: Path) -> tuple[Path, float] | None:
    """The folder of the checkpoint with the lowest evaluation loss so far, and that loss."""
    try:
        record = json.loads((out / FOLDER / BEST).read_text(encoding="utf-8"))
        folder, loss = out / FOLDER / str(record["checkpoint"]), float(record["loss"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return (folder, loss) if (folder / CONTENT).exists() else None


def complete(out: Path) -> dict[int, Path]:
    """Step -> folder of each complete checkpoint."""
    return steps_in(out / FOLDER)
