"""A build from blend.yaml to manifest.json.

    config -> ingest (an adapter's pass over each dataset) -> frames of videos -> fingerprints of images -> split
        -> tasks -> shards -> manifest (-> upload to a URL)

Rules: errors that a user can fix are reported before work starts. The manifest is written last, so a folder with a
manifest is a complete build. Results of an earlier run are found by their content keys and reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dst.common.cpus import usable_cpus
from dst.common.progress import Progress, Silent
from preprocess.blend.config import Dataset
from preprocess.blend.resolve import Prepared, prepare
from preprocess.compiler.build_lock import locked
from preprocess.compiler.changed_inputs import check_unchanged, forget_changed, forget_indexes
from preprocess.compiler.cluster_nodes import node_needs
from preprocess.compiler.commit import CACHE, StageResults, finish, sweep_partials
from preprocess.compiler.engines import ENGINES, Engine, keeping_workers
from preprocess.compiler.plan import official_use
from preprocess.compiler.planned import Planned, plan_build
from preprocess.compiler.publish import Published, RemoteTarget, target
from preprocess.compiler.ray_engine import RayEngine
from preprocess.compiler.report import BuildReport, DatasetReport
from preprocess.compiler.run_task import read_result, run_task
from preprocess.compiler.split_assignment import CONFLICT
from preprocess.compiler.task_runner import TaskRunner
from shards.files import disk_named
from shards.format.manifest import EvaluationQuestions

if TYPE_CHECKING:
    from shards.storage.remote import RemoteStore


def run_build(
    path: Path,
    *,
    out: str | Path | None = None,
    work: Path | None = None,
    workers: int | None = None,
    settings: Sequence[str] = (),
    check_inputs: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Compile the blend file at `path` into a build folder; if `out` is a URL, publish it there.

    out: the folder or URL; default: the file's `out:`, else ./build. work: the folder where a build for a URL is
    compiled; it stays for the next run; default: a folder of its own for each URL. workers: tasks at the same time;
    None: one for each CPU that this process may use, or that the Ray cluster has. settings: `a.b=value` overrides.
    check_inputs: read all inputs, also where size and time of a file are as before, and compile again what has other
    bytes.
    Raises ConfigError or shards.LocationError (no work was done), or DataError or ShardError (finished work stays for
    the next run).
    """
    return build_and_publish(
        path,
        out=out,
        work=work,
        workers=workers,
        settings=settings,
        check_inputs=check_inputs,
        progress=progress,
    )[0]


def build_and_publish(
    path: Path,
    *,
    out: str | Path | None = None,
    work: Path | None = None,
    workers: int | None = None,
    settings: Sequence[str] = (),
    check_inputs: bool = False,
    progress: Progress | None = None,
) -> tuple[BuildReport, Published | None]:
    """As `run_build`; also returns what was uploaded, if `out` is a URL."""
    prepared = prepare(path, settings)
    blend = prepared.blend
    folder, store = target(path, blend, out, work)
    progress = progress or Silent()
    with locked(folder), disk_named(folder), _engine(prepared, folder, store, workers) as engine:
        sweep_partials(folder)
        remote = RemoteTarget(store, folder / CACHE / "published") if store else None
        run = TaskRunner(engine, workers or usable_cpus(), progress)
        url, known = store.location if store else None, partial(read_result, remote=remote.before if remote else None)
        changed: Sequence[str] = ()
        if check_inputs:
            forget_indexes(prepared, folder / CACHE)
            planned = plan_build(prepared, folder, run, url)
            changed = forget_changed(prepared, planned, [task for task in planned.tasks if known(task)], run)
            run = TaskRunner(engine, run.workers, progress)
        planned = plan_build(prepared, folder, run, url)
        tasks, finished = planned.tasks, run.built
        results = run(
            "compiling",
            run_task,
            tasks,
            known=known,
            weight=lambda task: len(task.rows),
            marker=lambda task: task.marker,
        )
        if run.built > finished:
            check_unchanged(planned, run)
        reports = {dataset.name: _report(prepared, dataset, planned) for dataset in blend.datasets}
        for task, result in zip(tasks, results, strict=True):
            reports[task.context.dataset].add(task.split, result)
        report = BuildReport(
            path=folder,
            datasets=reports,
            reused_tasks=run.reused,
            built_tasks=run.built,
            notes=prepared.notes,
            changed=changed,
        )
        report.questions = [
            EvaluationQuestions(file=one.file, ngram=one.ngram, count=len(one.texts), too_short=one.too_short)
            for one in planned.selection.questions
        ]
        stages = StageResults(
            spools=planned.stage.spools,
            selection=planned.selection,
            tasks=tasks,
            results=results,
            fingerprints=planned.stage.used,
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


def _report(prepared: Prepared, dataset: Dataset, planned: Planned) -> DatasetReport:
    name = dataset.name
    ingested, selection, spool = planned.ingested[name], planned.selection, planned.stage.spools[name]
    report = DatasetReport(
        name=name,
        records=ingested.records,
        inputs=ingested.inputs,
        absent=prepared.inputs[name].absent,
        official_files=ingested.official_files,
        official_use=official_use(prepared.blend, dataset),
    )
    report.rejects.update(ingested.rejects)
    report.forms.update(ingested.forms)
    report.ignored_keys.update(ingested.ignored_keys)
    report.unused_names = tuple(ingested.unused_names)
    report.filtered.update(ingested.filtered)
    conflicts = int(spool.column("members")[selection.sides[name] == CONFLICT].sum())
    if conflicts:
        report.rejects["split_conflict"] += conflicts
    for exclusion in selection.exclusions[name]:
        if records := exclusion.records(spool):
            report.rejects[exclusion.reason] += records
    return report
