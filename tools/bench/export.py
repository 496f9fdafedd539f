"""Measure the memory that `dsvl-train export` takes for a LoRA run, and what it took with all weights in memory.

    python -m tools.bench.export [--scratch FOLDER] [--size 0.5B] [--precision bf16]

A decoder of Qwen2's shape with random weights in bfloat16, LoRA on all linear layers, and the examples' build and tiny
encoder; the checkpoint is written without a training step. Each measurement is a process of its own: the peak of its
resident memory, which has the pages of open files in it, over what it has when everything is imported. The weights of
both exports are compared byte for byte. Then the export is loaded with its digests and without, in turns. Prints
Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from tests.support.sealed_records import without_digests
from tools.bench.data import ROOT, machine
from tools.bench.training.goals import Goal, print_goals

SIZES: dict[str, dict[str, int]] = {
    "0.1B": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab_size": 150_000},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151_936},
}
HEAD_WIDTH = 64
LOADS = 5
WAYS = {"with all weights in memory": "whole", "tensor by tensor": "streamed"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="a folder on a local disk with room for three times the model")
    parser.add_argument("--size", choices=SIZES, default="0.5B")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the run and of its export")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "RUN", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load_seconds(options.load)))
        return
    if options.one:
        way, run, out = options.one
        print(json.dumps(measure(way, Path(run), Path(out))))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        parameters = make_run(folder, options.size, options.precision)
        print(f"{machine()}\n\n{parameters:,} parameters, {options.precision}\n")
        print("| export | peak memory over the imports | seconds |\n|---|---|---|")
        digests = set()
        for title, way in WAYS.items():
            command = [sys.executable, "-m", "tools.bench.export", "--one", way, str(folder / "run"), str(folder / way)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            print(f"| {title} | {result['bytes'] / (1 << 30):.2f} GiB | {result['seconds']:.1f} |")
            digests.add(_digest(folder / way / "model.safetensors"))
        print_loading(folder / "streamed")
        print(f"\nThe weights are {'equal byte for byte' if len(digests) == 1 else 'DIFFERENT'}.")
        if len(digests) > 1:
            sys.exit(1)


def print_loading(exported: Path) -> None:
    """With digests and without, in turns; the least of each counts."""
    bare = exported.with_name("bare")
    shutil.copytree(exported, bare)
    without_digests(bare / "dsvl.json")
    seconds: dict[Path, list[float]] = {exported: [], bare: []}
    for _ in range(LOADS):
        for folder, times in seconds.items():
            command = [sys.executable, "-m", "tools.bench.export", "--load", str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            times.append(json.loads(done.stdout.splitlines()[-1]))
    checked, unchecked = (min(times) for times in seconds.values())
    print("\n| loading the export | seconds |\n|---|---|")
    print(f"| without digests | {unchecked:.2f} |\n| each file compared with its digest | {checked:.2f} |")
    print_goals([Goal(what="loading with digests against without", got=checked / unchecked, expected=1.05)])


def load_seconds(folder: Path) -> float:
    """How long `trainer.load` takes in this process, without imports."""
    import open_clip  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    import trainer

    start = time.perf_counter()
    trainer.load(folder)
    return time.perf_counter() - start


def make_run(folder: Path, size: str, precision: str) -> int:
    """Write a build, a decoder and a checkpoint below `folder`; returns the number of the model's parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import shards
    from trainer.checkpoint.frozen_fingerprint import frozen_elements
    from trainer.checkpoint.reader import RunState
    from trainer.checkpoint.writer import save
    from trainer.config.run import config_from, to_tree
    from trainer.distributed.ranks import Ranks
    from trainer.training.assemble import assemble

    build = [sys.executable, "-m", "preprocess.cli", "build", "--blend", "examples/blend.yaml"]
    subprocess.run([*build, "--out", str(folder / "build")], cwd=ROOT, check=True, capture_output=True)
    sizes = SIZES[size]
    heads = {"num_attention_heads": sizes["hidden_size"] // HEAD_WIDTH, "num_key_value_heads": 2}
    hf_config = AutoConfig.for_model("qwen2", tie_word_embeddings=True, **heads, **sizes)
    decoder: Any = AutoModelForCausalLM.from_config(hf_config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    decoder.save_pretrained(folder / "decoder")
    del decoder
    tree = yaml.safe_load((ROOT / "examples/train.yaml").read_text(encoding="utf-8"))
    tree["model"]["decoder"] = {"name": str(folder / "decoder")}
    tree |= {"build": str(folder / "build"), "out": str(folder / "run"), "precision": precision}
    tree |= {"lora": {"decoder": {"rank": 16}}, "learning_rates": {"projector": 1e-3}}
    config = config_from(tree, "examples/train.yaml")
    opened = shards.open(config.build)
    model = assemble(config, opened.manifest.facts()).model
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.data = (
                torch.randn(parameter.shape, generator=random, dtype=torch.float32).to(parameter.dtype) * 0.01
            )
    facts = {"config": to_tree(config), "manifest": opened.manifest.hash, "frozen": frozen_elements(model)}
    state = RunState(step=1, loader={}, loss_scale={})
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    save(_Engine(model), folder / "run", state, ranks=alone, run_facts={**facts, "init_from": None}, keep=1)
    return sum(parameter.numel() for parameter in model.parameters())


class _Engine:
    """An engine of ZeRO 0 before its first step."""

    def __init__(self, module: Any) -> None:
        import torch

        self.module, self.optimizer = module, None
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.basic_optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained)

    def zero_optimization_stage(self) -> int:
        return 0

    def fp16_enabled(self) -> bool:
        return False


def measure(way: str, run: Path, out: Path) -> dict[str, float]:
    """Export in this process; returns seconds and the peak of memory in bytes."""
    import open_clip  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    from trainer.export.export import export, export_model
    from trainer.training.restore import open_run, restore

    before, start = _resident("VmRSS"), time.perf_counter()
    if way == "whole":
        opened = open_run(run)
        model = restore(opened)
        export_model(model, opened.config, opened.build, out, step=1, precision=opened.config.precision)
    else:
        export(run, out)
    return {"bytes": _resident("VmHWM") - before, "seconds": time.perf_counter() - start}


def _resident(name: str) -> int:
    """Bytes of a line of Linux's status file."""
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert match
    return int(match[1]) * 1024


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
