"""All downloads of a fetch: several hosts at once, several URLs of each, and no more of a host that is dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from dst.common.progress import Advance
from preprocess.blend.fetch import Fetch
from preprocess.fetch.download import Answer, Downloader, open_session
from preprocess.fetch.host_limits import HostLimits
from preprocess.fetch.ledger import Ledger, Waiting

Download = Callable[[Waiting], Awaitable[Answer]]

COMMIT_S = 0.5
"""A killed fetch repeats what it did in this time"""

DEAD_AFTER = 8
"""A host that did not answer for this many URLs in a row, with all tries, is not asked for its others in this run"""


async def download_all(ledger: Ledger, settings: Fetch, *, allow_private: bool, advance: Advance) -> None:
    """Settle every URL of the ledger that waits. Raises DataError if the disk fails; what is finished is recorded."""
    threads = ThreadPoolExecutor(settings.connections, "fetch")  # they ask DNS, and flush files to disk
    asyncio.get_running_loop().set_default_executor(threads)
    async with open_session(settings, allow_private=allow_private) as session:
        downloader = Downloader(
            session=session,
            folder=ledger.folder,
            settings=settings,
            hosts=HostLimits(settings.per_host, settings.rate),
            remember=ledger.remember,
        )
        hosts = iter(ledger.hosts())

        async def next_hosts() -> None:
            for host in hosts:
                await _HostRun(host, ledger, downloader.download, advance).all(settings.per_host)

        commits = asyncio.create_task(_commit_regularly(ledger))
        await asyncio.gather(*(next_hosts() for _ in range(settings.connections)))
        commits.cancel()


async def _commit_regularly(ledger: Ledger) -> None:
    while True:
        await asyncio.sleep(COMMIT_S)
        ledger.commit()


class _HostRun:
    """The downloads from one host, several at a time."""

    def __init__(self, host: str, ledger: Ledger, download: Download, advance: Advance) -> None:
        self._host = host
        self._ledger = ledger
        self._download = download
        self._advance = advance
        self._waiting: Iterator[Waiting] = ledger.waiting(host)
        self._silent = 0
        """URLs in a row for which the host did not answer"""

    async def all(self, at_once: int) -> None:
        await asyncio.gather(*(self._next_urls() for _ in range(at_once)))
        if self._silent >= DEAD_AFTER:
            detail = f"not asked: {self._host} did not answer for {self._silent} URLs in a row"
            self._advance(self._ledger.give_up(self._host, detail))

    async def _next_urls(self) -> None:
        for item in self._waiting:
            answer = await self._download(item)
            self._ledger.record(item.key, answer.outcome)
            self._advance(1)
            self._silent = 0 if answer.connected else self._silent + 1
            if self._silent >= DEAD_AFTER:
                return
