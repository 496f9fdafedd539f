"""Answers and errors as the JSON objects of OpenAI's API.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

FinishReason = Literal["stop", "length"]

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

DONE = b"data: [DONE]\n\n"
"""The last event of a stream"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """prompt: positions, those of images included; cached: of them, those that were not computed again."""

    prompt: int
    cached: int
    answer: int

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One chat completion, whole or as a stream."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, reason: FinishReason, counts: TokenCounts) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": counts.to_json()}

    def first_chunk(self, *, with_usage: bool) -> bytes:
        return self._chunk({"role": "assistant", "content": "", "refusal": None}, None, with_usage)

    def chunk(self, text: str, *, with_usage: bool) -> bytes:
        return self._chunk({"content": text}, None, with_usage)

    def last_chunk(self, reason: FinishReason, *, with_usage: bool) -> bytes:
        return self._chunk({}, reason, with_usage)

    def usage_chunk(self, counts: TokenCounts) -> bytes:
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": counts.to_json()})

    def _chunk(self, delta: Mapping[str, Any], reason: FinishReason | None, with_usage: bool) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if with_usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(content: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


def error_json(status: int, text: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}


def model_json(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "dsvl"}
