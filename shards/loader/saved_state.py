"""What a loader's state must be like for another loader to resume from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.build import Build
from shards.errors import ShardError
from shards.loader.order_settings import OrderSettings

STATE_VERSION = 2


def check_saved(
    state: object, own: Mapping[str, Any], order: OrderSettings, build: Build, *, may_adopt: bool
) -> OrderSettings:
    """The order of the state, which may be another than this loader's if it follows from the size of a cache.

    own: the state of this loader, whose order is `order`. may_adopt: whether this loader's order was not asked for.
    Raises ShardError if the state is over another build, seed or kind of sequence, or by a newer release.
    """
    if not isinstance(state, Mapping):
        raise ShardError(f"loader state: is {state!r}; expected what state_dict gave")
    version = state.get("version")
    if version != STATE_VERSION:
        newer = isinstance(version, int) and version > STATE_VERSION
        step = "update dsvl" if newer else "start again"
        raise ShardError(f"loader state: version is {version!r}, this program reads {STATE_VERSION}; {step}")
    saved = state.get("sequences")
    settings = saved if isinstance(saved, Mapping) else {}
    saved_order = OrderSettings.from_state(settings, build) if may_adopt else None
    adopts = saved_order is not None and saved_order.shuffle == order.shuffle != "samples"
    adopted = order.to_json().keys() if adopts else ()
    pairs = [(name, state.get(name), own[name]) for name in ("manifest", "seed")]
    pairs += [(name, settings.get(name), value) for name, value in own["sequences"].items() if name not in adopted]
    for name, got, expected in pairs:
        if got != expected:
            raise ShardError(
                f"loader state: {name} is {_short(got)}, this loader has {_short(expected)}; continue with the build "
                "and settings of the run that saved it, or start again"
            )
    return saved_order if adopts and saved_order is not None else order


def _short(value: object) -> str:
    return f"{value:.12}" if isinstance(value, str) else repr(value)
