"""What tests of the order share."""

from __future__ import annotations

from hypothesis import strategies as st

from shards.sampling.dataset_draws import Draws
from shards.sampling.order import Order

EPOCHS = 4
WINDOWS = st.none() | st.sampled_from([1, 2, 5, 16, 1000])


def whole_epochs(order: Order, count: int = EPOCHS) -> list[list[int]]:
    """The samples of the first epochs."""
    return [order.samples(epoch, 0, len(order)).tolist() for epoch in range(count)]


@st.composite
def blends(draw: st.DrawFn) -> list[Draws]:
    """One to four datasets; draws below, at and above the size; some without draws, some without samples."""
    sources = []
    for number in range(draw(st.integers(1, 4))):
        blocks = tuple(draw(st.lists(st.integers(1, 12), max_size=5)))
        size = sum(blocks)
        draws = draw(st.integers(0, 3 * size) | st.sampled_from([0, size, size // 2, 5 * size // 2, 2 * size]))
        sources.append(Draws(f"d{number}", blocks, draws))
    if not any(source.count for source in sources):
        sources.append(Draws("last", (3, 1), 5))
    return sources
