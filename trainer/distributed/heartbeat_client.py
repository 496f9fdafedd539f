"""The side of every rank but the first of the heartbeats: one connection, to rank 0."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from trainer.distributed.heartbeat_lines import LineConnection
from trainer.distributed.heartbeats import ENDED, MAX_CAUSE, Heartbeats, LostRank, silence


class HeartbeatClient(Heartbeats):
    """Any other rank's side, on a connection to rank 0's host."""

    def __init__(
        self,
        connected: socket.socket,
        host: str,
        token: str,
        *,
        rank: int,
        lost_after_s: float,
        end: Callable[[LostRank], None],
        failed: str | None = None,
    ) -> None:
        """failed: why this rank comes only to end the run."""
        super().__init__(token, rank=rank, lost_after_s=lost_after_s, end=end)
        self._first_host, self._seen, self._first_left = host, monotonic(), False
        self._connection = LineConnection(connected)
        self._selector.register(self._connection, selectors.EVENT_READ)
        hello = {"token": token, "rank": rank, "host": self.host}
        self._connection.send(hello if failed is None else {**hello, "failed": failed[:MAX_CAUSE]})

    def _beat(self) -> None:
        self._connection.send({"step": self.step})
        silent = monotonic() - self._seen
        if silent > self._lost_after_s and not self._first_left:
            self._lose(silence(silent))

    def _readable(self, source: Any) -> None:
        try:
            for message in self._connection.receive():
                self._take(message)
        except EOFError:
            self._selector.unregister(self._connection)
            if not self._first_left:
                self._lose(ENDED)

    def _take(self, message: Mapping[str, Any]) -> None:
        self._seen = monotonic()
        if message.get("complete"):
            self._complete.set()
        if message.get("bye"):
            self._first_left = True
        if isinstance(fields := message.get("lost"), dict):
            self._decide(LostRank(**fields))

    def _lose(self, cause: str) -> None:
        self._decide(LostRank(rank=0, host=self._first_host, step=self.step, cause=cause))

    def _report(self, failure: str) -> None:
        self._connection.send({"step": self.step, "failed": failure})

    def _last_words(self) -> None:
        self._connection.send({"bye": True})
        self._connection.close()
