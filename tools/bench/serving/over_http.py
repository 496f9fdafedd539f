"""Questions to a server in this process, as clients of OpenAI's API send them."""

from __future__ import annotations

import base64
import functools
import io
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from tools.bench.serving.models import SIDE, Model
from trainer.serving.engine import Engine
from trainer.serving.prompts import PromptMaker
from trainer.serving.server import Address, listening
from trainer.serving.service import ServedModel, Service

_NAME = "bench"


@contextmanager
def http_server(model: Model, engine: Engine) -> Iterator[str]:
    """The URL of a server that answers with an engine."""
    served = ServedModel(engine=engine, prompts=PromptMaker(speaker=model, generator=model.generator))
    service = Service(name=_NAME, model=served)
    with listening(service, Address(port=0), log=lambda line: None) as (url, _):
        yield url


def ask_over_http(url: str, question: int, image: int, *, tokens: int) -> int:
    """Ask about an image; returns the tokens of the answer."""
    content = [
        {"type": "image_url", "image_url": {"url": _data_uri(image)}},
        {"type": "text", "text": f"Question {question}: what is in the photo, and what else could be said about it?"},
    ]
    body = {
        "model": _NAME,
        "temperature": 0,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": content}],
    }
    headers = {"Content-Type": "application/json"}
    address = f"{url.rstrip('/')}/v1/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return int(json.load(response)["usage"]["completion_tokens"])


@functools.cache
def _data_uri(image: int) -> str:
    """A photo-like JPEG: noise, made smooth."""
    noise = np.random.Generator(np.random.PCG64(image)).integers(0, 256, (12, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((SIDE, SIDE)).save(file, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
