"""Slow, obvious twins of the template engine.

Written without cuts, fences or pieces: data is blotted out to see what the template itself wrote, and tokens are laid
on the text byte by byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

import dst

Range = tuple[int, int]


def blot(messages: Sequence[dst.Message]) -> list[dst.Message]:
    """The same conversation with every character of data replaced by a harmless one."""

    def blot_content(content: Any) -> Any:
        if isinstance(content, str):
            return "x" * len(content)
        return [{**part, "text": "x" * len(part["text"])} if part["type"] == "text" else part for part in content]

    return [{**message, "content": blot_content(message["content"])} for message in messages]


def template_controls(chat: dst.ChatTokenizer, messages: Sequence[dst.Message], *, prompt: bool) -> list[Range]:
    """Where the template itself wrote control strings, in characters of the text."""
    longest_first = sorted(chat.tokenizer.control, key=len, reverse=True)
    text = chat.render(blot(messages), add_generation_prompt=prompt).text
    return [match.span() for match in re.finditer("|".join(map(re.escape, longest_first)), text)]


class Aligner:
    """Lays tokens on text through their own bytes, without any tokenizer's offsets."""

    def __init__(self, tokenizer: dst.TextTokenizer, definition: str) -> None:
        self.control = tokenizer.control
        raw = tokenizers.Tokenizer.from_str(definition)
        self.byte_level = "ByteLevel" in json.dumps(json.loads(definition)["pre_tokenizer"])
        self.tokens = {index: token for token, index in raw.get_vocab().items()}
        self.byte_of = _byte_of()

    def token_bytes(self, index: int) -> bytes:
        token = self.tokens[index]
        if self.byte_level:
            return bytes(self.byte_of[character] for character in token)
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            return bytes.fromhex(token[3:5])
        return token.replace("▁", " ").encode()

    def align(self, ids: Sequence[int], text: str, controls: Sequence[Range]) -> list[Range]:
        """The byte range of every token.

        Fails if the tokens are not the text, but for a space put in front of the text or after a control token.
        """
        assert [text[start:end] for start, end in controls] == [
            self.tokens[index] for index in ids if self.tokens[index] in self.control
        ]
        if not self.byte_level:
            text = text.replace("▁", " ")  # to these tokenizers the two are the same
        ranges: list[Range] = []
        remaining = list(ids)
        position = 0
        for start, end in [*controls, (len(text), len(text))]:
            section: list[bytes] = []
            while remaining and self.tokens[remaining[0]] not in self.control:
                section.append(self.token_bytes(remaining.pop(0)))
            expected, got = text[position:start].encode(), b"".join(section)
            assert got in (expected, b" " + expected)
            offset = len(text[:position].encode()) - (len(got) - len(expected))
            for token in section:
                ranges.append((max(offset, len(text[:position].encode())), offset + len(token)))
                offset += len(token)
            if start < end:
                ranges.append((len(text[:start].encode()), len(text[:end].encode())))
                remaining.pop(0)
            position = end
        assert not remaining
        return ranges

    def byte_range(self, text: str, span: Range) -> Range:
        if not self.byte_level:
            text = text.replace("▁", " ")
        return len(text[: span[0]].encode()), len(text[: span[1]].encode())


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100 on, in order."""
    others = iter(range(256, 512))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte) if byte in printable else chr(next(others)): byte for byte in range(256)}
    assert set(table) == set(ByteLevel.alphabet())
    return table
