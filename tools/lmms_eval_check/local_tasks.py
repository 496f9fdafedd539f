"""Tasks of lmms-eval on the VQA sample of examples/: its own definitions with other documents.

The documents have the columns of the published data sets, and images as files, which `datasets` decodes with Pillow.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples/data"
INSTRUCTION = "Answer the question using a single word or phrase."
VQA, SEEDBENCH, SEEDBENCH_PPL = "dsvl_vqav2", "dsvl_seedbench", "dsvl_seedbench_ppl"
UNREADABLE = "dsvl_unreadable"
"""As VQA, but its second document cannot be asked: with two processes, the first has only questions that can"""

_OTHERS = ("a red bus", "nobody", "seventeen", "under the table")
"""Answers that no question has"""

_TEXT = {"dtype": "string", "_type": "Value"}
_IMAGE = {"_type": "Image"}


def questions() -> list[dict[str, Any]]:
    """The questions of the sample with their ten answers, and the names of their images."""
    folder = DATA / "vqa_v2"
    annotations = json.loads((folder / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    answers = {item["question_id"]: item for item in annotations}
    asked = json.loads((folder / "v2_OpenEnded_mscoco_train2014_questions.json").read_text())["questions"]
    return [{**answers[item["question_id"]], **item} for item in asked]


def image_of(question: Mapping[str, Any]) -> Path:
    return DATA / f"coco/train2017/{question['image_id']:012}.jpg"


def choices(question: Mapping[str, Any], number: int) -> list[str]:
    """Four answers, of which the right one is at another place in each question."""
    texts = list(_OTHERS[:3])
    texts.insert(number % 4, question["multiple_choice_answer"])
    return texts


def asked(task: str) -> list[tuple[Path, str]]:
    """Image and text of each document, as lmms-eval's definition of the task asks."""
    if task == VQA:
        return [(image_of(item), f"{item['question']}\n{INSTRUCTION}") for item in questions()]
    texts = []
    for number, item in enumerate(questions()):
        lines = [f"{letter}. {text}" for letter, text in zip("ABCD", choices(item, number), strict=True)]
        options = "\n".join([item["question"], *lines])
        texts.append((image_of(item), f"{options}\nAnswer with the option's letter from the given choices directly."))
    return texts


def write_tasks(folder: Path, python: Path) -> Path:
    """Write the definitions and the documents, for lmms-eval's --include_path."""
    folder.mkdir()
    found = subprocess.run(
        [python, "-c", "import importlib.util as u; print(u.find_spec('lmms_eval').submodule_search_locations[0])"],
        check=True,
        capture_output=True,
        text=True,
    )
    published = Path(found.stdout.strip()) / "tasks"
    vqa = [
        {
            "image": _file(item),
            "question": item["question"],
            "question_id": item["question_id"],
            "answers": [{"answer": answer["answer"], "answer_id": answer["answer_id"]} for answer in item["answers"]],
            "answer": item["multiple_choice_answer"],
        }
        for item in questions()
    ]
    answers = {"_type": "List", "feature": {"answer": _TEXT, "answer_id": {"dtype": "int64", "_type": "Value"}}}
    kinds: dict[str, Any] = {"image": _IMAGE, "question_id": {"dtype": "int64", "_type": "Value"}, "answers": answers}
    _write(folder / "vqa.parquet", vqa, kinds)
    seedbench = []
    for number, item in enumerate(questions()):
        texts = choices(item, number)
        seedbench.append(
            {
                "image": [_file(item)],
                "question": item["question"],
                "question_id": str(item["question_id"]),
                "data_type": "image",
                "answer": "ABCD"[texts.index(item["multiple_choice_answer"])],
                **{f"choice_{letter}": text for letter, text in zip("abcd", texts, strict=True)},
            }
        )
    _write(folder / "seedbench.parquet", seedbench, {"image": {"_type": "List", "feature": _IMAGE}})
    long = "Why? " * 20_000  # more than the model reads
    _write(folder / "unreadable.parquet", [vqa[0], {**vqa[1], "question": long}, *vqa[2:]], kinds)
    definitions = (
        (UNREADABLE, "vqav2/vqav2_val.yaml", "validation", "unreadable"),
        (VQA, "vqav2/vqav2_val.yaml", "validation", "vqa"),
        (SEEDBENCH, "seedbench/seedbench.yaml", "test", "seedbench"),
        (SEEDBENCH_PPL, "seedbench/seedbench_ppl.yaml", "test", "seedbench"),
    )
    for name, include, split, data in definitions:
        definition: dict[str, Any] = {
            "include": str(published / include),
            "task": name,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {split: str(folder / f"{data}.parquet")}},
        }
        if name == SEEDBENCH_PPL:  # asked as the model was trained, so that it knows the answers
            definition["doc_to_text"] = f"{{{{question}}}}\n{INSTRUCTION}"
        (folder / f"{name}.yaml").write_text(json.dumps(definition))
    return folder


def _file(question: Mapping[str, Any]) -> dict[str, Any]:
    path = image_of(question)
    return {"bytes": path.read_bytes(), "path": path.name}


def _write(path: Path, rows: list[dict[str, Any]], kinds: Mapping[str, Any]) -> None:
    """kinds: of the columns that are not texts, in the form of `datasets`."""
    features = {name: kinds.get(name, _TEXT) for name in rows[0]}
    table = pyarrow.Table.from_pylist(rows)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
