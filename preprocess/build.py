"""A build from blend.yaml to manifest.json.

    config -> ingest (an adapter's pass over each dataset) -> split -> tasks -> shards -> manifest

Rules: everything a user can fix is reported before work starts. The manifest is written last, so a folder with a
manifest is a whole build. What an earlier run finished is found by its content key and used again.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dst import ChatTokenizer, Template, TemplateError, TextTokenizer, TokenizerError, load_template, load_tokenizer
from preprocess.adapter import Request
from preprocess.compile import read_result, run_task
from preprocess.config import Blend, Dataset, Inputs, find_inputs, load_blend
from preprocess.engines import ENGINES
from preprocess.errors import ConfigError, DataError
from preprocess.finish import CACHE, finish, sweep_partials
from preprocess.ingest import IngestTask, finished, run_ingest
from preprocess.plan import assign_splits, make_context, plan_tasks
from preprocess.progress import Progress, Silent
from preprocess.report import BuildReport, DatasetReport
from preprocess.split import CONFLICT
from preprocess.spool import Spool
from preprocess.task import CompileTask

T = TypeVar("T")
R = TypeVar("R")
Side = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked configuration: what is known before any data is read."""

    blend: Blend
    inputs: Mapping[str, Inputs]
    tokenizer: TextTokenizer
    templates: Mapping[str, Template]
    """dataset name -> template; "" -> the blend's own."""


