"""What a copy sets before its first character, so that it takes the conversations of a build.

Rule: it writes nothing, but for the begin token, and changes no message that the original takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from dst.template import prepend
from preprocess.templates.examples import Contents

_CHANGED = {
    "parts": (
        "message['content'] is string",
        "[{'type': 'text', 'text': message['content']}]",
    ),
    "texts": ("message['content'] and message['content'] is not string", "joined.text"),
    "user parts": (
        "message['content'] and message['content'] is not string and message['role'] != 'user'",
        "joined.text",
    ),
}
"""Contents -> the condition for a message that the original does not take, and the content in its place"""

_JOIN = (
    "{%- set joined = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- set joined.text = joined.text ~ (part['text'] if part['type'] == 'text' else '<image>\\n') -%}"
    "{%- endfor -%}"
)


def with_preamble(source: str, contents: Contents, *, variables: Sequence[str], adds_begin: bool) -> str:
    """The source after what it needs. variables: names that are to be empty text unless they are set."""
    tags = "{{- bos_token }}" if adds_begin else ""
    tags += "".join(f"{{% if {name} is not defined %}}{{% set {name} = '' %}}{{% endif %}}" for name in variables)
    if contents != "any":
        condition, content = _CHANGED[contents]
        tags += (
            "{%- set taken = namespace(messages=[]) -%}{%- for message in messages -%}"
            f"{{%- if {condition} -%}}{_JOIN if content == 'joined.text' else ''}"
            f"{{%- set taken.messages = taken.messages + [dict(message, content={content})] -%}}"
            "{%- else -%}{%- set taken.messages = taken.messages + [message] -%}{%- endif -%}"
            "{%- endfor -%}{% set messages = taken.messages %}"
        )
    return prepend(tags, source) if tags else source
