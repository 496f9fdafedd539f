"""What holds for every adapter: each record is in one conversation or one reject, whatever the file holds.

The functions before the first test serve the tests of the single adapters too.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapter import Request
from preprocess.adapters import ADAPTERS
from preprocess.conversation import Conversation, Reject, decode, encode, to_messages
from preprocess.errors import DataError

SAMPLES = Path(__file__).resolve().parent.parent / "examples" / "data"
CHAT = {
    "talk.json": [
        {
            "id": "a",
            "images": ["cats/1.jpg"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>\nWho is this?"},
                {"role": "assistant", "content": "A cat."},
                {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image", "path": "2.jpg"}]},
                {"role": "assistant", "content": "A dog."},
            ],
            "group": "film 7",
            "split": "val",
        },
        {"id": 2, "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello."}]},
        {
            "image": ["3.jpg", "4.jpg"],
            "conversations": [{"from": "human", "value": "Compare."}, {"from": "gpt", "value": "One is newer."}],
        },
    ]
}

Made = list[Conversation | Reject]


def written(root: Path, documents: Mapping[str, Any]) -> None:
    """Annotation files below root: text as it is, everything else as JSON."""
    for name, document in documents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")


def request_for(
    name: str,
    root: Path,
    *,
    annotations: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
    seed: int = 0,
    max_images: int = 8,
    **options: Any,
) -> Request:
    """A request as the compiler makes it: patterns below the root, sorted matches, complete options."""
    adapter = ADAPTERS[name]
    defaults = {key: option.default for key, option in adapter.options.items()}
    assert set(options) <= set(defaults)
    return Request(
        root=root,
        annotations=_found(root, annotations or adapter.annotations),
        images=_found(root, images or adapter.images),
        options={**defaults, **options},
        seed=seed,
        max_images=max_images,
    )


def _found(root: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    found = [root] if "." in patterns else []
    return tuple(
        dict.fromkeys([*found, *(path for each in patterns if each != "." for path in sorted(root.glob(each)))])
    )


def adapted(name: str, root: Path, documents: Mapping[str, Any], **options: Any) -> Made:
    """What an adapter makes of these documents."""
    written(root, documents)
    options.setdefault("annotations", tuple(documents))
    return list(ADAPTERS[name].read(request_for(name, root, **options)))


def rejects(made: Made) -> list[tuple[str, str]]:
    return [(item.source.record, item.reason) for item in made if isinstance(item, Reject)]


def conversations(made: Made) -> list[Conversation]:
    return [item for item in made if isinstance(item, Conversation)]


@functools.cache
def sample(name: str) -> dict[str, Any]:
    """The sample's annotation files by their path below the root."""
    if name == "chat":
        return CHAT
    files = request_for(name, SAMPLES).annotations
    return {path.relative_to(SAMPLES).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in files}


def taken(made: Made) -> Counter[str]:
    """Records accounted for, by file."""
    sources = [source for item in made for source in ([item.source] if isinstance(item, Reject) else item.sources)]
    return Counter(source.file for source in sources)


def records_in(name: str, documents: dict[str, Any], made: Made) -> Counter[str]:
    """Records by file, counted without the adapter."""
    counts: Counter[str] = Counter()
    for file, document in documents.items():
        match name:
            case "coco_caption" if "annotations" in document:
                entries = [item for item in made if isinstance(item, Reject) and item.detail.startswith("image entry")]
                counts[file] = len(document["annotations"]) + len(entries)
            case "coco_caption":
                refused = {item.detail.split(":")[0] for item in made if isinstance(item, Reject)}
                for place, entry in enumerate(document["images"]):
                    counts[file] += 1 if f"image entry {place}" in refused else len(entry["sentences"])
            case "minigpt4":
                counts[file] = len(document["annotations"])
            case "vqa_v2" if "questions" in document or "annotations" in document:
                counts[file] = (
                    len(document["questions"]) if "questions" in document else _unmatched(documents, document)
                )
            case "llava_otter_blend" if isinstance(document, list):
                counts[file] = sum(isinstance(item, Reject) and item.source.file == file for item in made)
            case _:
                counts[file] = len(document["data"] if isinstance(document, dict) and "data" in document else document)
    return +counts


