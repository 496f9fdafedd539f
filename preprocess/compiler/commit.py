"""The last stage of a build: put rejects, tokenizer, shards and manifest in place, then remove obsolete files.

Rule: manifest.json appears last and names every file by digest. Until then new shards stay in the cache; if other files
must change first, the old manifest is removed before them. So a manifest never describes files of another build.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from dst.common.extensions import ExtensionOrigin
from preprocess.blend.config import Blend, resolved
from preprocess.blend.resolve import Prepared
from preprocess.compiler.fingerprints import FOLDER as FINGERPRINTS
from preprocess.compiler.frames import FOLDER as FRAMES
from preprocess.compiler.missing_images import missing_images_hint
from preprocess.compiler.plan import shares
from preprocess.compiler.report import BuildReport, DatasetReport, counts_text
from preprocess.compiler.select import Selection
from preprocess.compiler.shard_files import shard_root
from preprocess.compiler.split_assignment import CONFLICT, NAMES
from preprocess.compiler.spool import Spool, reject_all, reject_line
from preprocess.compiler.task import CompileTask, TaskResult
from preprocess.compiler_version import COMPILER, libraries
from preprocess.conversation import REQUESTED
from preprocess.errors import DataError
from preprocess.images.stores import current_files, open_stores
from shards import ShardInfo
from shards.files import file_sha256, partial_path, sync_folder
from shards.format.manifest import BuildConfig, DatasetInfo, ExtensionFacts, InputFile, Manifest, TokenizerInfo
from shards.format.manifest_file import NAME as MANIFEST
from shards.format.manifest_file import write_manifest
from shards.format.shard_info import ShardList
from shards.typed_json import from_json

CACHE = ".cache"
REJECTS = "rejects.jsonl"
_OUR_SHARD = re.compile(rf"(?:{'|'.join(NAMES)})-\d{{5,}}-[0-9a-f]{{8}}\.(?:tar|arrow|tar\.idx)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResults:
    """What the earlier stages made: by dataset, and each task with its result. fingerprints: files in the cache."""

    spools: Mapping[str, Spool]
    selection: Selection
    tasks: Sequence[CompileTask]
    results: Sequence[TaskResult]
    fingerprints: Set[Path]

    def shards(self) -> Iterator[tuple[CompileTask, ShardInfo]]:
        for task, result in zip(self.tasks, self.results, strict=True):
            if result.shard is not None:
                yield task, result.shard


def finish(
    folder: Path, prepared: Prepared, report: BuildReport, work: StageResults, *, remote: Path | None = None
) -> None:
    """Raises DataError, without a change to the build, for a dataset with too many rejects or without samples.

    remote: of a build whose shards are at a URL, the folder for its other files, from which they are sent there.
    """
    for dataset in report.datasets.values():
        assert dataset.records == dataset.members + sum(dataset.rejects.values()), dataset
        inputs = prepared.inputs[dataset.name]
        dataset.images_hint = missing_images_hint(
            dataset,
            work.spools[dataset.name],
            inputs.root,
            inputs.images,
            partial(open_stores, inputs.images, folder / CACHE),
        )
    scratch = partial_path(folder / CACHE / "finish")
    scratch.mkdir()
    try:
        with (scratch / REJECTS).open("wb") as file:
            for line in _reject_lines(work, prepared.blend):
                file.write(line)
        _check_rejects(folder, prepared, report, scratch / REJECTS)
        have = {name: dataset.to_draw for name, dataset in report.datasets.items()}
        for name, share in shares(prepared.blend, have).items():
            report.datasets[name].draws, report.datasets[name].share = share.samples, share.share
        prepared.tokenizer.save(scratch / "tokenizer", prepared.template("").source)
        files = {path.relative_to(scratch).as_posix(): path for path in sorted(scratch.rglob("*")) if path.is_file()}
        _publish(remote or folder, _manifest(prepared, report, work, files), files, () if remote else work.shards())
    finally:
        shutil.rmtree(scratch)
    _sweep(folder, prepared, work, has_shards=remote is None)


def sweep_partials(folder: Path) -> None:
    """Remove partial files of a killed run."""
    for path in (
        *folder.glob(f"{CACHE}/**/.*.partial"),
        *folder.glob(".*.partial"),
        *folder.glob("tokenizer/.*.partial"),
    ):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _reject_lines(work: StageResults, blend: Blend) -> Iterator[bytes]:
    """For each dataset: the rejects of the adapter, of the split, of dedupe, and of the compiler."""
    of_tasks: dict[str, list[CompileTask]] = {}
    for task, result in zip(work.tasks, work.results, strict=True):
        if result.rejects:
            of_tasks.setdefault(task.context.dataset, []).append(task)
    for dataset in blend.datasets:
        name, spool = dataset.name, work.spools[dataset.name]
        conflict = (
            "at least one of them, or a copy, is on the eval side, and the blend puts this dataset on the train side "
            "(split: train)"
            if dataset.split == "train"
            else "some of them, or copies of them, are on the eval side, some on the train side"
        )
        with (spool.folder / REJECTS).open("rb") as file:
            yield from file
        for row in np.flatnonzero(work.selection.sides[name] == CONFLICT).tolist():
            conversation = spool[row]
            detail = f"shows {', '.join(conversation.groups)}; {conflict}"
            for reject in reject_all(conversation, "split_conflict", detail):
                yield reject_line(name, reject)
        for exclusion in work.selection.exclusions[name]:
            for reject in exclusion.rejects(spool):
                yield reject_line(name, reject)
        for task in of_tasks.get(name, ()):
            with task.rejects.open("rb") as file:
                yield from file


def _check_rejects(folder: Path, prepared: Prepared, report: BuildReport, rejects: Path) -> None:
    limit = prepared.blend.limits.max_reject_share
    problems = []
    for dataset in report.datasets.values():
        counted = Counter({reason: count for reason, count in dataset.rejects.items() if reason not in REQUESTED})
        lost = counted.total()
        records = dataset.members + lost
        if lost > limit * records:
            reasons = ", ".join(f"{reason} {count}" for reason, count in counted.most_common())
            problems.append(
                f"dataset {dataset.name}: {lost} of {records} records are rejects ({reasons}); "
                f"limits.max_reject_share allows {limit:g}"
                + (f"; {dataset.images_hint}" if dataset.images_hint else "")
            )
        elif dataset.filtered and not dataset.members:
            problems.append(
                f"dataset {dataset.name}: its filter leaves no record ({counts_text(dataset.filtered)}); change the "
                "filter, or remove the dataset"
            )
    if problems:
        # An existing manifest pins its own rejects file, which must not change.
        kept = folder / (f"failed-{REJECTS}" if (folder / MANIFEST).exists() else REJECTS)
        os.replace(rejects, kept)
        raise DataError("\n".join([*problems, f"see {kept}; fix the data or raise the limit; finished work is kept"]))


def _manifest(prepared: Prepared, report: BuildReport, work: StageResults, files: Mapping[str, Path]) -> Manifest:
    shards: dict[str, dict[str, list[ShardInfo]]] = {name: {split: [] for split in NAMES} for name in report.datasets}
    for task, shard in work.shards():
        shards[task.context.dataset][task.split].append(shard)
    return Manifest(
        dsvl=metadata.version("dsvl"),
        compiler=COMPILER,
        libraries=libraries(),
        config=from_json(BuildConfig, resolved(prepared.blend), "config"),
        template=prepared.template("").source,
        tokenizer=TokenizerInfo(
            fingerprint=prepared.tokenizer.fingerprint,
            vocabulary_size=prepared.tokenizer.vocabulary_size,
            image_id=prepared.tokenizer.image_id,
            bos_token=prepared.tokenizer.bos_token,
            eos_token=prepared.tokenizer.eos_token,
        ),
        datasets={
            dataset.name: _dataset_info(
                report.datasets[dataset.name],
                adapter=dataset.adapter,
                extension=prepared.extensions.get(dataset.name),
                template=prepared.template(dataset.name).source,
                shards=shards[dataset.name],
            )
            for dataset in prepared.blend.datasets
        },
        questions=tuple(report.questions) or None,
        files={name: file_sha256(path) for name, path in files.items()},
    )


def _dataset_info(
    report: DatasetReport,
    *,
    adapter: str,
    extension: ExtensionOrigin | None,
    template: str,
    shards: Mapping[str, Sequence[ShardInfo]],
) -> DatasetInfo:
    return DatasetInfo(
        adapter=adapter,
        extension=ExtensionFacts(**asdict(extension)) if extension else None,
        template=template,
        records=report.records,
        members=report.members,
        samples=report.samples,
        splits=report.splits,
        images=report.images,
        tokens=report.tokens,
        trained_tokens=report.trained_tokens,
        share=report.share,
        draws=report.draws,
        rejects=report.rejects,
        filtered=dict(report.filtered) or None,
        notes=report.notes,
        absent=report.absent,
        inputs=tuple(InputFile(**entry) for entry in report.inputs),
        shards={split: ShardList(infos) for split, infos in shards.items()},
    )


def _publish(
    folder: Path, manifest: Manifest, files: Mapping[str, Path], shards: Iterable[tuple[CompileTask, ShardInfo]]
) -> None:
    changed = [name for name, path in files.items() if not _same(folder / name, path)]
    if changed:
        (folder / MANIFEST).unlink(missing_ok=True)
    moved = [(files[name], folder / name) for name in changed]
    for task, shard in shards:
        root = shard_root(task, shard)
        if root != folder:
            moved += [(root / path, folder / path) for path in (shard.index, shard.path)]
    for source, target in moved:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(source, target)
    for parent in {target.parent for _, target in moved}:
        sync_folder(parent)
    write_manifest(folder, manifest)


def _same(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_size == other.stat().st_size and file_sha256(path) == file_sha256(other)


def _sweep(folder: Path, prepared: Prepared, work: StageResults, *, has_shards: bool) -> None:
    """Remove our own files that belong to nothing of this build: shards, cached results, indexes of archives."""
    cache = folder / CACHE
    keep = {
        folder / path
        for _, shard in (work.shards() if has_shards else ())
        for path in (shard.path, shard.index, f"{shard.path}.idx")
    }
    keep |= {path for task in work.tasks for path in (task.marker, task.rejects, task.digests)}
    keep |= {spool.folder for spool in work.spools.values()}
    keep |= {cache / "tokenizer" / prepared.tokenizer.fingerprint[:32]}
    keep |= work.fingerprints
    for inputs in prepared.inputs.values():
        for path in inputs.images:
            keep |= current_files(path, cache)
    for path in folder.glob("shards/*/*"):
        if path not in keep and _OUR_SHARD.fullmatch(path.name):
            path.unlink()
    for path in (
        path
        for part in ("tasks", "ingest", FINGERPRINTS, FRAMES, "stores", "tokenizer")
        for path in cache.glob(f"{part}/*")
    ):
        if path not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(cache / "staged", ignore_errors=True)
    for empty in folder.glob("shards/*"):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()
    (folder / f"failed-{REJECTS}").unlink(missing_ok=True)
    if not has_shards:  # what the folder held when it was a whole build
        for name in (MANIFEST, REJECTS):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
