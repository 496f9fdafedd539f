"""Sound datasets of nine forms, as tables that fuzzing can damage record by record."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a dataset looks. record: an element by its number; the number is its id, and its images have its name.

    files: from (key, element) pairs, the annotation files' text. image_file: the file name by number; "" for
    base64 texts in MIMIC-IT/SN.json. own: the key that holds the id, if any.
    """

    record: Callable[[int], Any]
    files: Callable[[Sequence[tuple[str, Any]]], Mapping[str, str]]
    image_file: str
    own: str = ""


def in_array(name: str, *keys: str) -> Callable[[Sequence[tuple[str, Any]]], Mapping[str, str]]:
    def files(elements: Sequence[tuple[str, Any]]) -> Mapping[str, str]:
        document: Any = [element for _, element in elements]
        return {name: json.dumps(functools.reduce(lambda inner, key: {key: inner}, reversed(keys), document))}

    return files


def in_object(name: str, start: str = "", end: str = "") -> Callable[[Sequence[tuple[str, Any]]], Mapping[str, str]]:
    """Keys may stand twice, as in a broken file."""
    return lambda elements: {
        name: start + "{" + ",\n".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in elements) + "}" + end
    }


def as_lines(elements: Sequence[tuple[str, Any]]) -> Mapping[str, str]:
    return {"chat.jsonl": "".join(json.dumps(one) + "\n" for _, one in elements)}


def as_pairs(elements: Sequence[tuple[str, Any]]) -> Mapping[str, str]:
    questions, annotations = ([element[place] for _, element in elements] for place in (0, 1))
    return {
        "v2_OpenEnded_mscoco_train2014_questions.json": json.dumps(
            {"data_subtype": "train2014", "questions": questions}
        ),
        "v2_mscoco_train2014_annotations.json": json.dumps({"annotations": annotations}),
    }


def ask(number: int) -> str:
    return f"What is shown in picture {number}?"


FORMS: dict[str, Form] = {
    "llava": Form(
        record=lambda number: {
            "id": str(number),
            "image": f"{number:012}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\n{ask(number)}"},
                {"from": "gpt", "value": "A thing."},
                {"from": "human", "value": "Which one?"},
                {"from": "gpt", "value": f"Number {number}."},
            ],
        },
        files=in_array("llava/detail_23k.json"),
        image_file="coco/train2017/{:012}.jpg",
        own="id",
    ),
    "chat": Form(
        record=lambda number: {
            "id": str(number),
            "images": [f"{number}.jpg"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ask(number)}]},
                {"role": "assistant", "content": f"Number {number}."},
            ],
            "group": f"film {number}",
            "split": "train",
        },
        files=as_lines,
        image_file="{}.jpg",
        own="id",
    ),
    "coco_caption": Form(
        record=lambda number: {
            "filename": f"COCO_val2014_{number:012}.jpg",
            "split": "train",
            "cocoid": number,
            "sentences": [{"raw": f"Picture {number}. ", "sentid": 10 * number + place} for place in range(2)],
        },
        files=in_array("coco_caption/dataset.json", "images"),
        image_file="coco/2014/COCO_val2014_{:012}.jpg",
        own="cocoid",
    ),
    "ocr_vqa": Form(
        record=lambda number: {
            "imageURL": f"http://example.org/{number}.jpg",
            "questions": [ask(number), "And who wrote it?"],
            "answers": ["A book.", f"Author {number}."],
            "split": 1,
        },
        files=in_object("OCR_VQA/dataset.json"),
        image_file="OCR_VQA/images/{}.jpg",
    ),
    "vqa_v2": Form(
        record=lambda number: [
            {"question_id": number, "image_id": number, "question": ask(number)},
            {
                "question_id": number,
                "multiple_choice_answer": f"thing {number}",
                "answers": [{"answer": f"thing {number}"}, {"answer": "a thing"}],
            },
        ],
        files=as_pairs,
        image_file="coco/2014/COCO_train2014_{:012}.jpg",
        own="question_id",
    ),
    "otter_mimicit_sn": Form(
        record=lambda number: {
            "instruction": ask(number),
            "answer": f"Number {number}.",
            "image_ids": [f"SN_IMG_{number}_00"],
            "rel_ins_ids": [str(number)],
        },
        files=in_object("MIMIC-IT/SN_instructions.json", '{"meta": {}, "data": ', "}"),
        image_file="",
    ),
    "sparkles_dialogue": Form(
        record=lambda number: {
            "dialogue": [
                {
                    "role": "user",
                    "content": f"{ask(number)} IMAGE#{number}<Img><ImageHere></Img>",
                    "images": [{"image_id": str(number)}],
                },
                {"role": "assistant", "content": f"IMAGE#{number} shows a thing."},
            ]
        },
        files=in_array("SparklesDialogueCC/annotations/SparklesDialogueCC.json"),
        image_file="SparklesDialogueCC/images/{}.jpg",
    ),
    "aokvqa": Form(
        record=lambda number: {
            "split": "train",
            "image_id": number,
            "question_id": f"q{number}",
            "question": ask(number),
            "choices": ["a", "b", "c", f"thing {number}"],
            "correct_choice_idx": 3,
            "direct_answers": ["thing", "a thing"],
            "rationales": ["It is to be seen.", f"It is number {number}."],
        },
        files=in_array("aokvqa/annotations/aokvqa_v1p0_train.json"),
        image_file="coco/train2017/{:012}.jpg",
        own="question_id",
    ),
    "minigpt4": Form(
        record=lambda number: {"image_id": str(number), "caption": f"Picture {number} shows a thing."},
        files=in_array("cc_sbu_align/filter_cap.json", "annotations"),
        image_file="cc_sbu_align/image/{}.jpg",
        own="image_id",
    ),
}
