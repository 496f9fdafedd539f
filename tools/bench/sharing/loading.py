"""The loader's packed batches of separate and of shared samples, each in a process of its own, in turn."""

from __future__ import annotations

import statistics
from pathlib import Path

from tools.bench.loader import Bench, Column
from tools.bench.sharing.builds import STORES, build_folder
from tools.bench.sharing.questions import SHARES
from tools.bench.training.goals import Goal

FASTER = 4.0
WORKERS = (0, 2)
SEQUENCES = 2
"""Of a batch"""


def bench_loading(data: Path, records: int, repeats: int) -> list[Goal]:
    """data: with the builds of all stores."""
    print("\n| images | workers | separate, records/s | shared, records/s | ratio |\n|---|---|---|---|---|")
    goals = []
    for store in STORES:
        for workers in WORKERS:
            rates: dict[int, list[float]] = {share: [] for share in SHARES}
            for _ in range(repeats):
                for share in SHARES:
                    rates[share].append(records_per_second(data, store, share, records, workers))
            separate, shared = (statistics.median(rates[share]) for share in SHARES)
            faster = statistics.median(two / one for one, two in zip(*rates.values(), strict=True))
            print(f"| {store} | {workers} | {separate:,.0f} | {shared:,.0f} | {faster:.2f}x |", flush=True)
            what = f"loader, records/s, `{store}`, {workers} workers"
            goals.append(Goal(what=what, got=faster, expected=FASTER, at_least=True))
    return goals


def records_per_second(data: Path, store: str, share: int, records: int, workers: int) -> float:
    column = Column(title="", runner="ours", task={"build": build_folder(data, store, share).name})
    bench = Bench(data, data, records)
    return bench.rate(column, "full", packed=True, batch_size=SEQUENCES, workers=workers)
