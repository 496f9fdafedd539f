"""Plan one dataset once with the packages of a checkout, in a process of its own: the runner of tools.bench.plan.

    python tools/bench/planning/once.py '{"mode": "plan", "spool": FOLDER, "files": FOLDER, "workers": 2, ...}'

Prints one line of JSON: CPU seconds of this process and of its workers, seconds, and bytes by which its memory grew.
It imports nothing of `tools`, so that any checkout can run it.
"""

from __future__ import annotations

import inspect
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from dst.common.progress import Silent
from preprocess.blend.config import Blend, Dataset, Split
from preprocess.compiler.engines import keeping_workers, process_engine
from preprocess.compiler.fingerprints import FingerprintStage
from preprocess.compiler.plan import make_context, plan_tasks
from preprocess.compiler.select import select
from preprocess.compiler.spool import Spool, write_spool
from preprocess.compiler.task_runner import TaskRunner
from preprocess.conversation import Conversation, Image, RecordSource, Turn

NAME = "bench"
FILES_IN_A_FOLDER = 1000


def main() -> None:
    task = json.loads(sys.argv[1])
    if task["mode"] == "write":
        folder = Path(task["spool"])
        folder.mkdir(parents=True)
        write_spool(folder, NAME, _conversations(task["rows"], task["num_files"]))
        print("{}")
    else:
        print(json.dumps(_plan(Path(task["spool"]), Path(task["files"]), task["workers"], task["eval_share"])))


def file_name(number: int) -> str:
    return f"{number // FILES_IN_A_FOLDER:05d}/{number:012d}.jpg"


def _conversations(rows: int, num_files: int) -> Iterator[Conversation]:
    """One image a row, as in most datasets; with fewer files than rows, a file comes back after all others."""
    answer = Turn(role="assistant", parts=("A thing.",))
    for row in range(rows):
        name = file_name(row % num_files)
        yield Conversation(
            id=f"{row}",
            turns=(Turn(role="user", parts=(Image(name=name), "What?")), answer),
            sources=(RecordSource(file="a.json", record=f"{row}"),),
            groups=(name,),
        )


def _plan(folder: Path, files: Path, workers: int, eval_share: float) -> dict[str, float]:
    dataset = Dataset(name=NAME, adapter="chat")
    blend = Blend(tokenizer="", datasets=(dataset,), split=Split(eval=eval_share))
    cache = folder.parent / f"{folder.name}-cache"
    with keeping_workers(process_engine) as engine:
        run = TaskRunner(engine, workers, Silent())
        memory, start, own = _peak_bytes(), time.perf_counter(), time.process_time()
        spool = Spool(folder)
        stage = _stage({NAME: spool}, {NAME: (files,)}, cache, run)
        sides = select(blend, stage).sides
        context = make_context(
            blend,
            dataset,
            build=cache,
            cache=cache,
            spool=folder,
            images=(files,),
            tokenizer=cache / "tokenizer",
            template=("plain", ""),
            decoded=None,
        )
        arguments: list[Any] = [blend, dataset, context, spool, sides[NAME]]
        if "states" in inspect.signature(plan_tasks).parameters:
            arguments.append(stage.states[NAME])
        tasks = list(plan_tasks(*arguments))
        report = {
            "cpu": time.process_time() - own,
            "seconds": time.perf_counter() - start,
            "bytes": _peak_bytes() - memory,
            "tasks": len(tasks),
            "rows": sum(len(one.rows) for one in tasks),
        }
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return report | {"workers_cpu": usage.ru_utime + usage.ru_stime}


def _stage(spools: Any, stores: Any, cache: Path, run: TaskRunner) -> FingerprintStage:
    """Of this checkout; an older one has no states of images."""
    settings: dict[str, Any] = {"spools": spools, "stores": stores, "cache": cache, "max_pixels": 10**8, "run": run}
    if any(field.name == "states" for field in fields(FingerprintStage)):
        from preprocess.compiler.image_states import image_states

        settings["states"] = image_states(spools, stores, cache, run)
    return FingerprintStage(**settings, used=set(), looks=[])


def _peak_bytes() -> int:
    """The most memory that this process had at any time, with the pages of files that it touched."""
    status = Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main()
