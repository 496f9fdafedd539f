"""A model that knows the VQA sample of examples/, and what this project's own programs make it say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools.lmms_eval_check.local_tasks import DATA, INSTRUCTION, ROOT

STEPS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What `dsvl-train eval` measured. answers: in the order of the questions."""

    answers: list[str]
    vqa_accuracy_normalised: float


def exported_model(folder: Path) -> tuple[Path, Evaluated]:
    """Train, export and evaluate a tiny model on the sample."""
    for split in ("train", "eval"):
        dataset = {"name": "vqa", "adapter": "vqa_v2", "root": str(DATA), "options": {"instruction": INSTRUCTION}}
        dataset |= {"samples": "all"} if split == "train" else {"split": "eval"}
        blend = {
            "tokenizer": str(ROOT / "examples/tokenizer"),
            "template": "visualchat",
            "image_tokens": 9,
            "image": {"size": 84},
            "limits": {"max_length": 1024},
            "datasets": [dataset],
        }
        (folder / f"{split}.yaml").write_text(yaml.safe_dump(blend))
        _run("preprocess.cli", "build", "--blend", f"{folder}/{split}.yaml", "--out", f"{folder}/{split}")
    config = yaml.safe_load((ROOT / "examples/train.yaml").read_text())
    config |= {"build": f"{folder}/train", "out": f"{folder}/run"}
    config["model"]["encoder"]["config"] |= {"image_size": 84}
    config["schedule"] |= {"steps": STEPS}
    config["checkpoints"] = {"every": STEPS}
    config["evaluation"] = {"every": 0}
    config["batch"] |= {"global_batch_size": 5, "micro_batch_size": 5}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    _run("trainer.cli", "run", "--config", f"{folder}/run.yaml")
    exported = folder / "exported"
    _run("trainer.cli", "export", "--model", f"{folder}/run", "--out", str(exported))
    options = [
        "--build",
        f"{folder}/eval",
        "--out",
        f"{folder}/report",
        "--max-new-tokens",
        "16",
        "--no-loss",
        "--json",
    ]
    scores = json.loads(_run("trainer.cli", "eval", "--model", str(exported), *options))["scores"]
    with (folder / "report/results.csv").open(newline="") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: int(row["record"].rpartition("/")[2]))
    return exported, Evaluated(
        answers=[row["answer"] for row in rows],
        vqa_accuracy_normalised=scores[0]["metrics"]["vqa_accuracy_normalised"],
    )


def spoken(model: Path, asked: list[tuple[Path, str]]) -> list[str]:
    """The answers of one conversation for each image and text, from the image's file."""
    from trainer.inference.conversation import Exchange, answer_text, prompt_of
    from trainer.inference.generate import Generator, Sampling
    from trainer.inference.images import load_image
    from trainer.inference.open_model import open_model

    speaker, _ = open_model(model)
    generator = Generator(speaker.model, speaker.chat_tokenizer)
    answers = []
    for path, text in asked:
        exchange = Exchange(question=text, images=(load_image(path, speaker.geometry),))
        prompt = prompt_of([exchange], speaker, end_id=generator.end_id, limit=generator.limit)
        tokens = list(generator.session().answer(prompt, Sampling(max_new_tokens=8)))
        answers.append(answer_text(speaker.chat_tokenizer.tokenizer, tokens, prompt.end_id))
    return answers


def _run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
