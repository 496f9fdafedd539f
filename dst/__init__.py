"""The template engine: a conversation as text, and which characters are trained on.

Usage:

    chat = dst.ChatTokenizer(dst.load_template("visualchat"), dst.load_tokenizer("path/of/tokenizer"))
    sample = chat.encode(messages)                            # text, ids, labels
    prompt = chat.encode(messages[:1], add_generation_prompt=True)  # its ids begin the sample's ids
"""

from dst.chat_tokenizer import IGNORE, ChatTokenizer, Encoded
from dst.errors import ConfigError, ControlTextError, DsvlError, TemplateError, TokenizerError
from dst.template import BUILTIN, IMAGE_TOKEN, Message, Rendered, Template, load_template
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
