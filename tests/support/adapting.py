"""Run one adapter on documents, and count what became of their records without it."""

from __future__ import annotations

import copy
import functools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocess.adapters.base import Adapter, Request
from preprocess.adapters.lookup import find_adapter
from preprocess.conversation import Conversation, Reject, to_messages
from preprocess.conversation_lines import encode
from tests.support.paths import EXAMPLES

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


def request_for(name: str, root: Path, **settings: Any) -> Request:
    """A request for the adapter with this name; settings: as `request_of` takes them."""
    return request_of(find_adapter(name), root, **settings)


def request_of(
    adapter: Adapter,
    root: Path,
    *,
    annotations: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
    seed: int = 0,
    max_images: int = 8,
    **options: Any,
) -> Request:
    """A request as the compiler makes it: patterns below the root, sorted matches, complete options."""
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
    return list(find_adapter(name).read(request_for(name, root, **options)))


def rejects(made: Made) -> list[tuple[str, str]]:
    return [(item.source.record, item.reason) for item in made if isinstance(item, Reject)]


def conversations(made: Made) -> list[Conversation]:
    return [item for item in made if isinstance(item, Conversation)]


@functools.cache
def sample(name: str) -> dict[str, Any]:
    """The sample's annotation files by their path below the root."""
    if name == "chat":
        return CHAT
    files = request_for(name, EXAMPLES).annotations
    return {path.relative_to(EXAMPLES).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in files}


def keyed(name: str, key: str, value: Any) -> dict[str, Any]:
    """The sample of an adapter, with a key more in the first record of each file."""
    documents = copy.deepcopy(sample(name))
    for document in documents.values():
        records = document
        while not isinstance(records, list):
            lists = [part for part in records.values() if isinstance(part, list)] if isinstance(records, dict) else []
            if lists and isinstance(lists[0][0], dict):
                records = lists[0]
            elif "data" in records:
                records = records["data"]
            else:
                records = [*records.values()]
        records[0][key] = value
    return documents


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
