"""The last stage of a build: rejects, tokenizer, manifest; then what no longer belongs is removed.

Rule: manifest.json appears last and names every file by digest. If other files must change first, the old manifest goes
before them, so a manifest never describes files it was not made for.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preprocess.config import resolved
from preprocess.conversation import Reject, Source
from preprocess.errors import DataError
from preprocess.plan import shares
from preprocess.report import BuildReport
from preprocess.split import CONFLICT, NAMES
from preprocess.spool import Spool, reject_all, reject_line
from preprocess.task import CompileTask
from preprocess.version import COMPILER
from shards.manifest import NAME as MANIFEST
from shards.manifest import write_manifest
from shards.writer import replace_file

if TYPE_CHECKING:
    from preprocess.build import Plan, Side

CACHE = ".cache"
REJECTS = "rejects.jsonl"


def finish(
    folder: Path,
    plan: Plan,
    report: BuildReport,
    spools: Mapping[str, Spool],
    sides: Mapping[str, Side],
    tasks: Sequence[CompileTask],
    results: Sequence[Mapping[str, Any]],
) -> None:
    """Raises DataError, and writes no manifest, if a dataset lost too many records or gives no samples."""
    for dataset in report.datasets.values():
        assert dataset.records == dataset.members + sum(dataset.rejects.values()), dataset
    with tempfile.TemporaryDirectory(dir=folder / CACHE) as scratch:
        staged = Path(scratch)
        with (staged / REJECTS).open("wb") as file:
            for line in _reject_lines(spools, sides, tasks, results):
                file.write(line)
        _check_rejects(folder, plan, report, staged / REJECTS)
        for name, share in shares(
            plan.blend, {name: one.splits["train"] for name, one in report.datasets.items()}
        ).items():
            report.datasets[name].draws, report.datasets[name].share = share.samples, share.share
        plan.tokenizer.save(staged / "tokenizer", plan.templates[""].source)
        files = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
        content = _manifest(plan, report, tasks, results, files)
        _publish(folder, content, files)
    _sweep(folder, tasks, results, spools)


def sweep_partials(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in (
        *folder.glob("shards/*/.*.partial*"),
        *folder.glob(f"{CACHE}/**/.*.partial*"),
        *folder.glob(".*.partial"),
    ):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _reject_lines(
    spools: Mapping[str, Spool],
    sides: Mapping[str, Side],
    tasks: Sequence[CompileTask],
    results: Sequence[Mapping[str, Any]],
) -> Iterator[bytes]:
    """Dataset by dataset: what the adapter refused, what the split could not place, what the compiler refused."""
    for name, spool in spools.items():
        with (spool.folder / REJECTS).open("rb") as file:
            yield from file
        for row in np.flatnonzero(sides[name] == CONFLICT).tolist():
            conversation = spool[row]
            detail = f"shows {', '.join(conversation.groups)}; some are held out for eval, some are not"
            for reject in reject_all(conversation, "split_conflict", detail):
                yield reject_line(name, reject)
        for task, result in zip(tasks, results, strict=True):
            if task.context.dataset == name:
                for reason, source, record, detail in result["rejects"]:
                    reject = Reject(reason=reason, source=Source(file=source, record=record), detail=detail)
                    yield reject_line(name, reject)


def _check_rejects(folder: Path, plan: Plan, report: BuildReport, rejects: Path) -> None:
    limit = plan.blend.limits.max_reject_share
    problems = []
    for dataset in report.datasets.values():
        lost = sum(dataset.rejects.values())
        if lost > limit * dataset.records:
            reasons = ", ".join(f"{reason} {count}" for reason, count in dataset.rejects.most_common())
            problems.append(
                f"dataset {dataset.name}: {lost} of {dataset.records} records are rejects ({reasons}); "
                f"limits.max_reject_share allows {limit:g}"
            )
    if problems:
        # A manifest that is there pins its own rejects file, which must stay as it is.
        kept = folder / (f"failed-{REJECTS}" if (folder / MANIFEST).exists() else REJECTS)
        replace_file(kept, rejects.read_bytes())
        raise DataError("\n".join([*problems, f"read {kept}, mend the data or raise the limit; finished work is kept"]))


def _manifest(
    plan: Plan,
    report: BuildReport,
    tasks: Sequence[CompileTask],
    results: Sequence[Mapping[str, Any]],
    files: Mapping[str, Path],
) -> dict[str, Any]:
    shards: dict[str, dict[str, list[Any]]] = {name: {split: [] for split in NAMES} for name in report.datasets}
    for task, result in zip(tasks, results, strict=True):
        if result["shard"] is not None:
            shards[task.context.dataset][task.split].append(result["shard"])
    return {
        "dsvl": metadata.version("dsvl"),
        "compiler": COMPILER,
        "config": resolved(plan.blend),
        "template": plan.templates[""].source,
        "tokenizer": {
            "fingerprint": plan.tokenizer.fingerprint,
            "vocabulary_size": plan.tokenizer.vocabulary_size,
            "image_id": plan.tokenizer.image_id,
            "bos_token": plan.tokenizer.bos_token,
            "eos_token": plan.tokenizer.eos_token,
        },
        "datasets": {
            name: {
                **dataset.to_json(),
                "adapter": dataset_config.adapter,
                "template": plan.templates.get(name, plan.templates[""]).source,
                "inputs": dataset.inputs,
                "draws": dataset.draws,
                "shards": shards[name],
            }
            for dataset_config in plan.blend.datasets
            for name, dataset in [(dataset_config.name, report.datasets[dataset_config.name])]
        },
        "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
    }


def _publish(folder: Path, content: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    changed = [name for name, path in files.items() if not _same(folder / name, path)]
    if changed:
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in changed:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, files[name].read_bytes())
    write_manifest(folder, content)


def _same(path: Path, other: Path) -> bool:
    return path.is_file() and path.read_bytes() == other.read_bytes()


def _sweep(
    folder: Path, tasks: Sequence[CompileTask], results: Sequence[Mapping[str, Any]], spools: Mapping[str, Spool]
) -> None:
    """Remove shards, tokenizer files and cached results that belong to no task of this build."""
    shards = [result["shard"] for result in results if result["shard"] is not None]
    keep = {folder / shard[key] for shard in shards for key in ("path", "index")}
    keep |= {task.marker for task in tasks}
    keep |= {spool.folder for spool in spools.values()}
    stale = [*folder.glob("shards/*/*"), *folder.glob(f"{CACHE}/tasks/*"), *folder.glob(f"{CACHE}/ingest/*")]
    for path in stale:
        if path not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for empty in folder.glob("shards/*"):
        if not any(empty.iterdir()):
            empty.rmdir()
    (folder / f"failed-{REJECTS}").unlink(missing_ok=True)
