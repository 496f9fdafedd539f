"""Ranks that watch each other, over real connections; a rank is an object with a thread here."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from trainer.distributed.heartbeat_client import HeartbeatClient
from trainer.distributed.heartbeat_server import HeartbeatServer
from trainer.distributed.heartbeats import Heartbeats, LostRank

TOKEN = "of this run"
LONG_S = 600.0


class Group:
    """Rank 0 and those that joined it. ended: what threads gave as the reason to end their process."""

    def __init__(self, world_size: int, lost_after_s: float = LONG_S) -> None:
        self.lost_after_s = lost_after_s
        self.ended: list[LostRank] = []
        self.server = HeartbeatServer(world_size, TOKEN, lost_after_s=lost_after_s, end=self.ended.append)
        self.server.start()
        self.clients: list[HeartbeatClient] = []
        self.sockets: list[socket.socket] = []

    def connect(self) -> socket.socket:
        self.sockets.append(socket.create_connection(("127.0.0.1", self.server.port)))
        return self.sockets[-1]

    def join(self, rank: int, *, token: str = TOKEN, failed: str | None = None) -> HeartbeatClient:
        client = HeartbeatClient(
            self.connect(),
            "first-host",
            token,
            rank=rank,
            lost_after_s=self.lost_after_s,
            end=self.ended.append,
            failed=failed,
        )
        client.start()
        self.clients.append(client)
        return client

    @property
    def all(self) -> list[Heartbeats]:
        return [self.server, *self.clients]


def group(groups: ExitStack, world_size: int, lost_after_s: float = LONG_S) -> Group:
    made = Group(world_size, lost_after_s)

    def leave() -> None:
        for each in made.all:
            each.leave()
        for connected in made.sockets:
            connected.close()

    groups.callback(leave)
    return made


def complete(groups: ExitStack, world_size: int, lost_after_s: float = LONG_S) -> Group:
    made = group(groups, world_size, lost_after_s)
    for rank in range(1, world_size):
        made.join(rank)
    assert all(each.wait_complete(LONG_S) for each in made.all)
    return made
