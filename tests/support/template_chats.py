"""Chat tokenizers of built-in templates and of a test's own, and the messages that they take."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import dst


@functools.cache
def chat_of(template: str, tokenizer: dst.TextTokenizer) -> dst.ChatTokenizer:
    return dst.ChatTokenizer(dst.load_template(template), tokenizer)


def user(*parts: Any) -> dst.Message:
    return {
        "role": "user",
        "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts],
    }


def assistant(text: str) -> dst.Message:
    return {"role": "assistant", "content": text}


def jinja(folder: Path, source: str) -> dst.Template:
    path = folder / "own.jinja"
    path.write_text(source, encoding="utf-8")
    return dst.load_template(path)


LOOP = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}BODY{% endif %}{% endfor %}A:"
    "{% endif %}{% endfor %}"
)
