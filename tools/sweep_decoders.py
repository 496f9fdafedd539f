"""Compare training with every causal language model of the installed transformers with an oracle.

    python -m tools.sweep_decoders [--only llama ...]

Each architecture is built at tiny sizes and trained for three steps: with causal attention on packed sequences and on
one sample each, and with MMCA. Losses and all gradients are compared with tools.decoders.oracle. Prints a
Markdown table; the exit code is 1 if a result is wrong or ends in a traceback. Takes about five minutes on one core.
"""

from __future__ import annotations

import argparse
import resource
import sys
import warnings
from collections import Counter

import torch
from transformers.utils import logging

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from tools.decoders.compare import Attention, Outcome, compare
from tools.decoders.tiny import architectures, tiny_config

RUNS: dict[str, tuple[Attention, bool]] = {
    "causal, packed": ("causal", True),
    "causal, `packed: false`": ("causal", False),
    "mmca": ("mmca", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="MODEL_TYPE", help="architectures; default: all")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    counts: dict[str, Counter[str]] = {title: Counter() for title in RUNS}
    print(f"| architecture | {' | '.join(RUNS)} |\n|---|{'---|' * len(RUNS)}", flush=True)
    for model_type in arguments.only or architectures():
        outcomes: dict[str, Outcome] = {}
        for title, (attention, packed) in RUNS.items():
            outcomes[title] = compare(tiny_config(model_type), attention, packed=packed)
            counts[title][outcomes[title].verdict] += 1
        cells = " | ".join(f"{outcome.verdict}: {outcome.text}" for outcome in outcomes.values())
        print(f"| {model_type} | {cells} |", flush=True)
    for title, count in counts.items():
        print(f"{title}: {', '.join(f'{number} {verdict}' for verdict, number in sorted(count.items()))}")
    sys.exit(any(count["WRONG"] + count["TRACEBACK"] for count in counts.values()))


if __name__ == "__main__":
    main()
