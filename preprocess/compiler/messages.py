"""A conversation as the messages that a template renders, with the `prompt` of its dataset.

Rule: a prompt ends every question, after a line break, unless the question ends with it already.
"""

from __future__ import annotations

from typing import Any

from preprocess.conversation import Conversation, to_messages


def messages_of(conversation: Conversation, prompt: str | None) -> list[dict[str, Any]]:
    """prompt: a text to add to each user turn."""
    messages = to_messages(conversation)
    if prompt is not None:
        for message in messages:
            if message["role"] == "user":
                message["content"] = _with_prompt(message["content"], prompt)
    return messages


def _with_prompt(content: str | list[dict[str, Any]], prompt: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return _extended(content, prompt)
    texts = [index for index, part in enumerate(content) if part["type"] == "text"]
    if not texts:
        return [*content, {"type": "text", "text": prompt}]
    last = texts[-1]
    is_images_after_text = texts == list(range(last + 1))
    if last == len(content) - 1 or is_images_after_text:
        extended = {"type": "text", "text": _extended(content[last]["text"], prompt)}
        return [*content[:last], extended, *content[last + 1 :]]
    return [*content, {"type": "text", "text": f"\n{prompt}"}]


def _extended(question: str, prompt: str) -> str:
    return question if question.rstrip().endswith(prompt) else f"{question}\n{prompt}"