def _unmatched(documents: dict[str, Any], annotations: dict[str, Any]) -> int:
    questions = [record for document in documents.values() for record in document.get("questions", ())]
    open_ids = {key for key in map(_question_id, questions) if key is not None}
    count = 0
    for record in annotations["annotations"]:
        key = _question_id(record)
        if key in open_ids:
            open_ids.discard(key)
        else:
            count += 1
    return count


def _question_id(record: Any) -> str | None:
    key = record.get("question_id") if isinstance(record, dict) else None
    if type(key) is int:
        return str(key)
    return key if isinstance(key, str) and key and "\ud800" not in key else None


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_sample_record_becomes_part_of_a_conversation(name: str, tmp_path: Path) -> None:
    made = adapted(name, tmp_path, sample(name))
    assert made
    # No LLaVA file of the samples speaks of the bricks that CGD's last pair begins with.
    assert rejects(made) == ([("CGD_INS_000030", "no_match")] if name == "llava_otter_blend" else [])
    assert taken(made) == records_in(name, sample(name), made)


@pytest.mark.parametrize("name", ADAPTERS)
def test_reading_twice_gives_the_same_and_it_survives_the_conversation_file(name: str, tmp_path: Path) -> None:
    made = adapted(name, tmp_path, sample(name))
    assert made == list(ADAPTERS[name].read(request_for(name, tmp_path, annotations=tuple(sample(name)))))
    assert conversations(made) == [decode(encode(item)) for item in conversations(made)]


@pytest.mark.parametrize("name", ADAPTERS)
def test_conversations_have_unique_ids_and_alternate_and_are_grouped_by_their_images(name: str, tmp_path: Path) -> None:
    made = conversations(adapted(name, tmp_path, sample(name)))
    assert len({item.id for item in made}) == len(made)
    for item in made:
        check_form(item)


def check_form(item: Conversation) -> None:
    roles = [turn.role for turn in item.turns if turn.role != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert roles
    assert item.sources
    assert bool(item.images) <= bool(item.groups)
    assert all(turn.parts for turn in item.turns)
    assert all(text.strip() for text in item.texts)
    assert all(
        len(turn.parts) == 1 and isinstance(turn.parts[0], str) for turn in item.turns if turn.role == "assistant"
    )
    assert len(to_messages(item)) == len(item.turns)
    encode(item)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_broken_or_missing_file_ends_the_command_with_its_name(name: str, tmp_path: Path) -> None:
    file = next(iter(sample(name)))
    written(tmp_path, sample(name))
    request = request_for(name, tmp_path, annotations=tuple(sample(name)))
    (tmp_path / file).write_text(json.dumps(sample(name)[file])[:-1])
    with pytest.raises(DataError, match=rf"{Path(file).name}, line 1, column \d+: broken JSON"):
        list(ADAPTERS[name].read(request))
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(ADAPTERS[name].read(request))


@pytest.mark.parametrize("name", [name for name, adapter in ADAPTERS.items() if "prompts" in adapter.options])
def test_prompts_depend_on_the_seed_and_the_record_alone(name: str, tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "annotations": [{"image_id": str(number), "caption": f"Caption {number}."} for number in range(200)]
    }
    if name == "coco_caption":
        captions = [{"id": number, "image_id": 1, "caption": f"Caption {number}."} for number in range(200)]
        document = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": captions}

    def asked(document: Any, **options: Any) -> dict[str, str]:
        made = conversations(adapted(name, tmp_path, {"a.json": document}, **options))
        return {item.sources[0].record: item.texts[0] for item in made}

    first = asked(document)
    assert first == asked({**document, "annotations": document["annotations"][::-1]})
    assert first != asked(document, seed=1)
    assert set(first.values()) == set(ADAPTERS[name].options["prompts"].default)
    assert set(asked(document, prompts=["Und?"]).values()) == {"Und?"}
    for useless in ([], [" "], [3]):
        with pytest.raises(DataError, match="prompts"):
            asked(document, prompts=useless)


def test_the_table_is_sorted_and_says_where_data_comes_from() -> None:
    assert list(ADAPTERS) == sorted(ADAPTERS)
    for adapter in ADAPTERS.values():
        assert all((adapter.annotations, adapter.images, adapter.layout, adapter.where, adapter.licence))
        for option in adapter.options.values():
            assert option.help
            assert not option.choices or option.default in option.choices
