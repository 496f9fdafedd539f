"""One run: projector stage, export, LoRA stage and measurements, each by the command that a user would type.

A command that finished has a file next to its folder with what it cost, and is not repeated. One that did not finish
begins again with nothing, so that its cost is that of the whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tools.evidence.settings import Plan, Setting, lora_stage, projector_stage

ROOT = Path(__file__).resolve().parent.parent.parent


def run(plan: Plan, setting: Setting, *, build: Path, out: Path) -> None:
    """Everything of a setting below `out`. Raises SystemExit if a command fails, with the file that has its output."""
    out.mkdir(parents=True, exist_ok=True)
    projector, start, lora = out / "projector", out / "start", out / "lora"
    train(out, "projector", projector_stage(plan, setting, build=build, out=projector))
    command(out, "start", "trainer.cli", "export", "--model", str(projector), "--out", str(start), made=start)
    train(out, "lora", lora_stage(plan, setting, build=build, out=lora, start=start))
    measure = ["eval", "--model", str(lora), "--blind", "--limit", str(plan.questions), "--max-new-tokens", "24"]
    report = ["--batch", "16", "--workers", "0", "--out", str(out / "report"), "--json"]
    command(out, "eval", "trainer.cli", *measure, *report)


def train(out: Path, name: str, config: dict[str, Any]) -> None:
    file = out / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    command(out, name, "trainer.cli", "run", "--config", str(file), made=out / name)


def command(out: Path, name: str, program: str, *arguments: str, made: Path | None = None) -> None:
    """Run one command once: its output is NAME.out and NAME.err, what it cost NAME.cost.json.

    made: the folder that it writes, removed if a try before did not finish.
    """
    cost = out / f"{name}.cost.json"
    if cost.exists():
        return
    if made is not None:
        shutil.rmtree(made, ignore_errors=True)
    begin = time.monotonic()
    with (out / f"{name}.out").open("w") as output, (out / f"{name}.err").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", program, *arguments], cwd=ROOT, env=environment(), stdout=output, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{out.name}: {name} ended with exit code {process.returncode}; see {out / name}.err")
    numbers = {"seconds": time.monotonic() - begin, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    cost.write_text(json.dumps(numbers | {"peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}))


def environment() -> dict[str, str]:
    """One core for each command, so that several run next to each other and their CPU seconds compare."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
