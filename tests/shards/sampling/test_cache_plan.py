"""How order, packed window and cache are planned together, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shards.sampling.cache_plan import CachePlan, StoredDataset, plan_cache, plan_for

MB = 1_000_000


def dataset(name: str, shards: int, *, shard_size: int = 10 * MB, passes: float = 1) -> StoredDataset:
    """A thousand samples a shard."""
    samples = 1000
    return StoredDataset(
        name=name,
        shard_sizes=(shard_size,) * shards,
        requests=3 * shards,
        samples=shards * samples,
        draws=int(passes * shards * samples),
    )


def plan(datasets: list[StoredDataset], limit: int) -> CachePlan:
    return plan_cache(datasets, limit=limit, pack_window=2048)


def test_a_tenth_of_a_build_opens_three_quarters_of_what_it_holds() -> None:
    actual = plan([dataset("a", 100)], 100 * MB)
    assert actual.open_shards == {"a": 6}, "and one more, which is next"
    assert actual.samples_open == 6000
    assert actual.pack_window == 1024
    assert actual.draws_ahead == 3000 - 2 * 1024, "next to two packed windows"
    assert (actual.epoch_size, actual.epoch_requests) == (1000 * MB, 300)


def test_datasets_have_the_same_share_of_their_shards_open() -> None:
    opened = plan([dataset("large", 1000), dataset("small", 100)], 1100 * MB).open_shards
    assert opened == {"large": 73, "small": 7}


def test_what_is_drawn_often_is_kept_whole() -> None:
    actual = plan([dataset("large", 100), dataset("often", 3, passes=20)], 150 * MB)
    assert actual.open_shards["often"] == 3
    assert actual.epoch_size == (1000 + 30) * MB, "it is downloaded once, and not twenty times"


def test_what_is_drawn_often_and_takes_too_much_is_downloaded_as_often() -> None:
    actual = plan([dataset("large", 100), dataset("often", 50, passes=2)], 150 * MB)
    assert actual.open_shards["often"] < 50
    assert actual.epoch_size == (1000 + 2 * 500) * MB
    assert "(1.33 times the split)" in actual.describe()


def test_a_dataset_without_draws_takes_nothing() -> None:
    actual = plan([dataset("a", 100), dataset("never", 100, passes=0)], 100 * MB)
    assert actual.open_shards == {"a": 6}
    assert actual.split_size == 2000 * MB


def test_a_cache_of_less_than_two_shards_of_each_dataset_holds_none() -> None:
    datasets = [dataset("a", 100), dataset("b", 100)]
    assert not plan(datasets, 41 * MB).by_sample
    actual = plan(datasets, 39 * MB)
    assert actual.by_sample
    assert actual.epoch_requests == 200_200, "two hundred are for indexes"
    assert actual.describe() == (
        "2.0 GB, and 39.0 MB of cache: each sample is requested by itself, and packed 8 at a time; an epoch downloads "
        "at most 2.0 GB (1.00 times the split) by about 200,200 requests"
    )


def test_the_whole_window_that_is_packed_needs_room() -> None:
    assert plan([dataset("a", 100), dataset("b", 100)], 40 * MB).by_sample, "and none is left for the next 16 samples"


def test_a_pass_that_is_not_whole_needs_the_shards_at_both_its_ends() -> None:
    assert plan([dataset("a", 100, passes=0.55)], 100 * MB).epoch_size == (550 + 2 * 10) * MB
    assert plan([dataset("a", 100, passes=2)], 100 * MB).epoch_size == 2000 * MB


def test_samples_of_shards_that_are_not_open_count_or_all_are_requested_by_themselves() -> None:
    opened = plan([dataset("a", 100)], 100 * MB)
    actual = opened.with_strays(0.1)
    assert (actual.epoch_size, actual.epoch_requests) == (1100 * MB, 300 + 10_010)
    assert "(1.10 times the split)" in actual.describe()
    actual = opened.with_strays(0.2)
    assert actual.by_sample
    assert (actual.epoch_size, actual.epoch_requests) == (1000 * MB, 100_100)


def test_what_is_ahead_and_behind_is_open_too_where_there_is_room() -> None:
    branched = replace(dataset("a", 100), spread=3)
    assert plan([branched], 100 * MB).open_shards == {"a": 3}, "3 less than without"
    assert plan([branched], 100 * MB).has_spread
    assert plan([branched], 45 * MB).open_shards == {"a": 2}
    assert not plan([branched], 45 * MB).has_spread


def test_an_order_that_jumps_reads_sample_by_sample() -> None:
    assert plan_for([dataset("a", 100)], None, limit=900 * MB, pack_window=2048).by_sample


def test_a_plan_of_a_larger_cache_is_kept_where_it_still_fits() -> None:
    datasets = [dataset("a", 100)]
    opened = plan(datasets, 200 * MB).open_shards
    assert not plan_for(datasets, opened, limit=170 * MB, pack_window=512).by_sample
    assert plan_for(datasets, opened, limit=100 * MB, pack_window=512).by_sample


def test_stored_order_opens_one_shard_at_a_time() -> None:
    actual = plan_cache([dataset("a", 100)], limit=100 * MB, pack_window=2048, shuffles=False)
    assert actual.open_shards == {"a": 1}
    assert actual.pack_window == 2048


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 20), st.sampled_from([0.01, 0.5, 1, 2.5, 9])), min_size=1),
    st.integers(1, 3000),
)
def test_open_shards_and_the_next_fit_the_cache(shapes: list[tuple[int, int, float]], limit: int) -> None:
    datasets = [
        dataset(f"d{number}", shards, shard_size=size * MB, passes=passes)
        for number, (shards, size, passes) in enumerate(shapes)
    ]
    actual = plan(datasets, limit * MB)
    needed = sum(each.open_size(actual.open_shards[each.name] + 1) for each in datasets)
    ahead = 2 * actual.pack_window + actual.draws_ahead
    moving = [each for each in datasets if actual.open_shards[each.name] < len(each.shard_sizes)]
    draws = sum(each.draws for each in datasets)
    more = sum(ahead * each.draws / draws * each.size / each.samples for each in moving)
    assert actual.by_sample or needed + more <= limit * MB
    assert not actual.by_sample or sum(each.open_size(3) for each in datasets) > limit * MB, (
        "16 samples are in two more"
    )
    assert all(1 <= actual.open_shards[each.name] <= len(each.shard_sizes) for each in datasets)
    assert 8 <= actual.pack_window <= 2048
