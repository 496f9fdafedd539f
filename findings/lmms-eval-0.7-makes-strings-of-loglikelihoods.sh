#!/usr/bin/env bash
# lmms-eval 0.7.3 turns what a model's loglikelihood() returns into a string, so no multiple_choice task is scored.
#
# One expects: lmms.loglikelihood returns a list of (logprob, is_greedy), as its docstring and type say, and tasks with
# `output_type: multiple_choice` get these pairs. Seen: the evaluator passes every output of every kind of request through
# unwrap_generation_output, which knows texts, (text, counts) and lists of texts. A pair of a number and a bool is none of
# them, so it becomes "(-0.25, True)". The task then unpacks the characters of that text and fails with "too many values
# to unpack", after all the model's work, wrapped in a RetryError; the command still ends with exit code 0. seedbench_ppl,
# arc_easy and hellaswag are such tasks. A pair in GenerationResult(text=(loss, is_greedy)) passes unchanged.
#
# Seen with lmms-eval 0.7.3 (without its dependencies, which this part of it does not import), Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check --no-deps lmms-eval==0.7.3

found=$("$python" - <<'PYTHON'
from lmms_eval.api.instance import GenerationResult, unwrap_generation_output

pair, _ = unwrap_generation_output((-0.25, True))
wrapped, _ = unwrap_generation_output(GenerationResult(text=(-0.25, True)))
print(f"pair {pair!r}; in a GenerationResult {wrapped!r}")
PYTHON
)
echo "lmms-eval 0.7.3: $found"
expected="pair '(-0.25, True)'; in a GenerationResult (-0.25, True)"
[ "$found" = "$expected" ] || { echo "changed: expected $expected"; exit 1; }
