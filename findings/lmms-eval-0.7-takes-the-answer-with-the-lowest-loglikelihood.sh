#!/usr/bin/env bash
# lmms-eval 0.7.3 takes the answer with the lowest log-likelihood as the model's choice in multiple_choice tasks.
#
# One expects: a model class returns from loglikelihood() what its docstring asks for, "the log probability of
# continuation", and acc counts the tasks in which the right answer has the highest one, as in lm-evaluation-harness,
# where this code is from. Seen: ConfigurableTask.process_results takes np.argmin for acc and acc_norm, since the models
# in the repository return a mean loss under that name. A class written by the documentation is scored for its least
# likely answers, without a warning: a perfect model gets 0, and a poor one looks better than chance. acc_mutual_info
# is np.argmax of a difference, so it needs the other sign.
#
# Seen with lmms-eval 0.7.3, datasets 5.2.0, transformers 5.24.0, torch 2.13.0 (the CPU build is enough), Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 \
    datasets==5.2.0 evaluate==0.4.6 filelock==3.20.4 loguru==0.7.3 tenacity==9.2.1 pytz pillow jinja2
"$python" -m pip install -qq --disable-pip-version-check --no-deps lmms-eval==0.7.3 2> "$folder/log"

cat > "$folder/choice.py" <<'PYTHON'
from types import SimpleNamespace

from lmms_eval.api.task import ConfigurableTask

task = object.__new__(ConfigurableTask)
task.OUTPUT_TYPE = "multiple_choice"
task._config = SimpleNamespace(process_results=None)
task._metric_fn_list = {"acc": None, "acc_norm": None}
task.multiple_input = task.multiple_target = False
task.doc_to_choice = lambda doc: ["yes", "no!"]
task.doc_to_target = lambda doc: 0  # yes
likelihoods = task.process_results({}, [(-0.25, True), (-9.5, False)])  # yes is by far the likelier answer
losses = task.process_results({}, [(0.25, True), (9.5, False)])
print(f"of log-likelihoods {likelihoods}; of losses {losses}")
PYTHON
found=$(cd "$folder" && "$python" choice.py 2>> "$folder/log") || { cat "$folder/log"; exit 1; }
echo "lmms-eval 0.7.3, of a model that is right: $found"
expected="of log-likelihoods {'acc': 0.0, 'acc_norm': 0.0}; of losses {'acc': 1.0, 'acc_norm': 1.0}"
[ "$found" = "$expected" ] || { echo "changed: expected $expected"; exit 1; }
