"""Small chat records, read in-process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Image, Reject, Role
from tests.support.adapting import Made, request_for, written

ONE, TWO = Image(name="1.jpg"), Image(name="2.jpg")

MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
SHAREGPT = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
ROUND = [("user", "What?"), ("assistant", "That.")]
"""What `spoken` gives for them"""
SHOWN = [("user", (ONE, "What?")), ("assistant", "That.")]
"""The same, with an image"""


def talk(question: Any = "<image>\nWhat?", answer: Any = "That.", **more: Any) -> dict[str, Any]:
    """A record of one round about an image."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": ["1.jpg"], **more}


def chat_request(root: Path, *, keys: Mapping[str, str | None], roles: Mapping[str, Role], **options: Any) -> Request:
    """As `request_for`, with the blend's keys and roles."""
    return replace(request_for("chat", root, annotations=("a.json",), images=(".",), **options), keys=keys, roles=roles)


def read_chat(
    root: Path,
    *records: Any,
    keys: Mapping[str, str | None] | None = None,
    roles: Mapping[str, Role] | None = None,
    **options: Any,
) -> Made:
    """What `chat` makes of these records."""
    written(root, {"a.json": list(records)})
    return list(ADAPTERS["chat"].read(chat_request(root, keys=keys or {}, roles=roles or {}, **options)))


def only(made: Made) -> Conversation:
    (item,) = made
    assert isinstance(item, Conversation), item
    return item


def spoken(item: Conversation | Reject) -> list[tuple[str, Any]]:
    """Roles with texts; the parts of a turn that is more than one text."""
    assert isinstance(item, Conversation), item
    return [
        (turn.role, turn.parts[0] if len(turn.parts) == 1 and isinstance(turn.parts[0], str) else turn.parts)
        for turn in item.turns
    ]


def why(item: Conversation | Reject) -> str:
    """The reason of a reject; "" for a conversation."""
    return item.reason if isinstance(item, Reject) else ""
