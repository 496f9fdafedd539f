"""Whether all ranks of a run live: each has a connection to rank 0, and a thread that sends signs of life over it.

Rules
- A rank whose process ends is noticed at once, by its connection; one that hangs with its host or behind a cut network,
  after `lost_after_s` without a sign of life. Collectives would wait for either for half an hour.
- Rank 0 decides who is lost and tells all. A rank that hears nothing of rank 0 decides that rank 0 is lost.
- After a decision each rank has a few seconds to end by itself, with its own error if it has one; then its thread ends
  it. Files appear whole, so a checkpoint that was being written does not count.

Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from trainer.distributed.launcher_environment import speaks_for_host

GRACE_S = 10.0
"""How long a rank may take to end by itself after a decision, if `lost_after_s` is not shorter"""

MAX_CAUSE = 300
"""Characters of an error that other ranks show"""

ENDED = "its process ended; what that rank printed last, or its host's log, says why"

_MOST_BETWEEN_BEATS_S = 5.0
_WAKE_UP = b"\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRank:
    """Which rank ended the run. rank: -1 if ranks never came; then cause is the whole text."""

    rank: int
    host: str
    step: int
    cause: str

    def __str__(self) -> str:
        if self.rank < 0:
            return self.cause
        when = f"in step {self.step}" if self.step else "before its first step"
        return (
            f"rank {self.rank} on {self.host} was lost {when}: {self.cause}; all ranks end; the same command resumes "
            "from the newest checkpoint, if there is one"
        )


class Heartbeats(ABC):
    """This rank's thread and what it knows.

    token: what ranks of this meeting alone know. step: the one that is being made, 0 before the first.
    """

    def __init__(self, token: str, *, rank: int, lost_after_s: float, end: Callable[[LostRank], None]) -> None:
        self.token, self.rank, self.step, self.host = token, rank, 0, socket.gethostname()
        self._lost_after_s = lost_after_s
        self._beat_s = min(_MOST_BETWEEN_BEATS_S, lost_after_s / 6)
        self._end = end
        self._lost: LostRank | None = None
        self._decided, self._complete, self._left = threading.Event(), threading.Event(), threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        woken.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ)
        self._woken = woken
        self._failure: str | None = None
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._run, self._see_to_the_end)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_complete(self, seconds: float) -> bool:
        """Whether all ranks are there, after at most so long. Also returns when a rank is lost."""
        until = monotonic() + seconds
        while not self._complete.is_set() and not self._decided.is_set() and monotonic() < until:
            self._complete.wait(min(0.2, seconds))
        return self._complete.is_set()

    def lost(self, seconds: float = 0.0) -> LostRank | None:
        """The rank that ended the run; waits for a decision, at most so long."""
        self._decided.wait(seconds)
        return self._lost

    def fail(self, cause: str) -> None:
        """This rank cannot continue: all others are informed why."""
        self._failure = cause[:MAX_CAUSE]
        self._wake_thread()

    def leave(self) -> None:
        """This rank ends, with or without an error; its silence means nothing from now on. May be called again."""
        if self._left.is_set():
            return
        self._left.set()
        self._decided.set()
        self._wake_thread()
        for thread in self._threads:
            thread.join(2 * self._beat_s)
        self._wake.close()

    def _wake_thread(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._wake.send(_WAKE_UP)

    def _decide(self, lost: LostRank) -> None:
        if self._lost is None:
            self._lost = lost
            self._decided.set()

    def _see_to_the_end(self) -> None:
        self._decided.wait()
        if not self._left.wait(min(GRACE_S, self._lost_after_s)) and self._lost is not None:
            self._end(self._lost)

    def _run(self) -> None:
        next_beat = monotonic()
        while not self._left.is_set():
            self._report_failure()
            if monotonic() >= next_beat:
                next_beat = monotonic() + self._beat_s
                self._beat()
            for key, _ in self._selector.select(max(0.0, next_beat - monotonic())):
                if key.fileobj is self._woken:
                    self._woken.recv(64)
                else:
                    self._readable(key.fileobj)
        self._report_failure()
        self._last_words()
        self._selector.close()
        self._woken.close()

    def _report_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._report(failure)

    @abstractmethod
    def _beat(self) -> None:
        """Send a sign of life, and look who gave none."""

    @abstractmethod
    def _readable(self, source: Any) -> None:
        """Something came."""

    @abstractmethod
    def _report(self, failure: str) -> None:
        """Tell the others that this rank failed."""

    @abstractmethod
    def _last_words(self) -> None:
        """Tell the others that this rank ends."""


def silence(seconds: float) -> str:
    """Why a rank is lost whose connection stays."""
    return f"it gave no sign of life for {seconds:.0f} s; its host or the network failed"


def end_process(lost: LostRank) -> None:
    """End this process, whose main thread waits for a rank that is gone. One rank of each host says why."""
    if speaks_for_host(os.environ, lost.rank):
        os.write(2, f"error: {lost}\n".encode())
    os._exit(1)
