"""A build from blend.yaml to manifest.json.

    config -> ingest (an adapter's pass over each dataset) -> frames of videos -> fingerprints of images -> split
        -> tasks -> shards -> manifest (-> upload to a URL)

Rules: errors that a user can fix are reported before work starts. The manifest is written last, so a folder with a
manifest is a complete build. Results of an earlier run are found by their content keys and reused.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dst.common.cpus import usable_cpus
from dst.common.progress import Progress, Silent
from preprocess.blend.config import Blend, Dataset
from preprocess.blend.inputs import Inputs
from preprocess.blend.resolve import Prepared, prepare, request_of
from preprocess.compiler.cluster_nodes import node_needs
from preprocess.compiler.commit import CACHE, StageResults, finish, sweep_partials
from preprocess.compiler.decoded_images import NAME as DECODED
from preprocess.compiler.decoded_images import write_decoded
from preprocess.compiler.engines import ENGINES, Engine, keeping_workers
from preprocess.compiler.fingerprints import FOLDER as FINGERPRINTS
from preprocess.compiler.fingerprints import FingerprintStage
from preprocess.compiler.frames import FramesStage
from preprocess.compiler.image_states import image_states
from preprocess.compiler.ingest import Ingested, finished, ingest_task, run_ingest
from preprocess.compiler.plan import make_context, official_use, plan_tasks
from preprocess.compiler.publish import Published, RemoteTarget, target
from preprocess.compiler.ray_engine import RayEngine
from preprocess.compiler.report import BuildReport, DatasetReport
from preprocess.compiler.run_task import read_result, run_task
from preprocess.compiler.select import Selection, select
from preprocess.compiler.split_assignment import CONFLICT, Side
from preprocess.compiler.spool import Spool
from preprocess.compiler.task import CompileTask
from preprocess.compiler.task_runner import TaskRunner
from preprocess.errors import ConfigError, DataError
from preprocess.images.embedded import has_embedded
from preprocess.images.prepare import even_count
from preprocess.images.stores import is_prepared, prepare_store
from shards.files import partial_path
from shards.format.manifest import EvaluationQuestions
from shards.format.manifest_file import NAME as MANIFEST
from shards.format.manifest_file import is_build

if TYPE_CHECKING:
    from shards.storage.remote import RemoteStore


def run_build(
    path: Path,
    *,
    out: str | Path | None = None,
    work: Path | None = None,
    workers: int | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> BuildReport:
    """Compile the blend file at `path` into a build folder; if `out` is a URL, publish it there.

    out: the folder or URL; default: the file's `out:`, else ./build. work: the folder where a build for a URL is
    compiled; it stays for the next run; default: a folder of its own for each URL. workers: tasks at the same time;
    None: one for each CPU that this process may use, or that the Ray cluster has. settings: `a.b=value` overrides.
    Raises ConfigError or shards.LocationError (no work was done), or DataError or ShardError (finished work stays for
    the next run).
    """
    return build_and_publish(path, out=out, work=work, workers=workers, settings=settings, progress=progress)[0]


def build_and_publish(
    path: Path,
    *,
    out: str | Path | None = None,
    work: Path | None = None,
    workers: int | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[BuildReport, Published | None]:
    """As `run_build`; also returns what was uploaded, if `out` is a URL."""
    prepared = prepare(path, settings)
    blend = prepared.blend
    folder, store = target(path, blend, out, work)
    progress = progress or Silent()
    with _locked(folder), _engine(prepared, folder, store, workers) as engine:
        sweep_partials(folder)
        remote = RemoteTarget(store, folder / CACHE / "published") if store else None
        run = TaskRunner(engine, workers or usable_cpus(), progress)
        _index_archives(prepared, folder, run)
        ingested, spools = _ingest(prepared, folder, run)
        used: set[Path] = set()
        _spread_frames(prepared, FramesStage(folder / CACHE, blend.image.max_pixels, run, used), ingested, spools)
        stores = {name: _stores(prepared, name, spool) for name, spool in spools.items()}
        states = image_states(spools, stores, folder / CACHE, run)
        fingerprints = FingerprintStage(
            spools=spools,
            stores=stores,
            states=states,
            cache=folder / CACHE,
            max_pixels=blend.image.max_pixels,
            run=run,
            used=used,
            looks=[],
        )
        selection = select(blend, fingerprints, prepared.evaluation_sets)
        decoded = _decoded_images(blend, fingerprints)
        tasks = _tasks(prepared, folder, fingerprints, selection.sides, decoded, store.location if store else None)
        known = partial(read_result, remote=remote.before if remote else None)
        results = run("compiling", run_task, tasks, known=known, weight=lambda task: len(task.rows))
        reports = {
            dataset.name: _report(
                blend, dataset, ingested[dataset.name], prepared.inputs[dataset.name], spools[dataset.name], selection
            )
            for dataset in blend.datasets
        }
        for task, result in zip(tasks, results, strict=True):
            reports[task.context.dataset].add(task.split, result)
        report = BuildReport(
            path=folder, datasets=reports, reused_tasks=run.reused, built_tasks=run.built, notes=prepared.notes
        )
        report.questions = [
            EvaluationQuestions(file=one.file, ngram=one.ngram, count=len(one.texts), too_short=one.too_short)
            for one in selection.questions
        ]
        stages = StageResults(
            spools=spools, selection=selection, tasks=tasks, results=results, fingerprints=fingerprints.used
        )
        finish(folder, prepared, report, stages, remote=remote.folder if remote else None)
        return report, remote.publish((shard for _, shard in stages.shards()), progress) if remote else None


def _engine(
    prepared: Prepared, folder: Path, store: RemoteStore | None, workers: int | None
) -> AbstractContextManager[Engine]:
    """The blend's engine. Ray's nodes share the build folder, or, if the build goes to a URL, nothing."""
    if prepared.blend.engine != "ray":
        return keeping_workers(ENGINES[prepared.blend.engine])
    paths = [path for inputs in prepared.inputs.values() for path in (*inputs.annotations, *inputs.images)]
    needs = node_needs(paths, None if store else folder / CACHE / "lock")
    return RayEngine(workers, needs, carrier_of=(folder, folder / CACHE) if store else None)


def _index_archives(prepared: Prepared, folder: Path, run: TaskRunner) -> None:
    """Index image archives first, in every build: an archive may have changed while its records did not."""
    cache = folder / CACHE
    paths = dict.fromkeys(path for inputs in prepared.inputs.values() for path in inputs.images)
    tasks = [(path, cache) for path in paths if not is_prepared(path, cache)]
    if tasks:
        errors = run("indexing", _prepare_store, tasks, known=lambda task: None)
        if any(errors):
            raise DataError("\n".join(filter(None, errors)))


def _prepare_store(task: tuple[Path, Path]) -> str:
    """Why an archive cannot be used; "" if it can."""
    try:
        prepare_store(*task)
    except DataError as error:
        return str(error)
    return ""


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
    found = run("reading", run_ingest, tasks, known=finished)
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
    if not tokenizer.is_dir():
        partial = partial_path(tokenizer)
        prepared.tokenizer.save(partial, prepared.template("").source)
        partial.rename(tokenizer)
    tasks: list[CompileTask] = []
    for dataset in prepared.blend.datasets:
        template = prepared.template(dataset.name)
        context = make_context(
            prepared.blend,
            dataset,
            build=folder,
            cache=cache,
            spool=stage.spools[dataset.name].folder,
            images=stage.stores[dataset.name],
            tokenizer=tokenizer,
            template=(template.name, template.source),
            decoded=decoded,
        )
        context, name = replace(context, url=url), dataset.name
        tasks += plan_tasks(prepared.blend, dataset, context, stage.spools[name], sides[name], stage.states[name])
    return tasks


def _report(
    blend: Blend, dataset: Dataset, ingested: Ingested, inputs: Inputs, spool: Spool, selection: Selection
) -> DatasetReport:
    report = DatasetReport(
        name=dataset.name,
        records=ingested.records,
        inputs=ingested.inputs,
        absent=inputs.absent,
        official_files=ingested.official_files,
        official_use=official_use(blend, dataset),
    )
    report.rejects.update(ingested.rejects)
    report.forms.update(ingested.forms)
    report.ignored_keys.update(ingested.ignored_keys)
    report.unused_names = tuple(ingested.unused_names)
    report.filtered.update(ingested.filtered)
    conflicts = int(spool.column("members")[selection.sides[dataset.name] == CONFLICT].sum())
    if conflicts:
        report.rejects["split_conflict"] += conflicts
    for exclusion in selection.exclusions[dataset.name]:
        if records := exclusion.records(spool):
            report.rejects[exclusion.reason] += records
    return report


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder. The lock ends with its process, in whatever way that ends."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"{folder}: is a file; expected a folder for the build"])
    manifest = folder / MANIFEST
    ours = (folder / CACHE / "lock").exists() or (manifest.is_file() and is_build(manifest.read_bytes()))
    if folder.exists() and not ours and any(folder.iterdir()):
        raise ConfigError([f"{folder}: holds other files, which a build would mix with its own; choose another --out"])
    try:
        (folder / CACHE).mkdir(parents=True, exist_ok=True)
        lock = (folder / CACHE / "lock").open("a")
    except OSError as error:
        raise ConfigError([f"{folder}: cannot be written ({error.strerror}); choose another --out"]) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another build is running there; wait for it, or choose another --out") from None
        lock.truncate(0)
        lock.write(secrets.token_hex(8))  # by which a node of a cluster knows the folder
        lock.flush()
        yield
