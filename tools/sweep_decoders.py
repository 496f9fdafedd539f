"""Compare training with every causal language model of the installed transformers with an oracle.

    python -m tools.sweep_decoders [--only llama ...] [--docs]

Each architecture is built at tiny sizes and trained for three steps in four ways: causal attention with packed
sequences, with one sample in each, MMCA, and causal attention with branches. Losses and all gradients are compared
with tools.decoders.oracle. Prints a Markdown table and the reasons of refusals; the exit code is 1 if a result is wrong
or ends in a traceback. --docs writes the table into docs/decoders.md. Takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import resource
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from tools.decoders.compare import RUNS, Outcome, compare
from tools.decoders.tiny import architectures, tiny_config
from trainer.compat.transformers import quiet

PAGE = Path(__file__).resolve().parent.parent / "docs" / "decoders.md"
BEGIN, END = "<!-- table of tools/sweep_decoders.py -->\n", "<!-- end of the table -->\n"
SHOWN = {"exact": "yes", "refused": "no", "WRONG": "WRONG", "TRACEBACK": "TRACEBACK"}
_MEMORY_BYTES = 12 << 30
"""A configuration that is not tiny is an error, and not the end of other programs"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="MODEL_TYPE", help="architectures; default: all")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/decoders.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    results: dict[str, dict[str, Outcome]] = {}
    for model_type in arguments.only or architectures():
        with quiet():
            results[model_type] = {title: compare(tiny_config(model_type), run) for title, run in RUNS.items()}
        verdicts = ", ".join(f"{title} {outcome.verdict}" for title, outcome in results[model_type].items())
        print(f"{model_type}: {verdicts}", file=sys.stderr, flush=True)
    print(table(results))
    for model_type, outcomes in results.items():
        for title, outcome in outcomes.items():
            print(f"- {model_type}, {title}: {outcome.verdict}: {outcome.text}")
    verdicts_of_all = [outcome.verdict for outcomes in results.values() for outcome in outcomes.values()]
    print(", ".join(f"{verdicts_of_all.count(verdict)} {verdict}" for verdict in sorted(set(verdicts_of_all))))
    if arguments.docs:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}{table(results)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.exit(any(verdict in ("WRONG", "TRACEBACK") for verdict in verdicts_of_all))


def table(results: Mapping[str, Mapping[str, Outcome]]) -> str:
    """The architectures that train in some way as a Markdown table, and a line of those that do not."""
    lines = [f"| architecture | {' | '.join(RUNS)} |", f"|---|{'---|' * len(RUNS)}"]
    refused = []
    for model_type, outcomes in results.items():
        verdicts = [outcomes[title].verdict for title in RUNS]
        if all(verdict == "refused" for verdict in verdicts):
            refused.append(model_type)
        else:
            lines.append(f"| {model_type} | {' | '.join(SHOWN[verdict] for verdict in verdicts)} |")
    return "\n".join([*lines, "", f"Refused: {', '.join(refused) or 'none'}."])


if __name__ == "__main__":
    main()
