"""The template engine: a conversation as text, and which characters are trained on.

Usage:

    chat = dst.ChatTokenizer(dst.load_template("visualchat"), dst.load_tokenizer("path/of/tokenizer"))
    sample = chat.encode(messages)                            # text, ids, labels
    prompt = chat.encode(messages[:1], add_generation_prompt=True)  # its ids begin the sample's ids

A name is imported when it is first used: all packages import dst.errors, and `--help` needs no tokenizer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dst.chat_tokenizer import ChatTokenizer
    from dst.encoded import IGNORE, Encoded
    from dst.errors import ConfigError, ControlTextError, DsvlError, TemplateError, TokenizerError
    from dst.messages import Message
    from dst.template import BUILTIN, IMAGE_TOKEN, Rendered, Template, load_template
    from dst.tokenizer import TextTokenizer, load_tokenizer

__all__ = [
    "BUILTIN",
    "IGNORE",
    "IMAGE_TOKEN",
    "ChatTokenizer",
    "ConfigError",
    "ControlTextError",
    "DsvlError",
    "Encoded",
    "Message",
    "Rendered",
    "Template",
    "TemplateError",
    "TextTokenizer",
    "TokenizerError",
    "load_template",
    "load_tokenizer",
]

_NAMES = {
    "chat_tokenizer": ("ChatTokenizer",),
    "encoded": ("IGNORE", "Encoded"),
    "errors": ("ConfigError", "ControlTextError", "DsvlError", "TemplateError", "TokenizerError"),
    "messages": ("Message",),
    "template": ("BUILTIN", "IMAGE_TOKEN", "Rendered", "Template", "load_template"),
    "tokenizer": ("TextTokenizer", "load_tokenizer"),
}
_MODULE_OF = {name: f"dst.{module}" for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # type checkers would take it as a promise of every name

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'dst' has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
