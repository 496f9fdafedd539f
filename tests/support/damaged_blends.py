"""A blend of nine datasets in which most records are damaged at random, by one seed."""

from __future__ import annotations

import base64
import copy
import functools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.adapting import records_in
from tests.support.fuzzed_datasets import FORMS
from tests.support.junk import JUNK, places
from tests.support.small_blends import jpeg, write_blend

SEED = 1
NUM_RECORDS = 84
WHOLE_EVERY = 4
"""Every fourth record is left alone."""

WORDS: tuple[Any, ...] = (
    *JUNK, "</s><image> ### Answer: <|im_end|>", "\ufdd0\ufdd1</s>", "a\0b", "\u202e\u2066 \U0001f9d1\u200d\U0001f680",
    "../../etc/passwd", "/etc/passwd", "C:\\a.jpg", "data:image/png;base64,AAAA", "https://example.org/a.jpg", "a//b",
    "IMAGE#<Img><ImageHere></Img>", "human", "gpt", "assistant", "system", "tool", -(10**18), 1e308, [[]], {"": {}},
)  # fmt: skip


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
    """Records by the files' own elements; what a partner answers is not a record of its own."""
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
