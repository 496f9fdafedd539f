"""SparklesDialogue: `[{"dialogue": [{"role", "content", "images": [{"image_id"}]}]}]`.

Rule: `IMAGE#<id><Img><ImageHere></Img>` in a user turn shows an image. The images come before the text of the turn, in
the order of its `images`, and are numbered through the dialogue; the marker becomes "image N", and so does every later
`IMAGE#<id>`. An image that is shown twice has two numbers: each marker gives its own, a mention the first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import (
    build_or_reject,
    check_image_count,
    image_groups,
    image_name,
    list_of,
    need,
    need_id,
    object_of,
    show,
    text,
)
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.keys import filter_fields, record_of
from preprocess.adapters.parsing.record_files import json_records
from preprocess.adapters.parsing.roles import role_of
from preprocess.adapters.parsing.turns import check_order
from preprocess.conversation import Conversation, Image, Records, RecordSource, Role, Turn
from preprocess.errors import RejectError

KEYS = frozenset(("dialogue", "role", "content", "images"))
_RECORD_KEYS = frozenset(("dialogue",))
_TURN_KEYS = frozenset(("role", "content", "images"))
_SHOWN = "<Img><ImageHere></Img>"
_CITED = re.compile(r"IMAGE#(?:([^\s<>#]+)" + re.escape(_SHOWN) + ")?")


def read(request: Request) -> Records:
    identities = Identities(request)
    for index, path in enumerate(request.annotations):
        file, label, store = request.source_file(path), identities.label(path), _store(request, index, path)
        for number, record in enumerate(json_records(path)):
            source = RecordSource(file=file, record=str(number))
            yield build_or_reject(source, _conversation, request, identities, label, number, source, record, store)


def _store(request: Request, index: int, path: Path) -> int | None:
    """The image folder next to the file's own, or else the one at the same index in the list."""
    sibling = path.parent.parent / "images"
    if sibling in request.images:
        return request.images.index(sibling)
    return index if len(request.images) == len(request.annotations) else None


def _conversation(
    request: Request,
    identities: Identities,
    label: str,
    number: int,
    source: RecordSource,
    published: Any,
    store: int | None,
) -> Conversation:
    record = record_of(published, request, _RECORD_KEYS)
    messages = [record_of(item, request, _TURN_KEYS, "a turn") for item in list_of(record, "dialogue")]
    roles = [role_of(need(message, "role"), request) for message in messages]
    check_order(roles)
    notes: dict[str, None] = {}
    numbers: dict[str, int] = {}
    turns: list[Turn] = []
    num_images = 0
    for index, (role, message) in enumerate(zip(roles, messages, strict=True)):
        if role == "user" and index == len(messages) - 1:
            notes["dangling_question"] = None
            break
        words = text(need(message, "content"), "content", with_tags=True)
        if "\\n" in words:
            words = words.replace("\\n", "\n").strip()
            notes["literal_newline"] = None
        shown = _shown(message)
        _check_marks(words, shown, role)
        places: dict[str, list[int]] = {}
        for image_id in shown:
            num_images += 1
            numbers.setdefault(image_id, num_images)
            places.setdefault(image_id, []).append(num_images)
        words = _numbered(words, numbers, places)
        if not words and not shown:
            raise RejectError("empty_answer" if role == "assistant" else "empty_question", f"turn {index + 1} is empty")
        images = [Image(name=image_name(f"{image_id}.jpg", "image_id"), store=store) for image_id in shown]
        turns.append(Turn(role=role, parts=(*images, words) if words else tuple(images)))
    if not turns or turns[-1].role != "assistant":
        raise RejectError("no_answer", f"got {len(messages)} turns and no answer; expected a question and an answer")
    check_image_count(num_images, request)
    return Conversation(
        id=identities.claim(label, str(number), number),
        turns=tuple(turns),
        sources=(source,),
        groups=image_groups(request, (part for turn in turns for part in turn.parts if isinstance(part, Image))),
        notes=tuple(notes),
        fields=filter_fields(request, published),
    )


def _shown(message: dict[str, Any]) -> list[str]:
    if message.get("images") is None:
        return []
    return [need_id(object_of(item, "an item of images"), "image_id") for item in list_of(message, "images")]


def _check_marks(words: str, shown: list[str], role: Role) -> None:
    marked = [match[1] for match in _CITED.finditer(words) if match[1] is not None]
    if role != "user" and (shown or _SHOWN in words):
        raise RejectError("image_count", f"the {role} shows an image; expected images only in user turns")
    if sorted(marked) != sorted(shown) or words.count(_SHOWN) != len(shown):
        raise RejectError(
            "image_count",
            f"the text marks {words.count(_SHOWN)} images ({show(', '.join(marked))}); "
            f"expected {len(shown)} ({show(', '.join(shown))}), as `images` lists",
        )


def _numbered(words: str, numbers: dict[str, int], places: dict[str, list[int]]) -> str:
    """The text with "image N" where it marks or cites an image."""
    if "IMAGE#" not in words:
        return words
    known = sorted(numbers, key=len, reverse=True)
    pieces: list[str] = []
    end = 0
    for match in _CITED.finditer(words):
        pieces.append(words[end : match.start()])
        if match[1] is not None:
            pieces.append(f"image {places[match[1]].pop(0)}")
            end = match.end()
            continue
        start = match.end()
        for image_id in known:
            after = start + len(image_id)
            if words.startswith(image_id, start) and not words[after : after + 1].isdigit():
                break
        else:
            raise RejectError(
                "image_mention", f"the text cites {show(words[match.start() : start + 12])}; no such image is shown yet"
            )
        pieces.append(f"image {numbers[image_id]}")
        end = after
    return "".join([*pieces, words[end:]])
