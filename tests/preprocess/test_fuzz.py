"""A blend of nine datasets in which most records are damaged at random: nothing is lost, nothing is unexplained, and
what was left alone comes out as if the rest had never been touched.
"""

from __future__ import annotations

import base64
import copy
import functools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import shards
from preprocess.compiler.report import BuildReport
from preprocess.conversation import REASONS
from tests.support.adapting import records_in
from tests.support.junk import JUNK, places
from tests.support.small_blends import build, files_of, jpeg, rejects_of, write_blend

SEED = 1
NUM_RECORDS = 84
WHOLE_EVERY = 4
"""Every fourth record is left alone."""

WORDS: tuple[Any, ...] = (
    *JUNK, "</s><image> ### Answer: <|im_end|>", "\ufdd0\ufdd1</s>", "a\0b", "\u202e\u2066 \U0001f9d1\u200d\U0001f680",
    "../../etc/passwd", "/etc/passwd", "C:\\a.jpg", "data:image/png;base64,AAAA", "https://example.org/a.jpg", "a//b",
    "IMAGE#<Img><ImageHere></Img>", "human", "gpt", "assistant", "system", "tool", -(10**18), 1e308, [[]], {"": {}},
)  # fmt: skip


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


def mutated(element: Any, choices: random.Random) -> Any:
    """One to three changes anywhere inside the element; now and then it is replaced whole."""
    if choices.random() < 0.05:
        return copy.deepcopy(choices.choice(WORDS))
    element = copy.deepcopy(element)
    for _ in range(choices.randint(1, 3)):
        paths = list(places(element))
        if not paths:
            break
        *above, key = choices.choice(paths)
        parent = functools.reduce(lambda value, step: value[step], above, element)
        match choices.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(choices.randint(0, len(parent)), copy.deepcopy(parent[key]))
            case 1:
                parent[choices.choice(["", "a/b", "\ud800", "image", "<image>"])] = parent.pop(key)
            case 2 if isinstance(parent, list):
                choices.shuffle(parent)
            case 3 if isinstance(parent[key], str):  # words from elsewhere inside a text
                at = choices.randint(0, len(parent[key]))
                parent[key] = f"{parent[key][:at]}{choices.choice(WORDS)}{parent[key][at:]}"
            case _:
                parent[key] = copy.deepcopy(choices.choice(WORDS))
    return element


def damaged_image(data: bytes, choices: random.Random) -> bytes:
    kind = choices.randrange(4)
    if kind == 0:
        return data[: choices.randrange(len(data))]
    if kind == 1:
        return choices.choice([b"", b"<html>404</html>", jpeg(0, (1, 1)), bytes(200)])
    changed = bytearray(data)
    for _ in range(choices.choice([1, 8, 64])):
        changed[choices.randrange(len(changed))] ^= 1 << choices.randrange(8)
    return bytes(changed)


def write_dataset(root: Path, name: str, first: int, *, damage: bool) -> tuple[int, set[str]]:
    """A dataset whose ids and image numbers start at `first`. Returns its number of records, counted from the files,
    and how the records that were left alone are called."""
    form, choices = FORMS[name], random.Random(f"{SEED} {name}")
    elements: list[tuple[str, Any]] = []
    whole: set[str] = set()
    images: dict[str, str] = {}
    for place in range(NUM_RECORDS):
        number = first + place
        key, element, data = str(number), form.record(number), jpeg(place % 16)
        if place % WHOLE_EVERY == 0:
            whole |= names_of(name, place, element, key)
        elif damage:
            match choices.randrange(8):
                case 0 | 1:
                    data = damaged_image(data, choices)
                case 2 if form.own:  # the id of an earlier record
                    earlier = form.record(first + choices.randrange(place))
                    if isinstance(element, list):
                        side = choices.randrange(2)
                        element[side][form.own] = earlier[side][form.own]
                    else:
                        element[form.own] = earlier[form.own]
                case 2 if name != "sparkles_dialogue":
                    key = choices.choice([*(key for key, _ in elements), "", "\ud800", "../a", "x" * 5000])
                case _ if isinstance(element, list):  # a question and its annotation
                    side = choices.randrange(2)
                    element[side] = mutated(element[side], choices)
                case _:
                    element = mutated(element, choices)
        elements.append((key, element))
        if form.image_file:
            path = root / form.image_file.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            images[f"SN_IMG_{number}_00"] = base64.b64encode(data).decode()
    files = form.files(elements)
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content, encoding="utf-8")
    if images:
        (root / "MIMIC-IT/SN.json").write_text(json.dumps(images))
    return counted(name, files, elements), whole


def names_of(name: str, place: int, element: Any, key: str) -> set[str]:
    match name:
        case "coco_caption":
            return {str(sentence["sentid"]) for sentence in element["sentences"]}
        case "aokvqa":
            return {element["question_id"]}
        case "sparkles_dialogue":
            return {str(place)}
        case _:
            return {key}


