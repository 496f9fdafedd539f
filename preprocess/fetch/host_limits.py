"""How often each host is asked: no more requests at once, or per second, than the blend allows.

Rule: a redirect counts for the host that it leads to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(slots=True)
class _Host:
    slots: asyncio.Semaphore
    next_start: float = 0.0
    """The earliest time of the next request, in seconds of the event loop's clock"""


class HostLimits:
    """per_host: requests at once. rate: requests per second."""

    def __init__(self, per_host: int, rate: float) -> None:
        self._per_host = per_host
        self._interval_s = 1 / rate
        self._hosts: dict[str, _Host] = {}

    @contextlib.asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Waits until the host may get a request, and counts it as running inside."""
        limits = self._of(host)
        async with limits.slots:
            now = asyncio.get_running_loop().time()
            start = max(now, limits.next_start)
            limits.next_start = start + self._interval_s
            await asyncio.sleep(start - now)
            yield

    def pause(self, host: str, seconds: float) -> None:
        """No request to the host begins for this time: it asked for it."""
        limits = self._of(host)
        limits.next_start = max(limits.next_start, asyncio.get_running_loop().time() + seconds)

    def _of(self, host: str) -> _Host:
        return self._hosts.setdefault(host, _Host(asyncio.Semaphore(self._per_host)))
