"""The numbers of finished runs, from what the commands wrote, as one JSON object that holds no text of the data."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.evidence.settings import Plan, settings

STAGES = ("projector", "lora")
LIBRARIES = ("torch", "transformers", "deepspeed", "peft")


def collect(plan: Plan, out: Path) -> dict[str, Any]:
    """Of all settings that are finished below `out`."""
    finished = [setting for setting in settings(plan) if (out / "runs" / setting.name / "eval.cost.json").exists()]
    return {
        "plan": {
            name: getattr(plan, name)
            for name in plan.__dataclass_fields__
            if name not in ("encoder", "decoder", "tokenizer")
        },
        "machine": {"processor": processor(), "cores of a run": 1, "system": platform.system()},
        "libraries": {name: version(name) for name in LIBRARIES},
        "build": read(out / "build/manifest.json").get("hash"),
        "runs": [
            {
                "name": setting.name,
                "attention": setting.attention,
                "projector": setting.projector,
                "seed": setting.seed,
                **numbers(out / "runs" / setting.name),
            }
            for setting in finished
        ],
    }


def numbers(folder: Path) -> dict[str, Any]:
    """Of one run: costs of each command, curves of both stages, and what eval measured."""
    commands = (*STAGES, "start", "eval")
    costs = {name: read(folder / f"{name}.cost.json") for name in commands}
    measured = read(folder / "eval.out")
    return {
        "costs": {name: {key: round(value, 1) for key, value in cost.items()} for name, cost in costs.items()},
        "stages": {stage: curve(folder / stage / "metrics.jsonl") for stage in STAGES},
        "loss": rounded(measured["loss"]),
        "scores": rounded({row["dataset"]: row["metrics"] for row in measured["scores"]}),
        "blind": rounded(measured["blind"]),
    }


def curve(file: Path) -> dict[str, Any]:
    """Points (step, loss) in training, held-out losses at the end, tokens of each step, and memory."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] != "train" and "loss" in line]
    curves: dict[str, Any] = rounded(
        {
            "train": [[line["step"], line["loss"]] for line in trained],
            "held_out": [[line["step"], line["loss"]] for line in held_out],
            "tokens": sum(
                line["tokens_per_second"] * line["seconds_per_step"] * steps
                for line, steps in zip(trained, gaps(trained), strict=True)
            ),
            "seconds": sum(
                line["seconds_per_step"] * steps for line, steps in zip(trained, gaps(trained), strict=True)
            ),
            "memory_bytes": max(line["memory_bytes"] for line in trained),
        }
    )
    return curves


def gaps(lines: list[dict[str, Any]]) -> Iterator[int]:
    """Steps that each line is about."""
    before = 0
    for line in lines:
        yield line["step"] - before
        before = line["step"]


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def rounded(value: Any) -> Any:
    """Floats to five digits behind the point, in lists and objects as well."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def processor() -> str:
    """As Linux names it; elsewhere as Python does."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
