"""Builds of the same questions as separate and as shared samples: how fast they are compiled, and their size."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from tools.bench.compile import run_build
from tools.bench.sharing.questions import SHARES, write_blend
from tools.bench.training.goals import Goal

STORES = ("original", "resized")
FASTER = 2.0
SMALLER = 0.3


def bench_builds(data: Path, records: int, repeats: int) -> list[Goal]:
    """Compile `data` with both stores, in turn as separate and as shared samples."""
    print("\n| images | separate, records/s | shared, records/s | ratio | separate, MB | shared, MB | ratio |")
    print("|---|---|---|---|---|---|---|")
    goals = []
    for store in STORES:
        rates: dict[int, list[float]] = {share: [] for share in SHARES}
        sizes = {}
        for _ in range(repeats):
            for share in SHARES:
                rates[share].append(records / build_seconds(data, store, share, records))
                sizes[share] = folder_size(build_folder(data, store, share))
                shutil.rmtree(build_folder(data, store, share))
        separate, shared = (statistics.median(rates[share]) for share in SHARES)
        faster = statistics.median(two / one for one, two in zip(*rates.values(), strict=True))
        smaller = sizes[SHARES[1]] / sizes[SHARES[0]]
        megabytes = (f"{sizes[share] / 1e6:,.0f}" for share in SHARES)
        cells = (store, f"{separate:,.0f}", f"{shared:,.0f}", f"{faster:.2f}x", *megabytes, f"{smaller:.2f}x")
        print(f"| {' | '.join(cells)} |", flush=True)
        goals.append(Goal(what=f"compile, records/s, `{store}`", got=faster, expected=FASTER, at_least=True))
        goals.append(Goal(what=f"size of the build, `{store}`", got=smaller, expected=SMALLER))
    return goals


def build_folder(data: Path, store: str, share: int) -> Path:
    return data / f"{store}-{share}"


def build_seconds(data: Path, store: str, share: int, records: int) -> float:
    """Seconds of the whole command for a first build with one worker."""
    seconds, _, report = run_build(data, write_blend(data, store, share), build_folder(data, store, share), workers=1)
    counts = report["datasets"]["bench"]
    assert counts["members"] == records, counts
    return seconds


def folder_size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
