"""Run the torture and print a table. Ends with 1 if anything was lost."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.torture import damage, interruptions
from tools.torture.mutations import mutations
from tools.torture.outcomes import Outcomes
from tools.torture.small_build import SmallBuild


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.torture", description=__doc__)
    for name, count, what in (
        ("kills", 200, "SIGKILLs of builds"),
        ("disks", 50, "builds whose writes fail"),
        ("flips", 500, "flipped bits in builds"),
        ("cache-flips", 100, "flipped bits in caches of builds"),
        ("cache-mix-ups", 100, "files in caches of builds that are cut, removed or exchanged"),
        ("forgeries", 500, "manifests with a forged value and the right hash"),
        ("mutations", 10_000, "mutated annotation files, images and archives"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"{what} (default {count})")
    parser.add_argument(
        "--weights",
        type=Path,
        help="an export, a run or a checkpoint, for as many more flips and forgeries",
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        results = run(options, Path(name))
    print(f"seed {options.seed}\n{'kind':<28}{'tried':>8}{'survived':>10}{'lost':>6}")
    for each in results:
        print(f"{each.kind:<28}{each.tried:>8}{each.survived:>10}{len(each.losses):>6}")
    losses = [loss for each in results for loss in each.losses]
    for loss in losses[:50]:
        print(loss, file=sys.stderr)
    return 1 if losses else 0


def run(options: argparse.Namespace, folder: Path) -> list[Outcomes]:
    """Every kind of which at least one try is asked for. Each has its own random numbers."""
    small = SmallBuild(folder / "small")

    def rng(kind: str) -> random.Random:
        return random.Random(f"{options.seed} {kind}")

    results = [
        interruptions.kills(small, options.kills, rng("kills")),
        interruptions.full_disks(small, options.disks, rng("disks")),
        damage.flips(small, options.flips, rng("flips")),
        damage.cache_flips(small, options.cache_flips, rng("cache flips")),
        damage.cache_mix_ups(small, options.cache_mix_ups, rng("cache mix-ups")),
        damage.forgeries(small, options.forgeries, rng("forgeries")),
        *mutations(folder / "mutated", options.mutations, rng("mutations")),
    ]
    if options.weights is not None:
        import trainer.compat  # noqa: F401  # before transformers, which looks for torchvision
        from trainer.inference.open_model import open_model
        from trainer.verify import verify_folder

        weights = options.weights

        def load() -> None:
            open_model(weights)

        results += [
            damage.flips_in(weights, lambda: verify_folder(weights).problems, options.flips, rng("weights")),
            damage.forged_records(weights, load, options.forgeries, rng("records")),
        ]
    return [each for each in results if each.tried]


if __name__ == "__main__":
    sys.exit(main())
