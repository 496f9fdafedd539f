"""Conversations for property tests: many images, many rounds, any Unicode, and text that tries to look like control."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

import dst

ANSWERS = {
    "chatml": "{}<|im_end|>",
    "llama2": " {} </s>",
    "llama3": "{}<|eot_id|>",
    "plain": "{}</s>",
    "vicuna": " {}</s>",
    "visualchat": "{}</s>",
}
"""What each built-in template trains on, around the answer."""

FRAGMENTS = (
    *("<image>", "</s>", "<s>", "<unk>", "<|im_end|>", "<|eot_id|>", "<|im_start|>", "### Image 1:", "### Answer:\n"),
    *("<", "<im", "age>", "<|", "|>", "</", "s>", "<|im_", "end|>", ">", "[INST]", "<<SYS>>", "{{ bos_token }}"),
    *("\n", "\n\n", " ", "  ", "\t", "▁", "\ufdd0", "\ufdd1\ufdef", "\u2028", "é", "猫", "🙂", "e\u0301", "a red bus"),
)

texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=6).map("".join)


@st.composite
def conversations(draw: st.DrawFn, template: str) -> list[dst.Message]:
    """A finished conversation of one to four rounds with up to 12 images that the template accepts."""
    captions = template == "plain"
    rounds = draw(st.integers(1, 4))
    images = draw(st.integers(rounds if captions else 0, 12))
    # Every round of captions shows an image; the rest fall where they may.
    places = [*(range(rounds) if captions else ())]
    places += draw(st.lists(st.integers(0, rounds - 1), min_size=images - len(places), max_size=images - len(places)))
    messages: list[dst.Message] = []
    if not captions and draw(st.booleans()):
        messages.append({"role": "system", "content": _content(draw, 0)})
    for number in range(rounds):
        messages.append({"role": "user", "content": _content(draw, places.count(number))})
        messages.append({"role": "assistant", "content": _content(draw, 0)})
    return messages


def _content(draw: st.DrawFn, images: int) -> str | list[dict[str, Any]]:
    if not images and draw(st.booleans()):
        return draw(texts)
    parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in draw(st.lists(texts, max_size=3))]
    for _ in range(images):
        parts.insert(draw(st.integers(0, len(parts))), {"type": "image"})
    return parts
