"""What is served, and how the server is: starting while the model loads, ok or degraded, and stopping."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from trainer.serving.chat_request import Defaults
from trainer.serving.engine import Engine
from trainer.serving.limits import Limits
from trainer.serving.prompts import PromptMaker


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that is loaded."""

    engine: Engine
    prompts: PromptMaker


@dataclass(slots=True, kw_only=True)
class Service:
    """Settings of a server, and its model as soon as that is loaded."""

    name: str
    """Of the model, as requests name it"""
    limits: Limits = field(default_factory=Limits)
    defaults: Defaults = field(default_factory=Defaults)
    queue: int = 64
    """Most requests whose prompts are made at the same time; the engine has a queue of this length of its own"""
    key: str | None = field(default=None, repr=False)
    """What clients of /v1/ must send; None: nothing"""
    image_urls: bool = False
    """Whether images may be behind URLs"""
    allow_private_addresses: bool = False
    """Of URLs of images; for tests, which have no public server"""
    cors_origins: tuple[str, ...] = ()
    """Of pages of other sites that may ask, such as https://chat.example.org"""
    created: int = field(default_factory=lambda: int(time.time()))
    model: ServedModel | None = None
    is_stopping: bool = False

    @property
    def status(self) -> Literal["starting", "ok", "degraded", "stopping"]:
        """degraded: requests are taken, but the model failed at the last answer that it gave or should have given."""
        if self.is_stopping:
            return "stopping"
        if self.model is None:
            return "starting"
        return "degraded" if self.model.engine.failures.in_a_row else "ok"
