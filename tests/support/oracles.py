"""Slow, obvious twins of clever code: loops, sets and Python integers where the product works in vectors."""

from __future__ import annotations

from collections.abc import Sequence

TRAIN, EVAL, CONFLICT = 0, 1, 2

_MASK = 2**64 - 1


def chance(value: int, seed: int) -> float:
    """splitmix64's finaliser of a hash mixed with a seed, as a fraction of 2^53 (Steele et al., 2014)."""
    mixed = value ^ (seed * 0x9E3779B97F4A7C15 & _MASK)
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / 2**53


def components(rows: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """Group -> all groups it hangs together with, by walking from row to row."""
    neighbours: dict[int, set[int]] = {}
    for row in rows:
        for group in row:
            neighbours.setdefault(group, set()).update(row)
    actual: dict[int, set[int]] = {}
    for start in neighbours:
        if start in actual:
            continue
        reached, waiting = {start}, [start]
        while waiting:
            for group in neighbours[waiting.pop()] - reached:
                reached.add(group)
                waiting.append(group)
        actual |= dict.fromkeys(reached, reached)
    return actual


def split_sides(
    rows: Sequence[Sequence[int]],
    own: Sequence[int],
    official_eval: Sequence[bool],
    pinned_train: Sequence[bool],
    *,
    share: float,
    seed: int,
) -> list[int]:
    """The side of each conversation, one by one, from the rules that split_assignment.py begins with."""
    whole = components(rows)
    shown_officially = {group for row, official in zip(rows, official_eval, strict=True) if official for group in row}
    largest = max(8, int(share * len(whole)))
    shown_by_pinned = {group for row, pinned in zip(rows, pinned_train, strict=True) if pinned for group in row}

    def held_out(group: int) -> bool:
        component = whole[group]
        if group in shown_officially:
            return True
        if len(component) > largest or component & shown_by_pinned:  # only what official eval shows
            return False
        return bool(component & shown_officially) or chance(min(component), seed) < share

    sides = []
    for row, identity, official, pinned in zip(rows, own, official_eval, pinned_train, strict=True):
        if not row:
            by_chance = chance(identity, seed) < share and not pinned
            sides.append(EVAL if official or by_chance else TRAIN)
        else:
            where = {held_out(group) for group in row}
            sides.append(CONFLICT if len(where) == 2 else TRAIN if where == {False} else CONFLICT if pinned else EVAL)
    return sides
