"""The train/eval split: no group on both sides, decided by group and seed alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.compiler.split_assignment import CONFLICT, EVAL, NAMES, TRAIN, assign
from tests.support import oracles

GROUP = st.integers(0, 25) | st.integers(2**64 - 4, 2**64 - 1)
ROWS = st.lists(st.tuples(st.lists(GROUP, max_size=4), st.integers(0, 2**64 - 1), st.booleans()), max_size=40)
PINNED = st.frozensets(st.integers(0, 39))
SHARES = st.sampled_from([0.0, 0.02, 0.3, 0.5, 1.0])
SEEDS = st.sampled_from([0, 1, 42, -1, 2**64 + 1])

Row = tuple[Sequence[int], int, bool]


def pins(rows: Sequence[Row], pinned: Collection[int]) -> list[bool]:
    """Which rows are pinned to train; no row is both that and official eval."""
    return [number in pinned and not official for number, (_, _, official) in enumerate(rows)]


def sides(rows: Sequence[Row], *, share: float, seed: int, pinned: Collection[int] = ()) -> list[int]:
    """The sides of the rows; `pinned`: the numbers of those that the blend keeps in train."""
    counts = [len(groups) for groups, _, _ in rows]
    result = assign(
        np.array([group for groups, _, _ in rows for group in groups], dtype=np.uint64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.array([own for groups, own, _ in rows if not groups], dtype=np.uint64),
        np.array([official for _, _, official in rows], dtype=bool),
        np.array(pins(rows, pinned), dtype=bool),
        share=share,
        seed=seed,
    )
    assert result.dtype == np.uint8
    return list(result.tolist())


def many(count: int, *, groups_each: int = 1, seed: int = 0) -> list[Row]:
    """Rows that share nothing with each other."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, (count, groups_each + 1), dtype=np.uint64).tolist()
    return [(row[:-1], row[-1], False) for row in hashes]


