"""In which draw of an epoch a sample is, compared with looking through all draws."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shards.sampling.dataset_draws import Draws
from shards.sampling.order import Order, StoredOrder
from tests.support.orders import WINDOWS, blends


@given(blends(), WINDOWS, st.integers(0, 2))
def test_the_draw_of_a_sample_is_the_first_one_that_draws_it(
    sources: list[Draws], window: int | None, epoch: int
) -> None:
    made = Order(sources, key=1, window=window)
    drawn = made.samples(epoch, 0, len(made)).tolist()
    for sample in range(sum(sum(source.shard_sizes) for source in sources)):
        assert made.draw_of(epoch, sample) == (drawn.index(sample) if sample in drawn else None)


def test_the_draw_of_a_sample_is_found_across_stripes_and_in_a_stored_order() -> None:
    made = Order([Draws("a", (3000,), 2500), Draws("b", (70_000,), 140_000), Draws("c", (10,), 1)], key=2)
    drawn = made.samples(1, 0, len(made)).tolist()
    for sample in (0, 2999, 3000, 60_000, 72_999, 73_005):
        assert made.draw_of(1, sample) == (drawn.index(sample) if sample in drawn else None)
    assert (StoredOrder(5).draw_of(0, 4), StoredOrder(5).draw_of(0, 5)) == (4, None)
