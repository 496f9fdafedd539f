"""Measure builds on Ray against worker processes, on two nodes against one, and with output at a URL against a folder.

    python -m tools.bench.cluster [--samples 20000] [--repeats 3] [--only ray,nodes,remote] [--scratch DIR]

Times are those of `run_build` in a program whose engine has started: Ray's own start takes seconds, once, whatever the
build. Runs of the two sides alternate; the best of each counts. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml

from tools.bench.data import ROOT, machine, make_images
from tools.bench.s3_sink import s3_sink

POLICIES: Mapping[str, Mapping[str, object]] = {
    "decode": {"check": "decode"},
    "resized": {"store": "resized", "size": 336},
}

_TIMED = """
import json, os, sys, time
from pathlib import Path
import preprocess.compiler.build as compiler
blend, out, engine, workers, work = json.loads(sys.argv[1])
if engine == "ray":
    import ray
    local = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level="error", **({} if os.environ.get("RAY_ADDRESS") else local))
start = time.perf_counter()
compiler.run_build(Path(blend), out=out, work=work and Path(work), workers=workers, settings=[f"engine={engine}"])
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="LLaVA-like records with a 640x480 JPEG each")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each measurement; the best counts")
    parser.add_argument("--only", default="ray,nodes,remote")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    parts = set(arguments.only.split(","))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        print(f"{machine()}\n")
        make_images(folder, arguments.samples)
        blend = write_blend(folder, POLICIES["decode"])
        if "ray" in parts:
            bench_ray(blend, arguments.samples, arguments.repeats)
        if "nodes" in parts:
            bench_nodes(blend, arguments.samples, arguments.repeats)
        if "remote" in parts:
            bench_remote(folder, arguments.samples, arguments.repeats)


def write_blend(folder: Path, image: Mapping[str, object]) -> Path:
    tree = {
        "tokenizer": str(ROOT / "examples/tokenizer"),
        "image": dict(image),
        "datasets": [{"name": "bench", "adapter": "llava", "root": str(folder), "samples": "all"}],
    }
    path = folder / "blend.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def bench_ray(blend: Path, samples: int, repeats: int) -> None:
    """One machine: Ray against worker processes."""
    seconds: dict[str, list[float]] = {"process": [], "ray": []}
    for _ in range(repeats):
        for engine, measured in seconds.items():
            measured.append(build_seconds(blend, engine=engine, workers=2))
    best = {engine: min(measured) for engine, measured in seconds.items()}
    print("| engine, 2 workers | samples/s | time against processes |\n|---|---|---|")
    for engine, value in best.items():
        print(f"| {engine} | {samples / value:,.0f} | {value / best['process'] - 1:+.1%} |", flush=True)
    print("\nexpected: Ray within +8% of processes\n", flush=True)


def bench_nodes(blend: Path, samples: int, repeats: int) -> None:
    """Clusters of nodes of one CPU each, on this machine; the driver and Ray's own processes share its cores."""
    from ray.cluster_utils import Cluster

    best: dict[int, float] = {}
    for _ in range(repeats):
        for nodes in (1, 2):
            cluster = Cluster()
            try:
                for _ in range(nodes):
                    cluster.add_node(num_cpus=1, include_dashboard=False)
                seconds = build_seconds(blend, engine="ray", workers=None, variables={"RAY_ADDRESS": cluster.address})
            finally:
                cluster.shutdown()
            best[nodes] = min(seconds, best.get(nodes, seconds))
    print("| nodes of one CPU | samples/s | against one |\n|---|---|---|")
    for nodes, value in best.items():
        print(f"| {nodes} | {samples / value:,.0f} | {best[1] / value:.2f}x |", flush=True)
    print("\nexpected: 2 nodes at least 1.80x of one\n", flush=True)


def bench_remote(folder: Path, samples: int, repeats: int) -> None:
    """The same build to a folder and to S3. The S3 server runs on this machine, and keeps nothing of the shards."""
    print("| image policy, 2 workers | to a folder, samples/s | to S3 | time | CPU time of the build |")
    print("|---|---|---|---|---|")
    for policy, image in POLICIES.items():
        blend = write_blend(folder, image)
        seconds: dict[str, list[float]] = {"folder": [], "S3": []}
        cpu: dict[str, list[float]] = {"folder": [], "S3": []}
        for number in range(repeats):
            with s3_sink() as bucket:
                for target, out in (("folder", None), ("S3", f"{bucket}/{number}")):
                    before = children_cpu_s()
                    work = folder / "work" if out else None
                    seconds[target].append(build_seconds(blend, engine="process", workers=2, out=out, work=work))
                    cpu[target].append(children_cpu_s() - before)
        rates = " | ".join(f"{samples / min(measured):,.0f}" for measured in seconds.values())
        ratios = " | ".join(f"{min(each['S3']) / min(each['folder']) - 1:+.1%}" for each in (seconds, cpu))
        print(f"| {policy} | {rates} | {ratios} |", flush=True)
    print("\nexpected: S3 within +15% of the folder\n", flush=True)


def children_cpu_s() -> float:
    """CPU seconds of the processes that this one started and that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def build_seconds(
    blend: Path,
    *,
    engine: str,
    workers: int | None,
    out: str | None = None,
    work: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> float:
    target = out or str(blend.parent / "build")
    for folder in (blend.parent / "build", work):
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    settings = json.dumps([str(blend), target, engine, workers, work and str(work)])
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), **(variables or {})}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TIMED, settings],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return float(done.stdout.strip().rsplit("\n", 1)[-1])


if __name__ == "__main__":
    main()
