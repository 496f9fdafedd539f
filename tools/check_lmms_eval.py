"""Run tasks of lmms-eval with an export, and compare: `python -m tools.check_lmms_eval`.

Makes .venv-lmms-eval: the installed packages, and lmms-eval without the many that only other models and tasks of it
need. Trains a tiny model on the VQA sample of examples/, and runs three tasks of lmms-eval on that sample, in both
forms of its requests and with two batch sizes. The answers must be those of `dsvl-train eval` and of a conversation,
and the scores those that docs/evaluation.md promises. Takes a few minutes on one core; downloads 30 MB the first time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.lmms_eval_check.expected import exported_model, spoken
from tools.lmms_eval_check.local_tasks import SEEDBENCH, SEEDBENCH_PPL, UNREADABLE, VQA, asked, write_tasks

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-lmms-eval"
REQUIREMENTS = (
    "lmms_eval==0.7.3",
    *("chardet==6.0.0.post1", "DataProperty==1.1.1", "datasets==5.2.0", "dill==0.4.1", "evaluate==0.4.6"),
    "filelock==3.20.4",  # lmms-eval imports a module that newer ones do not have
    *(
        "loguru==0.7.3",
        "lxml==6.1.3",
        "mbstrdecoder==1.1.5",
        "multiprocess==0.70.19",
        "pandas==3.1.1",
        "pathvalidate==3.3.1",
    ),
    *("portalocker==4.4.2", "pytablewriter==1.2.1", "pytz==2026.6", "sacrebleu==2.6.0", "tabledata==1.3.5"),
    *("tabulate==0.10.0", "tcolorpy==0.1.7", "tenacity==9.2.1", "typepy==1.3.5"),
)
"""lmms-eval, and what it imports for these tasks and the environment does not have"""


def main() -> int:
    python = make_environment()
    with tempfile.TemporaryDirectory() as folder:
        return compare(python, Path(folder))


def make_environment() -> Path:
    """The Python of the environment, which is made or finished first."""
    python = VENV / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    site_packages = VENV / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    installed = sysconfig.get_paths()["purelib"]
    (site_packages / "installed.pth").write_text(f"import site; site.addsitedir({installed!r})\n")
    subprocess.run(
        [python, "-m", "pip", "install", "-qq", "--no-deps", *REQUIREMENTS, "--editable", str(ROOT)], check=True
    )
    return python


def compare(python: Path, folder: Path) -> int:
    """0 if every answer and score is as expected; prints what is not."""
    model, evaluated = exported_model(folder)
    letters = spoken(model, asked(SEEDBENCH))
    lmms_eval = LmmsEval(python=python, folder=folder, model=model, tasks=write_tasks(folder / "tasks", python))
    wrong: list[str] = []

    def expect(name: str, actual: object, expected: object) -> None:
        print(f"{'equal' if actual == expected else 'DIFFERENT'}: {name}")
        if actual != expected:
            wrong.append(f"{name}: got {actual!r}; expected {expected!r}")

    for form, options in (("chat", []), ("simple", ["--force_simple"])):
        for batch in (1, 3):
            name = f"{form}, {batch} at once"
            scores, answers = lmms_eval.scores_and_answers([VQA, SEEDBENCH], batch, options)
            expect(f"{VQA}, {name}: answers of dsvl-train eval", answers[VQA], evaluated.answers)
            expect(f"{VQA}, {name}: score", scores[VQA]["exact_match,none"], evaluated.vqa_accuracy_normalised)
            expect(f"{SEEDBENCH}, {name}: answers of a conversation", answers[SEEDBENCH], letters)
    scores, answers = lmms_eval.scores_and_answers([VQA, SEEDBENCH], 3, [], processes=2)
    expect(f"{VQA}, in two processes: answers", answers[VQA], evaluated.answers)
    expect(f"{VQA}, in two processes: score", scores[VQA]["exact_match,none"], evaluated.vqa_accuracy_normalised)
    expect(f"{SEEDBENCH}, in two processes: answers", answers[SEEDBENCH], letters)
    failed = lmms_eval.run([UNREADABLE], 1, [], processes=2, timeout_s=300)
    expect("an error in one of two processes: exit code", failed.returncode, 1)
    expect("an error in one of two processes: line", "task dsvl_unreadable, document 1: " in failed.stderr, True)
    scores, _ = lmms_eval.scores_and_answers([SEEDBENCH_PPL], 3, ["--force_simple"])
    expect(f"{SEEDBENCH_PPL}: the trained answers are chosen", scores[SEEDBENCH_PPL]["acc,none"], 1.0)
    print("\n".join(wrong))
    return int(bool(wrong))


@dataclass(frozen=True, slots=True, kw_only=True)
class LmmsEval:
    """lmms-eval with an export and some tasks. folder: for what it writes."""

    python: Path
    folder: Path
    model: Path
    tasks: Path

    def scores_and_answers(
        self, names: list[str], batch: int, options: list[str], *, processes: int = 1
    ) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, list[str]]]:
        """Scores of each task, and its answers in the order of its documents."""
        out = Path(tempfile.mkdtemp(dir=self.folder))
        options = ["--log_samples", "--output_path", str(out), *options]
        done = self.run(names, batch, options, processes=processes)
        results = next(out.rglob("*_results.json"), None)  # lmms-eval ends with 0 when it failed, too
        if results is None or done.returncode:
            sys.exit(f"lmms-eval failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        scores = json.loads(results.read_text())["results"]
        answers: dict[str, list[str]] = {}
        for name in names:
            (samples,) = out.rglob(f"*_samples_{name}.jsonl")
            lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
            answers[name] = [line["filtered_resps"] for line in lines]
        return scores, answers

    def run(
        self, names: list[str], batch: int, options: list[str], *, processes: int, timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Several processes with torchrun, which is what `accelerate launch` calls on machines with GPUs."""
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [str(self.python), *(launch if processes > 1 else []), "-m", "lmms_eval", "--model", "dsvl"]
        command += ["--model_args", f"pretrained={self.model},max_new_tokens=8"]
        command += ["--include_path", str(self.tasks), "--tasks", ",".join(names), "--batch_size", str(batch), *options]
        environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hub"), "PATH": "", "HOME": str(self.folder)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s)


if __name__ == "__main__":
    sys.exit(main())
