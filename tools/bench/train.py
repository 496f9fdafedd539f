"""Measure the trainer: MMCA's kernels, how full packed sequences are, and whole training steps.

    python -m tools.bench.train [--scratch FOLDER] [--only speed,dense,memory,packing,step] [--set a.b=value ...]

speed: forward and backward of trainer.attention.mmca against causal scaled_dot_product_attention of one shape. dense:
against explicit additive masks, as DeepSpeed-VisualChat's modelling code has them. memory: peak memory as they grow; on
the CPU it is what the peak of the resident set grows by, in a process of its own. packing: tokens used by packed
sequences of the sample blend, against padding. step: `dsvl-train run` of real sizes, random weights: tokens/s, MFU,
data wait, memory.
`--set` changes settings of the runs of step, such as precision=fp16 or batch.micro_batch_size=4.
Ends with a table of goals; prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tools.bench.data import machine
from tools.bench.training.attention import DTYPES, bench_dense, bench_memory, bench_speed
from tools.bench.training.goals import Goal, print_goals
from tools.bench.training.packing import bench_packing
from tools.bench.training.step import CONFIGURATIONS, bench_step

PARTS = ("speed", "dense", "memory", "packing", "step")


def main() -> None:
    arguments = _arguments()
    device: str = arguments.device
    threads = arguments.threads if device == "cpu" else [torch.get_num_threads()]
    gpus = "" if device == "cpu" else f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    print(f"{machine()}{gpus}, torch {torch.__version__}", flush=True)
    goals: list[Goal] = []
    well = True
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for section in arguments.only:
            if section == "speed":
                goals += bench_speed(device, arguments.types, threads, arguments.repeats)
            elif section == "dense":
                goals += bench_dense(device, arguments.types, threads, arguments.repeats)
            elif section == "memory":
                goals += bench_memory(device, arguments.types)
            elif section == "packing":
                goals += bench_packing(Path(folder))
            else:
                step_goals, well = bench_step(
                    Path(folder),
                    arguments.models,
                    device=device,
                    ranks=arguments.ranks,
                    build=arguments.build,
                    steps=arguments.steps,
                    settings=arguments.settings,
                )
                goals += step_goals
    if goals:
        print_goals(goals)
    sys.exit(0 if well else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--scratch", type=Path, help="a folder on a local disk  [default: the system's temporary one]")
    parser.add_argument("--only", type=_some_of(PARTS), default=list(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="of each attention; the median counts")
    parser.add_argument("--types", type=_some_of(tuple(DTYPES)), default=["fp32", "bf16"], help="of attention")
    parser.add_argument("--threads", type=_numbers, default=[1, 2], help="CPU threads of attention to try, such as 1,2")
    parser.add_argument("--models", type=_some_of(tuple(CONFIGURATIONS)), help="of " + ",".join(CONFIGURATIONS))
    parser.add_argument("--steps", type=int, default=20, help="of each training that count")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each training")
    parser.add_argument("--build", help="a build for step that was made elsewhere; see tools/bench/training/step.py")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="a.b=value", help="of step's runs"
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not cuda:
        parser.error("--device: torch sees no CUDA device; expected cpu")
    if arguments.models is None:
        arguments.models = ["tiny"] if arguments.device == "cpu" else ["lora", "full"]
    if arguments.scratch is not None:
        arguments.scratch = arguments.scratch.resolve()
        arguments.scratch.mkdir(parents=True, exist_ok=True)
    if arguments.build is not None and Path(arguments.build).exists():  # it may be a URL
        arguments.build = str(Path(arguments.build).resolve())
    return arguments


def _some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        names_chosen = text.split(",")
        unknown = [name for name in names_chosen if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}; expected some of {', '.join(names)}")
        return names_chosen

    return chosen


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
