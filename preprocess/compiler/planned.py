"""All stages of a build before its shards: from the files of the blend to the tasks that compile.

    ingest (an adapter's pass over each dataset) -> frames of videos -> fingerprints of images -> split -> tasks

Rule: planning again after nothing changed gives the same tasks, and reads no record.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preprocess.blend.config import Blend
from preprocess.blend.resolve import Prepared, request_of
from preprocess.compiler.commit import CACHE
from preprocess.compiler.decoded_images import NAME as DECODED
from preprocess.compiler.decoded_images import write_decoded
from preprocess.compiler.fingerprints import FOLDER as FINGERPRINTS
from preprocess.compiler.fingerprints import FingerprintStage
from preprocess.compiler.frames import FramesStage
from preprocess.compiler.image_indexes import index_archives, list_folders
from preprocess.compiler.image_states import image_states
from preprocess.compiler.ingest import Ingested, ingest_task
from preprocess.compiler.ingest_stage import read_datasets
from preprocess.compiler.plan import make_context, plan_tasks
from preprocess.compiler.select import Selection, select
from preprocess.compiler.split_assignment import Side
from preprocess.compiler.spool import Spool
from preprocess.compiler.task import CompileTask
from preprocess.compiler.task_runner import TaskRunner
from preprocess.errors import DataError
from preprocess.images.embedded import has_embedded
from preprocess.images.prepare import even_count
from shards.files import partial_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What the stages made. ingested: by dataset. stage: with the spools, stores and states of images by dataset."""

    ingested: Mapping[str, Ingested]
    stage: FingerprintStage
    selection: Selection
    tasks: list[CompileTask]


def plan_build(prepared: Prepared, folder: Path, run: TaskRunner, url: str | None = None) -> Planned:
    """url: where shards are sent. Raises DataError or OSError; finished work stays for the next run."""
    images = [path for inputs in prepared.inputs.values() for path in inputs.images]
    list_folders(images, folder / CACHE, run)
    # In every build: an archive may have changed while its records did not.
    index_archives(images, folder / CACHE, run)
    ingested, spools = _ingest(prepared, folder, run)
    used: set[Path] = set()
    max_pixels = prepared.blend.image.max_pixels
    _spread_frames(prepared, FramesStage(folder / CACHE, max_pixels, run, used), ingested, spools)
    stores = {name: _stores(prepared, name, spool) for name, spool in spools.items()}
    stage = FingerprintStage(
        spools=spools,
        stores=stores,
        states=image_states(spools, stores, folder / CACHE, run),
        cache=folder / CACHE,
        max_pixels=max_pixels,
        run=run,
        used=used,
        looks=[],
    )
    selection = select(prepared.blend, stage, prepared.evaluation_sets)
    tasks = _tasks(prepared, folder, stage, selection.sides, _decoded_images(prepared.blend, stage), url)
    return Planned(ingested=ingested, stage=stage, selection=selection, tasks=tasks)


def _ingest(prepared: Prepared, folder: Path, run: TaskRunner) -> tuple[dict[str, Ingested], dict[str, Spool]]:
    tasks = [
        ingest_task(
            dataset.name,
            dataset.adapter,
            request_of(prepared.blend, dataset, prepared.inputs[dataset.name]),
            folder / CACHE,
            dataset.first,
            prepared.extensions.get(dataset.name),
            dataset.filter,
        )
        for dataset in prepared.blend.datasets
    ]
    found = read_datasets(tasks, run)
    errors = [one.error for one in found if one.error]
    if errors:
        raise DataError("\n".join(errors))
    names = [task.dataset for task in tasks]
    return dict(zip(names, found, strict=True)), {task.dataset: Spool(task.folder) for task in tasks}


def _spread_frames(
    prepared: Prepared, stage: FramesStage, ingested: dict[str, Ingested], spools: dict[str, Spool]
) -> None:
    """Replace the datasets that ask for evenly spaced frames by those with the frames as images."""
    for dataset in prepared.blend.datasets:
        name = dataset.name
        if count := even_count(prepared.blend.policy_for(dataset).frames):
            stores = _stores(prepared, name, spools[name])
            ingested[name], spools[name] = stage.spread(name, ingested[name], spools[name], stores, count)


def _decoded_images(blend: Blend, fingerprints: FingerprintStage) -> Path | None:
    """The file of the images that need no further check; None if there are none, or the compiler needs their pixels."""
    if not fingerprints.looks or blend.image.check == "header" or blend.image.store == "resized":
        return None
    path = fingerprints.cache / FINGERPRINTS / DECODED
    write_decoded(fingerprints.looks, path)
    return path


def _stores(prepared: Prepared, dataset: str, spool: Spool) -> tuple[Path, ...]:
    """The dataset's image stores, and last the one of images that are inside its records as text, if there are any."""
    embedded = (spool.folder,) if has_embedded(spool.folder) else ()
    return (*prepared.stores(dataset), *embedded)


def _tasks(
    prepared: Prepared,
    folder: Path,
    stage: FingerprintStage,
    sides: Mapping[str, Side],
    decoded: Path | None,
    url: str | None,
) -> list[CompileTask]:
    cache = folder / CACHE
    tokenizer = cache / "tokenizer" / prepared.tokenizer.fingerprint[:32]
    partial = partial_path(tokenizer)
    prepared.tokenizer.save(partial, prepared.template("").source)
    if _same_files(partial, tokenizer):
        shutil.rmtree(partial)
    else:  # the folder of an earlier run may be damaged
        shutil.rmtree(tokenizer, ignore_errors=True)
        partial.rename(tokenizer)
    tasks: list[CompileTask] = []
    for dataset in prepared.blend.datasets:
        name = dataset.name
        template = prepared.template(name)
        context = make_context(
            prepared.blend,
            dataset,
            build=folder,
            cache=cache,
            spool=stage.spools[name].folder,
            images=stage.stores[name],
            tokenizer=tokenizer,
            template=(template.name, template.source),
            decoded=decoded,
            url=url,
        )
        tasks += plan_tasks(prepared.blend, dataset, context, stage.spools[name], sides[name], stage.states[name])
    return tasks


def _same_files(folder: Path, other: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return filecmp.cmpfiles(folder, other, names, shallow=False)[0] == names
