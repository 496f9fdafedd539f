"""The ranks of a run meet before they exchange anything: each knows that all are there, or who is not.

    torch's store at MASTER_ADDR:MASTER_PORT   rank 0 writes where it listens, and a token of this meeting
    heartbeats                                 each other rank connects there, and begins with the token

Rule: a meeting ends within `start_timeout_s`, with all ranks or with an error on each that came. A launcher would wait
for the missing ones for good. What an earlier meeting left in the store (torchrun keeps one over restarts) is known by
its address, where nobody listens.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

import torch

from dst.errors import DsvlError
from trainer.config.run import DistributedConfig
from trainer.distributed.heartbeat_client import HeartbeatClient
from trainer.distributed.heartbeat_server import HeartbeatServer
from trainer.distributed.heartbeats import Heartbeats, end_process
from trainer.distributed.stop_signal import Stopped
from trainer.errors import LostRankError

TELL_S = 20
"""How long a rank that fails before the meeting waits for the others, to tell them"""

_WHERE = "dsvl/heartbeats"
_ASKED_TO_STOP = "the run was asked to stop before its first step"
_POLL_S = 0.5
_CONNECT_S = 2.0
_MOST_NAMED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """heartbeats: runs. store: for torch's process group; its keys are of this meeting alone."""

    heartbeats: Heartbeats
    store: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What a launcher tells each rank. of_agent: torchrun's agent holds the store, not rank 0."""

    rank: int
    world_size: int
    host: str
    port: int
    of_agent: bool

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Address:
        return cls(
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            host=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            of_agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )


def meet(address: Address, limits: DistributedConfig, stopped: Callable[[], bool]) -> Meeting:
    """Wait for all ranks. Raises LostRankError if some do not come or fail, Stopped if the run was asked to stop."""
    seeker = _Seeker(address, limits, stopped)
    heartbeats = seeker.join() if address.rank else seeker.serve()
    while not heartbeats.wait_complete(_POLL_S):
        if (lost := heartbeats.lost()) is not None:
            heartbeats.leave()
            raise Stopped if lost.cause == _ASKED_TO_STOP else LostRankError(str(lost), lost.rank)
        if not isinstance(heartbeats, HeartbeatServer):
            continue
        if stopped():
            heartbeats.give_up(_ASKED_TO_STOP)
        elif seeker.is_late():
            missing = heartbeats.missing()
            heartbeats.give_up(
                f"{len(missing)} of {address.world_size} ranks did not come within {limits.start_timeout_s} s: "
                f"{', '.join(map(str, missing[:_MOST_NAMED]))}; rank 0 waits on {heartbeats.host} (MASTER_ADDR "
                f"{address.host}, port {address.port}); see what these ranks printed, and whether their hosts reach it"
            )
    store = torch.distributed.PrefixStore(f"dsvl/{heartbeats.token}", seeker.store)  # type: ignore[attr-defined]
    return Meeting(heartbeats=heartbeats, store=store)


def tell_failure(address: Address, cause: str) -> None:
    """This rank comes only to say why it ends: others would wait for it. Nothing is raised."""
    seeker = _Seeker(address, DistributedConfig(start_timeout_s=TELL_S), lambda: False)
    with suppress(DsvlError, OSError, RuntimeError):
        heartbeats = seeker.join(failed=cause) if address.rank else seeker.serve(failed=cause)
        while isinstance(heartbeats, HeartbeatServer) and heartbeats.missing() and not seeker.is_late():
            sleep(_POLL_S)
        heartbeats.leave()


class _Seeker:
    """A rank on its way to a meeting. store: of torch, once it is connected."""

    def __init__(self, address: Address, limits: DistributedConfig, stopped: Callable[[], bool]) -> None:
        self._address, self._limits, self._stopped = address, limits, stopped
        self._until = monotonic() + limits.start_timeout_s
        self.store: Any = None

    def is_late(self) -> bool:
        return monotonic() > self._until

    def serve(self, failed: str | None = None) -> HeartbeatServer:
        """Make rank 0 known. failed: why the run cannot start."""
        token = secrets.token_hex(16)
        limit_s = self._limits.lost_after_s
        server = HeartbeatServer(self._address.world_size, token, lost_after_s=limit_s, end=end_process)
        if self._address.of_agent:
            self._connect()
        else:
            self._open_store(is_master=True)
        self.store.set(_WHERE, json.dumps({"port": server.port, "token": token}))
        if failed is not None:
            server.fail(failed)
        server.start()
        return server

    def join(self, failed: str | None = None) -> HeartbeatClient:
        """Find rank 0. failed: why this rank comes only to end the run."""
        self._connect()
        while (client := self._client(failed)) is None:
            self._wait("answers, but its rank 0 does not")
        client.start()
        return client

    def _client(self, failed: str | None) -> HeartbeatClient | None:
        """None if rank 0 does not listen yet."""
        if not self.store.check([_WHERE]):
            return None
        where: dict[str, Any] = json.loads(self.store.get(_WHERE))
        try:
            connected = socket.create_connection((self._address.host, where["port"]), timeout=_CONNECT_S)
        except OSError:
            return None
        return HeartbeatClient(
            connected,
            self._address.host,
            where["token"],
            rank=self._address.rank,
            lost_after_s=self._limits.lost_after_s,
            end=end_process,
            failed=failed,
        )

    def _connect(self) -> None:
        """To the store that another process holds. torch prints a warning for each failed try: a socket tries first."""
        while True:
            try:
                socket.create_connection((self._address.host, self._address.port), timeout=_CONNECT_S).close()
            except OSError as error:
                self._wait(f"cannot be reached ({error.strerror or error})")
                continue
            self._open_store(is_master=False)
            return

    def _open_store(self, *, is_master: bool) -> None:
        self.store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            self._address.host,
            self._address.port,
            is_master=is_master,
            timeout=timedelta(seconds=self._limits.start_timeout_s),
            wait_for_workers=False,
        )

    def _wait(self, problem: str) -> None:
        """Before the next try. Raises Stopped, and LostRankError when it is too late for one."""
        if self._stopped():
            raise Stopped
        if self.is_late():
            raise LostRankError(
                f"rank 0 at MASTER_ADDR {self._address.host}, port {self._address.port} {problem}, for "
                f"{self._limits.start_timeout_s} s; this is rank {self._address.rank} on {socket.gethostname()}; see "
                "what rank 0 printed, and whether this host reaches it"
            )
        sleep(_POLL_S)
