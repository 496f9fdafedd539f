"""Train and measure every setting of docs/evidence.md, and write its numbers, figures and tables.

python -m tools.evidence.run --data PHOTOS --out build/evidence            # after tools.evidence.parts

PHOTOS: a folder with one .json file in LLaVA's format, and its images. Run it again after an interruption: what is
finished is not repeated. --docs docs writes the figures and the tables into the documentation.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
from pathlib import Path

from tools.evidence.data import write_data
from tools.evidence.page import write_page
from tools.evidence.probe import probe
from tools.evidence.results import collect
from tools.evidence.runs import command, run
from tools.evidence.settings import IMAGE_SIZE, LAYER, Plan, settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="run only settings whose name contains it, such as mmca-mlp or -0")
    parser.add_argument("--jobs", type=int, default=2, help="runs next to each other, each on one core")
    parser.add_argument("--docs", type=Path, help="the documentation to write into")
    arguments = parser.parse_args()
    for part in ("decoder", "encoder"):
        if not (arguments.out / "parts" / part).exists():
            parser.error(f"{arguments.out / 'parts' / part} is missing; run python -m tools.evidence.parts first")
    plan = plan_of(arguments.out / "parts")
    evidence(plan, arguments.data, arguments.out, only=arguments.only, jobs=arguments.jobs)
    if arguments.docs is not None:
        write_page(json.loads((arguments.out / "results.json").read_text()), arguments.docs)


def plan_of(parts: Path) -> Plan:
    encoder, decoder = (str((parts / part).resolve()) for part in ("encoder", "decoder"))
    return Plan(
        encoder={"kind": "hf", "name": encoder, "image_size": IMAGE_SIZE, "layer": LAYER},
        decoder={"name": decoder},
        tokenizer=parts / "decoder",
    )


def evidence(plan: Plan, data: Path, out: Path, *, only: str = "", jobs: int = 1) -> None:
    """Write OUT/results.json. The build and the runs are below OUT; those of another plan must be removed before."""
    out = out.resolve()
    stated = out / "plan.json"
    plan_text = json.dumps(dataclasses.asdict(plan), indent=2, default=str)
    if stated.exists() and stated.read_text() != plan_text:
        raise SystemExit(f"{stated}: what is below {out} has another plan; delete its build and runs, or choose --out")
    blend = write_data(
        data,
        out / "data",
        tokenizer=plan.tokenizer,
        image_size=plan.image_size,
        image_tokens=plan.image_tokens,
        held_out=plan.held_out,
    )
    stated.write_text(plan_text)
    build = out / "build"
    command(out, "prep", "preprocess.cli", "build", "--blend", str(blend), "--out", str(build))
    chosen = [setting for setting in settings(plan) if only in setting.name]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(run, plan, each, build=build, out=out / "runs" / each.name) for each in chosen]:
            done.result()
    results = collect(plan, out)
    if "name" in plan.encoder:
        results["probe"] = probe(data, Path(plan.encoder["name"]), plan.encoder["layer"], plan.image_size)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
