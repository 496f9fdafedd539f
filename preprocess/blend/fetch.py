"""The section `fetch:` of a blend file: how images are downloaded that records name by URL."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen

from dst.common.config_class import Positive, config_class

Amount = Annotated[float, Gt(0)]


@config_class
class Fetch:
    folder: str = "fetched"
    """The folder with what `dsvl-prep fetch` downloads, relative to this file. Several blends may share it."""
    connections: Positive = 32
    """Most downloads at once."""
    per_host: Positive = 4
    """Most downloads at once from one host."""
    rate: Amount = 10.0
    """Most requests per second to one host."""
    max_megabytes: Annotated[int, Ge(1), Le(512)] = 64
    """Larger files are not downloaded."""
    timeout_s: Amount = 30.0
    """A try ends if no byte comes for this many seconds."""
    tries: Positive = 4
    """How often a URL is asked for in one run, with growing waits, while its host does not answer or is busy."""
    user_agent: Annotated[str, MinLen(1)] = "dsvl"
    """How requests introduce themselves. Some hosts expect an address where they can reach you."""
