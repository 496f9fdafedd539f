"""Damaged annotation files: whatever they hold, no adapter raises anything but DataError, and no record is lost."""

from __future__ import annotations

import copy
import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import REASONS, Conversation
from preprocess.errors import DataError
from tests.support.adapting import adapted, check_form, conversations, records_in, sample, taken
from tests.support.junk import JUNK, places

OTHER_FORMS: list[tuple[str, dict[str, Any]]] = [
    (
        "coco_caption",
        {
            "captions_val2014.json": {
                "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
                "annotations": [{"id": number, "image_id": 1 + number % 2, "caption": "A cat."} for number in range(4)],
            }
        },
    ),
    (
        "vqa_v2",
        {"v.json": [{"image": "1.jpg", "question": "What?", "answers": [{"answer": "a"}], "answerable": 1}] * 3},
    ),
    (
        "vqa_v2",
        {
            "t.json": {
                "data": [{"question_id": 1, "image_id": "x", "question": "?", "answers": ["a"], "set_name": "val"}] * 3
            }
        },
    ),
    (
        "otter_mimicit_sn",
        {
            "s.json": {
                key: {"instruction": "a", "answer": "b", "image_ids": ["x"], "rel_ins_ids": ["a"]} for key in "abc"
            }
        },
    ),
]


def damaged(document: Any, choices: random.Random) -> Any:
    document = copy.deepcopy(document)
    for _ in range(choices.randint(1, 4)):
        paths = list(places(document))
        if not paths:
            break
        *above, key = choices.choice(paths)
        parent = functools.reduce(lambda value, step: value[step], above, document)
        match choices.randint(0, 4):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(choices.randint(0, len(parent)), copy.deepcopy(parent[key]))
            case 2 if isinstance(parent, dict):
                parent[choices.choice(["", "a/b", "\ud800", "image", "x" * 300])] = parent.pop(key)
            case 3:
                other = choices.choice(paths)
                parent[key] = copy.deepcopy(_at(document, other))
            case _:
                parent[key] = copy.deepcopy(choices.choice(JUNK))
    return document


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    try:
        return functools.reduce(lambda value, step: value[step], path, document)
    except (KeyError, IndexError, TypeError):
        return None


@pytest.mark.parametrize(("name", "whole"), [*((name, None) for name in ADAPTERS), *OTHER_FORMS])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=80)
def test_no_damage_is_an_exception_or_loses_a_record(name: str, whole: dict[str, Any] | None, seed: int) -> None:
    choices = random.Random(seed)
    documents = dict(sample(name) if whole is None else whole)
    file = choices.choice(sorted(documents))
    documents[file] = damaged(documents[file], choices)
    options = {"duplicate_ids": choices.choice(["reject", "keep"])} if ADAPTERS[name].options else {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = adapted(name, Path(folder), documents, seed=seed, max_images=choices.choice([1, 2, 8]), **options)
        except DataError:
            return
    assert taken(made) == records_in(name, documents, made)
    ids = [item.id for item in conversations(made)]
    assert len(set(ids)) == len(ids)
    for item in made:
        if isinstance(item, Conversation):
            check_form(item)
        else:
            assert item.reason in REASONS
            (item.detail + item.source.record + item.source.file).encode()
            assert item.detail