@settings(max_examples=300)
@given(ROWS, PINNED, SHARES, SEEDS)
def test_it_agrees_with_sets_and_loops(rows: list[Row], pinned: frozenset[int], share: float, seed: int) -> None:
    groups, own, official = ([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    expected = oracles.split_sides(groups, own, official, pins(rows, pinned), share=share, seed=seed)
    assert sides(rows, share=share, seed=seed, pinned=pinned) == expected


@settings(max_examples=60)
@given(st.integers(20, 300), st.integers(1, 60), st.integers(0, 2**32), SHARES)
def test_it_agrees_with_sets_and_loops_on_large_components(count: int, known: int, seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    rows = [
        (random.integers(0, known * 8, random.integers(0, 4)).tolist(), index, bool(random.random() < 0.05))
        for index in range(count)
    ]
    groups, own, official = ([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    pinned = set(np.flatnonzero(random.random(count) < 0.02).tolist())
    expected = oracles.split_sides(groups, own, official, pins(rows, pinned), share=share, seed=7)
    assert sides(rows, share=share, seed=7, pinned=pinned) == expected


@given(ROWS, PINNED, SHARES, SEEDS)
def test_no_group_is_on_both_sides(rows: list[Row], pinned: frozenset[int], share: float, seed: int) -> None:
    shown: dict[int, set[int]] = {TRAIN: set(), EVAL: set(), CONFLICT: set()}
    for (groups, _, _), side in zip(rows, sides(rows, share=share, seed=seed, pinned=pinned), strict=True):
        shown[side].update(groups)
    assert not shown[TRAIN] & shown[EVAL]


@given(ROWS, SHARES, SEEDS)
def test_every_row_gets_a_side_and_official_eval_is_honoured(rows: list[Row], share: float, seed: int) -> None:
    got = sides(rows, share=share, seed=seed)
    assert len(got) == len(rows)
    assert set(got) <= {TRAIN, EVAL, CONFLICT}
    assert all(side == EVAL for side, (_, _, official) in zip(got, rows, strict=True) if official)


@given(ROWS, PINNED, SHARES, SEEDS)
def test_a_row_pinned_to_train_is_there_or_shows_what_official_eval_shows(
    rows: list[Row], pinned: frozenset[int], share: float, seed: int
) -> None:
    official = {group for groups, _, is_official in rows if is_official for group in groups}
    got = sides(rows, share=share, seed=seed, pinned=pinned)
    for (groups, _, _), is_pinned, side in zip(rows, pins(rows, pinned), got, strict=True):
        if is_pinned:
            assert side == (CONFLICT if official & {*groups} else TRAIN)


@given(ROWS, SHARES, SEEDS)
def test_the_order_of_rows_and_of_their_groups_does_not_matter(rows: list[Row], share: float, seed: int) -> None:
    got = sides(rows, share=share, seed=seed)
    order = np.random.default_rng(len(rows)).permutation(len(rows)).tolist()
    shuffled = [(list(reversed(rows[place][0])), *rows[place][1:]) for place in order]
    assert sides(shuffled, share=share, seed=seed) == [got[place] for place in order]


def test_unrelated_rows_change_nothing_for_others() -> None:
    rows = [(groups[:2], own, index % 50 == 0) for index, (groups, own, _) in enumerate(many(2000, groups_each=2))]
    more = many(3000, groups_each=3, seed=1)
    got = sides(rows, share=0.1, seed=3)
    assert sides([*rows, *more], share=0.1, seed=3)[:2000] == got
    assert sides([*more, *rows], share=0.1, seed=3)[3000:] == got


@pytest.mark.parametrize("groups_each", [0, 1, 3])
@pytest.mark.parametrize("share", [0.02, 0.25])
def test_about_the_requested_share_is_held_out(groups_each: int, share: float) -> None:
    got = np.array(sides(many(40_000, groups_each=groups_each), share=share, seed=0))
    assert np.mean(got == EVAL) == pytest.approx(share, rel=0.1)
    assert not (got == CONFLICT).any()


def test_a_share_of_nothing_and_of_everything_are_exact() -> None:
    rows = many(500, groups_each=1) + many(500, groups_each=0, seed=1)
    assert set(sides(rows, share=0, seed=0)) == {TRAIN}
    assert set(sides(rows, share=1, seed=0)) == {EVAL}


def test_the_seed_chooses_the_groups() -> None:
    rows = many(2000)
    first, second = (np.array(sides(rows, share=0.5, seed=seed)) for seed in (0, 1))
    assert 0.4 < np.mean(first == second) < 0.6


def test_a_component_goes_to_eval_with_its_official_record() -> None:
    rows = [([1, 2], 0, False), ([2, 3], 1, False), ([3], 2, True), ([9], 3, False)]
    assert sides(rows, share=0, seed=0) == [EVAL, EVAL, EVAL, TRAIN]


def test_in_a_giant_only_what_official_eval_shows_is_held_out() -> None:
    chain: list[Row] = [([index, index + 1], index, False) for index in range(100)]
    rows = [*chain, ([50], 100, True), ([50], 101, False), ([200], 102, False)]
    got = sides(rows, share=0.05, seed=0)
    assert [index for index in range(100) if got[index] == CONFLICT] == [49, 50]
    assert {got[index] for index in range(100) if index not in (49, 50)} == {TRAIN}
    assert got[100:102] == [EVAL, EVAL]


def test_a_component_of_eight_groups_is_not_a_giant_however_small_the_blend() -> None:
    eight = [(list(range(8)), 0, False), ([0], 1, True)]
    assert sides(eight, share=0.01, seed=0) == [EVAL, EVAL]
    nine = [(list(range(9)), 0, False), ([0], 1, True)]
    assert sides(nine, share=0.01, seed=0) == [CONFLICT, EVAL]


def test_a_row_pinned_to_train_keeps_its_component_there_except_what_official_eval_shows() -> None:
    rows = [([1], 0, False), ([1, 2], 1, False), ([2, 3], 2, False), ([3], 3, True), ([3], 4, False)]
    assert sides(rows, share=1, seed=0, pinned={0}) == [TRAIN, TRAIN, CONFLICT, EVAL, EVAL]
    assert sides(rows, share=1, seed=0, pinned={4}) == [TRAIN, TRAIN, CONFLICT, EVAL, CONFLICT]


def test_a_group_shown_twice_by_a_record_counts_once() -> None:
    assert sides([([5, 5, 5], 0, True), ([5], 1, False)], share=0, seed=0) == [EVAL, EVAL]


def test_no_rows_and_no_groups_are_fine() -> None:
    assert sides([], share=0.5, seed=0) == []
    assert sides([([], 1, True), ([], 2, False)], share=0, seed=0) == [EVAL, TRAIN]


def test_a_chain_of_a_hundred_thousand_is_one_component() -> None:
    names = np.random.default_rng(0).permutation(100_001).tolist()
    rows: list[Row] = [([names[index], names[index + 1]], index, False) for index in range(100_000)]
    assert set(sides(rows, share=1.0, seed=0)) == {EVAL}
    assert set(sides(rows, share=0.5, seed=0)) == {TRAIN}


def test_sides_have_the_names_of_the_splits() -> None:
    assert (NAMES[TRAIN], NAMES[EVAL]) == ("train", "eval")
