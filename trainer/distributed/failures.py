"""When a rank fails alone: the others are informed, and none waits for it.

Errors that all ranks raise together, as trainer.distributed.ranks makes it, need none of this. Nothing here loads torch
unless a rank fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dst.errors import DsvlError
from trainer.distributed.heartbeats import Heartbeats
from trainer.distributed.stop_signal import Stopped
from trainer.errors import LostRankError

PATIENCE_S = 3.0
"""A collective fails at once where a rank's process ends; that it was this rank is known a moment later."""


@contextmanager
def telling_failures(environment: Mapping[str, str]) -> Iterator[None]:
    """An error before the ranks meet is reported to those on other hosts; a host's launcher ends its own."""
    try:
        yield
    except Exception as error:
        if _spans_hosts(environment):
            from trainer.distributed.meeting import Address, tell_failure

            tell_failure(Address.of(environment), _in_short(error))
        raise


@contextmanager
def sharing_fate(heartbeats: Heartbeats | None) -> Iterator[None]:
    """An error in the context ends all ranks. Raises LostRankError in the place of what a lost rank caused here."""
    if heartbeats is None:
        yield
        return
    try:
        yield
    except Stopped:
        raise
    except DsvlError as error:
        heartbeats.fail(_in_short(error))
        raise
    except Exception as error:
        # any of torch's errors may come from a collective; an own failure has nobody to wait for
        if isinstance(error, RuntimeError) and (lost := heartbeats.lost(PATIENCE_S)) is not None:
            raise LostRankError(str(lost), lost.rank) from None
        heartbeats.fail(_in_short(error))
        raise
    finally:
        heartbeats.leave()


def _spans_hosts(environment: Mapping[str, str]) -> bool:
    # torchrun sets the first of these, DeepSpeed's launcher the second
    on_this_host = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or 0)
    return 0 < on_this_host < int(environment.get("WORLD_SIZE", "1"))


def _in_short(error: Exception) -> str:
    """The error's first line."""
    text = next(iter(str(error).splitlines()), "")
    return text if isinstance(error, DsvlError) else f"{type(error).__name__}: {text}"
