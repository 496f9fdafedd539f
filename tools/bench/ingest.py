"""Measure reading one large annotation file: one worker against two, compressed, and against another checkout.

    python -m tools.bench.ingest [--megabytes 1000] [--repeats 3] [--compressed gzip zstd] [--against CHECKOUT]
                                 [--scratch FOLDER]

The file is a JSON array as LLaVA publishes it, with a question and an answer of 60 words in each record. Runs take
turns, so that a slower minute of the machine meets all of them; the best of each counts. Only the first stage of a
build is measured, with the start of its workers. Records a second and core are by CPU seconds of all processes, which
include those of the file's digest.
Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa

from tools.bench.checkouts import run_python
from tools.bench.data import RECORDS, ROOT, machine, words

WORKERS_EXPECTED = 1.70
CORE_EXPECTED = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compressed", choices=("gzip", "zstd"), nargs="*", default=(), help="also in these forms")
    parser.add_argument("--against", type=Path, default=None, help="a checkout to compare one core with")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    runs = {"one worker": (ROOT, 1, ""), "two workers": (ROOT, 2, "")}
    for form in arguments.compressed:
        runs |= {f"one worker, {form}": (ROOT, 1, form), f"two workers, {form}": (ROOT, 2, form)}
    if arguments.against:
        runs["one worker, the other checkout"] = (arguments.against.resolve(), 1, "")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        root = Path(scratch)
        count = write_records(root / RECORDS, arguments.megabytes * 10**6)
        print(f"{machine()}\n\n{count:,} records, {(root / RECORDS).stat().st_size / 1e6:,.0f} MB of JSON\n")
        for form in arguments.compressed:
            compressed = file_of(root, form)
            with (root / RECORDS).open("rb") as plain, pa.CompressedOutputStream(str(compressed), form) as file:
                shutil.copyfileobj(plain, file)
            print(f"{form}: {compressed.stat().st_size / 1e6:,.0f} MB\n")
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(arguments.repeats):
            for name, (checkout, workers, form) in runs.items():
                measured[name].append(seconds_of(checkout, root, file_of(root, form), workers, count))
    print("| | seconds | records/s | CPU seconds | records/s and core |\n|---|---|---|---|---|")
    best = {name: (min(wall for wall, _ in some), min(cpu for _, cpu in some)) for name, some in measured.items()}
    for name, (wall, cpu) in best.items():
        print(f"| {name} | {wall:.1f} | {count / wall:,.0f} | {cpu:.1f} | {count / cpu:,.0f} |")
    ratio = best["one worker"][0] / best["two workers"][0]
    print(f"\n- two workers against one: {ratio:.2f}x (expected: at least {WORKERS_EXPECTED:.2f}x)")
    if arguments.against:
        ratio = best["one worker, the other checkout"][1] / best["one worker"][1]
        print(f"- a core against one of the other checkout: {ratio:.2f}x (expected: at least {CORE_EXPECTED:.1f}x)")


def write_records(path: Path, size_bytes: int) -> int:
    """A JSON array of about this size. Returns the number of its records."""
    choose = random.Random(0)
    path.parent.mkdir(parents=True)
    texts = [(words(choose, 12), words(choose, 60)) for _ in range(4096)]
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        while file.tell() < size_bytes if count % 1024 == 0 else True:
            question, answer = texts[count % 4096]
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": f"{answer} {count}"}]
            record = {"id": f"{count:012d}", "image": f"{count:012d}.jpg", "conversations": turns}
            file.write(", " * (count > 0) + json.dumps(record))
            count += 1
        file.write("]")
    return count


def file_of(root: Path, form: str) -> Path:
    """The file in a compressed form; "" is the plain one."""
    return root / (f"{RECORDS}.{form}" if form else RECORDS)


def seconds_of(checkout: Path, root: Path, file: Path, workers: int, count: int) -> tuple[float, float]:
    """Wall seconds of the stage, and CPU seconds of its processes with their start."""
    shutil.rmtree(root / "cache", ignore_errors=True)
    line, cpu = run_python(checkout, ["-c", _STAGE, str(root), str(file), str(workers)])
    records, seconds = line.split()
    if int(records) != count:
        raise SystemExit(f"{checkout}: read {records} records; expected {count}")
    return float(seconds), cpu


_STAGE = """
import sys, time
from pathlib import Path
from dst.common.progress import Silent
from preprocess.adapters.base import Request
from preprocess.adapters.lookup import find_adapter
from preprocess.compiler.engines import keeping_workers, process_engine
from preprocess.compiler.ingest import finished, ingest_task, run_ingest
from preprocess.compiler.task_runner import TaskRunner
try:
    from preprocess.compiler.ingest_stage import read_datasets
except ImportError:  # a checkout from before datasets were read in pieces
    def read_datasets(tasks, run):
        return run("reading", run_ingest, tasks, known=finished)

root, workers = Path(sys.argv[1]), int(sys.argv[3])
options = {name: option.default for name, option in find_adapter("llava").options.items()}
request = Request(root=root, annotations=(Path(sys.argv[2]),), images=(root,), options=options)
task = ingest_task("bench", "llava", request, root / "cache", None)
if __name__ == "__main__":
    start = time.perf_counter()
    with keeping_workers(process_engine) as engine:
        (done,) = read_datasets([task], TaskRunner(engine, workers, Silent()))
    assert done.error is None, done.error
    print(done.conversations, time.perf_counter() - start)
"""


if __name__ == "__main__":
    main()
