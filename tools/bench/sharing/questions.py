"""Data as VQA v2 has it: photos, and several questions about each, whose answers are a word or two.

`share: 1` makes a sample of each question, `share: 8` one of all questions about a photo.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import yaml

from tools.bench.data import ROOT, photo_files

QUESTIONS = (5, 3, 8, 6, 5, 7, 3, 6, 7, 4)
"""How many questions photos have, in turn: 5.4 on average, as in VQA v2"""
SHARES = (1, 8)
"""Separate samples, and shared ones: no photo has more questions"""
IMAGE_TOKENS = 576
LENGTH = 4096

_ASKED = ("How many people are standing near", "What is written in large letters on", "Is there a shadow behind")
_THINGS = ("the red car with the open door", "the old man with the blue hat", "the table with the white plates")
_PLACES = ("on the left side of the street", "in the upper corner of the picture", "at the end of the long wall")
_ANSWERS = ("yes", "no", "2", "red", "on the table", "left", "3", "a blue bus")
_PHOTOS = "coco/train2014"
_FOLDER = "vqa_v2"


def make_questions(folder: Path, images: int, questions: Sequence[int] = QUESTIONS) -> int:
    """Photos, questions and annotations in VQA v2's layout; returns the number of questions."""
    choose = random.Random(0)
    (folder / _PHOTOS).mkdir(parents=True)
    photos = photo_files()
    asked: list[dict[str, Any]] = []
    answered: list[dict[str, Any]] = []
    for image, count in enumerate(islice(cycle(questions), images), start=1):
        (folder / _PHOTOS / f"COCO_train2014_{image:012d}.jpg").write_bytes(photos[image % len(photos)])
        for number in range(count):
            ids = {"image_id": image, "question_id": image * 1000 + number}
            answer = choose.choice(_ANSWERS)
            answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": who} for who in range(1, 11)]
            asked.append({**ids, "question": question(choose)})
            answered.append({**ids, "multiple_choice_answer": answer, "answers": answers})
    (folder / _FOLDER).mkdir()
    for name, key, records in (
        ("v2_OpenEnded_mscoco_train2014_questions.json", "questions", asked),
        ("v2_mscoco_train2014_annotations.json", "annotations", answered),
    ):
        (folder / _FOLDER / name).write_text(json.dumps({"data_subtype": "train2014", key: records}), encoding="utf-8")
    return len(asked)


def question(choose: random.Random) -> str:
    """About twenty tokens of the example tokenizer."""
    return f"{choose.choice(_ASKED)} {choose.choice(_THINGS)} {choose.choice(_PLACES)}?"


def write_blend(root: Path, store: str, share: int) -> Path:
    """A blend file in `root` over the data there."""
    dataset: dict[str, Any] = {"name": "bench", "adapter": "vqa_v2", "root": str(root), "samples": "all"}
    tree = {
        "tokenizer": str(ROOT / "examples/tokenizer"),
        "image_tokens": IMAGE_TOKENS,
        "image": {"store": store, "size": 336},
        "limits": {"max_length": LENGTH},
        "datasets": [{**dataset, "share": share}],
    }
    path = root / f"{store}-{share}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
