"""Parameters of OpenAI's chat completions, and the common ones of other servers: which change an answer here.

Rule: nothing is ignored in silence. A parameter that is not supported may hold the value that changes nothing; with
any other value the request is refused. `null` is the same as a missing parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from dst.common.suggest import nearest
from trainer.errors import RequestError

SUPPORTED = (
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
)

WITHOUT_EFFECT = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "user",
)
"""About accounts and caches of a provider, or about tools, which there are none of: any value gives the same answer"""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_k": (-1, 0),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Parameter that is not supported -> its values that change nothing, in addition to null"""


def check_parameters(body: Mapping[str, Any]) -> None:
    """Raises RequestError for a parameter that is unknown, or not supported and set to something that matters."""
    for name, value in body.items():
        if name in SUPPORTED or name in WITHOUT_EFFECT or value is None:
            continue
        if name not in NEUTRAL:
            known = (*SUPPORTED, *WITHOUT_EFFECT, *NEUTRAL)
            text = f"{short(name)}: unknown parameter{nearest(name[:100], known)}"
            raise RequestError(text, short(name), code="unknown_parameter")
        if not any(type_of(value) == type_of(neutral) and value == neutral for neutral in NEUTRAL[name]):
            allowed = " or ".join([*map(_json, NEUTRAL[name]), "no value"])
            text = f"{name}: not supported by this server; expected {allowed}"
            raise RequestError(text, name, code="unsupported_parameter")


def type_of(value: object) -> str:
    """The JSON type of a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def short(value: object) -> str:
    """A value of a request as an error quotes it."""
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # nested deeper than orjson writes, though not deeper than it reads
        return f"a deeply nested {type_of(value)}"