def run_build(
    path: Path,
    *,
    out: Path | None = None,
    workers: int = 1,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> BuildReport:
    """Compile the blend file at `path` into a build folder.

    out: the folder; default the file's `out:`, else ./build. settings: `a.b=value` overrides.
    Raises ConfigError (nothing was done) or DataError (what is finished stays for the next run).
    """
    progress = progress or Silent()
    plan = prepare(path, settings)
    folder = out or (path.parent / plan.blend.out if plan.blend.out else Path("build"))
    with _locked(folder):
        sweep_partials(folder)
        run = _Runner(plan.blend, workers, progress)
        spools = _ingest(plan, folder, run)
        sides = assign_splits(plan.blend, spools)
        tasks = _tasks(plan, folder, spools, sides)
        results = run.all("compiling", run_task, tasks, known=read_result, weight=lambda task: len(task.rows))
        reports = {
            dataset.name: _report(dataset, run.summaries[dataset.name], spools[dataset.name], sides[dataset.name])
            for dataset in plan.blend.datasets
        }
        for task, result in zip(tasks, results, strict=True):
            reports[task.context.dataset].add(task.split, result)
        report = BuildReport(path=folder, datasets=reports, reused_tasks=run.reused, built_tasks=run.built)
        finish(folder, plan, report, spools, sides, tasks, results)
    return report


def prepare(path: Path, settings: Sequence[str] = ()) -> Plan:
    """Check everything that can be checked without reading data. Raises ConfigError with all problems."""
    blend = load_blend(path, settings)
    base = path.parent
    problems: list[str] = []
    inputs: dict[str, Inputs] = {}
    try:
        inputs.update(find_inputs(blend, base))
    except ConfigError as error:
        problems += error.problems
    templates: dict[str, Template] = {}
    wanted: list[tuple[str, str, str, Mapping[str, Any]]] = [("", "template", blend.template, blend.variables)]
    for index, dataset in enumerate(blend.datasets):
        if dataset.template is not None or dataset.variables is not None:
            variables = dataset.variables if dataset.variables is not None else {}
            where = f"datasets.{index} ({dataset.name}).template"
            wanted.append((dataset.name, where, dataset.template or blend.template, variables))
    for name, where, template, template_variables in wanted:
        try:
            templates[name] = load_template(_beside(base, template), template_variables)
        except TemplateError as error:
            problems.append(f"{where}: {error}")
    try:
        tokenizer = load_tokenizer(_beside(base, blend.tokenizer), blend.add_tokens)
    except TokenizerError as error:
        problems.append(f"tokenizer: {error}")
        raise ConfigError([f"{path.name}: {problem}" for problem in problems]) from None
    for name, template_text in templates.items():
        try:
            ChatTokenizer(template_text, tokenizer)
        except (TemplateError, TokenizerError) as error:
            where = "template" if not name else f"dataset {name}: template"
            problems.append(f"{where}: {error}")
    if problems:
        raise ConfigError([f"{path.name}: {problem}" for problem in problems])
    return Plan(blend=blend, inputs=inputs, tokenizer=tokenizer, templates=templates)


class _Runner:
    """Runs tasks on the chosen engine, skips what an earlier run finished, and counts both."""

    def __init__(self, blend: Blend, workers: int, progress: Progress) -> None:
        self._engine = ENGINES[blend.engine]
        self._workers = workers
        self._progress = progress
        self.reused = self.built = 0
        self.summaries: dict[str, dict[str, Any]] = {}

    def all(
        self,
        label: str,
        function: Callable[[T], R],
        tasks: Sequence[T],
        *,
        known: Callable[[T], R | None],
        weight: Callable[[T], int] = lambda task: 1,
    ) -> list[R]:
        """The tasks' results, in the tasks' order."""
        results: list[R | None] = [known(task) for task in tasks]
        waiting = [index for index, result in enumerate(results) if result is None]
        self.reused += len(tasks) - len(waiting)
        self.built += len(waiting)
        with self._progress.step(label, sum(weight(tasks[index]) for index in waiting)) as advance:
            for place, result in self._engine(function, [tasks[index] for index in waiting], self._workers):
                results[waiting[place]] = result
                advance(weight(tasks[waiting[place]]))
        return [result for result in results if result is not None]


def _ingest(plan: Plan, folder: Path, run: _Runner) -> dict[str, Spool]:
    tasks = [
        IngestTask(
            dataset=dataset.name,
            adapter=dataset.adapter,
            request=Request(
                root=plan.inputs[dataset.name].root,
                annotations=plan.inputs[dataset.name].annotations,
                images=plan.inputs[dataset.name].images,
                options=dataset.all_options,
                seed=plan.blend.seed,
                max_images=plan.blend.limits.max_images,
            ),
            cache=folder / CACHE,
            first=dataset.first,
        )
        for dataset in plan.blend.datasets
    ]
    summaries = run.all("reading", run_ingest, tasks, known=finished)
    errors = [summary["error"] for summary in summaries if "error" in summary]
    if errors:
        raise DataError("\n".join(errors))
    run.summaries = {task.dataset: summary for task, summary in zip(tasks, summaries, strict=True)}
    return {task.dataset: Spool(task.folder) for task in tasks}


def _tasks(plan: Plan, folder: Path, spools: Mapping[str, Spool], sides: Mapping[str, Side]) -> list[CompileTask]:
    cache = folder / CACHE
    tokenizer = cache / "tokenizer" / plan.tokenizer.fingerprint[:32]
    if not (tokenizer / "chat_template.jinja").exists():
        plan.tokenizer.save(tokenizer, plan.templates[""].source)
    tasks: list[CompileTask] = []
    for dataset in plan.blend.datasets:
        template = plan.templates.get(dataset.name, plan.templates[""])
        context = make_context(
            plan.blend,
            dataset,
            build=folder,
            cache=cache,
            spool=spools[dataset.name].folder,
            images=plan.inputs[dataset.name].images,
            tokenizer=tokenizer,
            template=(template.name, template.source),
        )
        tasks += plan_tasks(plan.blend, dataset, context, spools[dataset.name], sides[dataset.name])
    return tasks


def _report(dataset: Dataset, summary: Mapping[str, Any], spool: Spool, side: Side) -> DatasetReport:
    report = DatasetReport(name=dataset.name, records=summary["records"], inputs=summary["inputs"])
    report.rejects.update(summary["rejects"])
    conflicts = int(spool.column("members")[side == CONFLICT].sum())
    if conflicts:
        report.rejects["split_conflict"] += conflicts
    return report


def _beside(base: Path, name: str) -> str:
    """A relative path that exists beside the blend file; otherwise the name as it is."""
    return str(base / name) if (base / name).exists() else name


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder. The lock goes with its process, however that ends."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"{folder}: is a file; wanted a folder for the build"])
    try:
        (folder / CACHE).mkdir(parents=True, exist_ok=True)
        lock = (folder / CACHE / "lock").open("w")
    except OSError as error:
        raise ConfigError([f"{folder}: cannot be written ({error.strerror}); choose another --out"]) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another build is running there; wait for it, or choose another --out") from None
        yield
