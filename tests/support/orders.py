"""What tests of the order share."""

from __future__ import annotations

from shards.sampling.order import Order

EPOCHS = 4


def whole_epochs(order: Order, count: int = EPOCHS) -> list[list[int]]:
    """The samples of the first epochs."""
    return [order.samples(epoch, 0, len(order)).tolist() for epoch in range(count)]
