"""Rank 0's side of the heartbeats: all other ranks connect to it, and it decides who is lost."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from trainer.distributed.heartbeat_lines import LineConnection
from trainer.distributed.heartbeats import ENDED, MAX_CAUSE, Heartbeats, LostRank, silence


@dataclass(slots=True)
class _Peer:
    connection: LineConnection
    rank: int = -1
    host: str = ""
    step: int = 0
    seen: float = 0.0
    """When its last line came"""


class HeartbeatServer(Heartbeats):
    """Rank 0's side. Others connect to `port` and begin with the token."""

    def __init__(self, world_size: int, token: str, *, lost_after_s: float, end: Callable[[LostRank], None]) -> None:
        super().__init__(token, rank=0, lost_after_s=lost_after_s, end=end)
        self._world_size = world_size
        dual = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=world_size
        )
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[int, _Peer] = {}
        self._done: set[int] = set()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def missing(self) -> list[int]:
        """The ranks that have not come."""
        return sorted(set(range(1, self._world_size)) - {peer.rank for peer in self._ranks()} - self._done)

    def give_up(self, cause: str) -> None:
        """End the run of those that came."""
        self._decide(LostRank(rank=-1, host="", step=0, cause=cause))
        self._tell_all()

    def _ranks(self) -> Iterator[_Peer]:
        return (peer for peer in list(self._peers.values()) if peer.rank >= 0)

    def _beat(self) -> None:
        self._send_all({"beat": True})
        for peer in list(self._peers.values()):
            silent = monotonic() - peer.seen
            if silent > self._lost_after_s:
                self._drop(peer, silence(silent))

    def _readable(self, source: Any) -> None:
        if source is self._listener:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            peer = _Peer(LineConnection(connected), seen=monotonic())
            self._peers[peer.connection.fileno()] = peer
            self._selector.register(peer.connection, selectors.EVENT_READ)
            return
        peer = self._peers[source.fileno()]
        try:
            for message in peer.connection.receive():
                self._take(peer, message)
        except EOFError:
            self._drop(peer, ENDED)

    def _take(self, peer: _Peer, message: Mapping[str, Any]) -> None:
        peer.seen = monotonic()
        if peer.rank < 0:
            rank = message.get("rank")
            known = message.get("token") == self.token and type(rank) is int and 0 < rank < self._world_size
            if not known:
                raise EOFError("not of this run")
            peer.rank, peer.host = int(rank), str(message.get("host"))[:MAX_CAUSE]  # type: ignore[arg-type]
            self._tell(peer)
            if not self.missing() and self._lost is None and "failed" not in message:
                self._complete.set()
                self._send_all({"complete": True})
        step, failed = message.get("step"), message.get("failed")
        if type(step) is int:
            peer.step = step
        if failed is not None:
            self._lose(peer, str(failed)[:MAX_CAUSE])
        if message.get("bye"):
            self._done.add(peer.rank)

    def _drop(self, peer: _Peer, cause: str) -> None:
        self._selector.unregister(peer.connection)
        del self._peers[peer.connection.fileno()]
        peer.connection.close()
        if peer.rank >= 0 and peer.rank not in self._done:
            self._lose(peer, cause)

    def _lose(self, peer: _Peer, cause: str) -> None:
        # ranks make their steps together, and the other's last word may be some steps old
        step = max(peer.step, self.step)
        self._decide(LostRank(rank=peer.rank, host=peer.host, step=step, cause=cause))
        self._tell_all()

    def _report(self, failure: str) -> None:
        self._decide(LostRank(rank=0, host=self.host, step=self.step, cause=failure))
        self._tell_all()

    def _tell_all(self) -> None:
        for peer in self._ranks():
            self._tell(peer)

    def _tell(self, peer: _Peer) -> None:
        if (lost := self._lost) is not None:
            fields = {"rank": lost.rank, "host": lost.host, "step": lost.step, "cause": lost.cause}
            peer.connection.send({"lost": fields})

    def _send_all(self, message: Mapping[str, Any]) -> None:
        for peer in self._ranks():
            peer.connection.send(message)

    def _last_words(self) -> None:
        self._send_all({"bye": True})
        for peer in self._peers.values():
            peer.connection.close()
        self._listener.close()