def counted(name: str, files: Mapping[str, str], elements: Sequence[tuple[str, Any]]) -> int:
    """Records by the files' own elements; what a partner answers is no record of its own."""
    if name == "vqa_v2":
        return sum(records_in(name, {file: json.loads(text) for file, text in files.items()}, []).values())
    if name == "coco_caption":
        return sum(len(one["sentences"]) if has_sentences(one) else 1 for _, one in elements)
    return len(elements)


def has_sentences(entry: Any) -> bool:
    """Whether an image entry is sound, so that each of its sentences is a record; else the entry is one."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sentences"), list) or not entry["sentences"]:
        return False
    file, split = entry.get("filename"), entry.get("split")
    if not isinstance(file, str) or not file or "\ud800" in file or "://" in file or file.startswith("data:"):
        return False
    return split in (None, "", "train", "restval", "val", "valid", "validation", "test")


def write_all(folder: Path, *, damage: bool) -> tuple[Path, dict[str, int], dict[str, set[str]]]:
    """The blend file, and of each dataset its number of records and the names of those left alone."""
    counts, whole = {}, {}
    for place, name in enumerate(FORMS):
        first = 1000 * (place + 1)  # COCO's numbers are one for all datasets, and no image is to be shared
        counts[name], whole[name] = write_dataset(folder / name, name, first, damage=damage)
    entries = [{"name": name, "adapter": name, "root": name} for name in FORMS]
    limits = {"max_reject_share": 1.0, "max_images": 3, "max_length": 1500}
    blend = write_blend(folder / "blend.yaml", entries, limits=limits, shard={"max_samples": 20})
    return blend, counts, whole


def samples_by_record(folder: Path) -> dict[tuple[str, str], list[Any]]:
    """All samples of (dataset, record): an id that occurs twice must not give two."""
    found: dict[tuple[str, str], list[Any]] = {}
    for dataset, split, shard in shards.open(folder).shards():
        for row in range(len(shard)):
            one = shard[row]
            for source in one.metadata["sources"]:
                content = (split, one.metadata, one.ids.tolist(), one.labels.tolist(), one.images)
                found.setdefault((dataset, source["record"]), []).append(content)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzzed:
    report: BuildReport
    counts: dict[str, int]
    whole: dict[str, set[str]]
    blend: Path


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Fuzzed:
    blend, counts, whole = write_all(tmp_path_factory.mktemp("fuzzed"), damage=True)
    return Fuzzed(report=build(blend), counts=counts, whole=whole, blend=blend)


def test_every_record_of_a_damaged_blend_is_a_member_or_a_reject(fuzzed: Fuzzed) -> None:
    assert len(FORMS) * NUM_RECORDS * (WHOLE_EVERY - 1) // WHOLE_EVERY >= 500
    lines = rejects_of(fuzzed.report.path)
    for name, dataset in fuzzed.report.datasets.items():
        assert dataset.records == dataset.members + sum(dataset.rejects.values()), name
        assert dataset.records == fuzzed.counts[name], name
        assert dataset.rejects == Counter(line["reason"] for line in lines if line["dataset"] == name)
        assert dataset.rejects
    assert len(lines) == sum(sum(dataset.rejects.values()) for dataset in fuzzed.report.datasets.values())
    assert shards.verify(shards.open(fuzzed.report.path)).problems == []


def test_every_damaged_record_has_a_named_reason_and_none_is_unforeseen(fuzzed: Fuzzed) -> None:
    lines = rejects_of(fuzzed.report.path)
    reasons = Counter(line["reason"] for line in lines)
    assert reasons.keys() <= REASONS.keys() - {"internal_error"}, [
        line for line in lines if line["reason"] == "internal_error"
    ]
    assert len(reasons) >= 14, reasons  # the mutations reach far
    assert all(line["detail"] and line["file"] and line["record"] for line in lines)


def test_records_left_alone_are_the_same_samples_as_in_a_build_without_damage(fuzzed: Fuzzed, tmp_path: Path) -> None:
    blend, counts, _ = write_all(tmp_path, damage=False)
    report = build(blend)
    assert {name: (one.members, sum(one.rejects.values())) for name, one in report.datasets.items()} == {
        name: (count, 0) for name, count in counts.items()
    }
    undamaged, found = samples_by_record(report.path), samples_by_record(fuzzed.report.path)
    records = [(name, record) for name, names in fuzzed.whole.items() for record in names]
    assert len(records) >= 100
    for record in records:
        assert found[record] == undamaged[record], record


def test_the_same_damage_gives_the_same_files_for_any_number_of_workers(fuzzed: Fuzzed, tmp_path: Path) -> None:
    build(fuzzed.blend, out=tmp_path / "again", workers=2)
    assert files_of(tmp_path / "again") == files_of(fuzzed.report.path)
