#!/usr/bin/env bash
# With a hostfile that names one host, `deepspeed` trains on this machine, whatever host that is.
#
# One expects: the ranks run on the hosts that the hostfile names. Seen: with two hosts they do; with one (also by
# --num_nodes 1, --include or --exclude) the runner asks that host for its name by ssh and then starts the ranks
# here. On a login node, or a head node with other GPUs, that is the
# wrong machine. --force_multi starts a single host through pdsh too.
#
# Seen with deepspeed 0.19.8, torch 2.13.0 (the CPU build is enough), pip 23.2.1, Python 3.11. A program in the place of
# ssh stands for a host that answers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
pip=("$python" -m pip install -qq --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 'numpy<3' 'setuptools<81' wheel
"${pip[@]}" --no-build-isolation deepspeed==0.19.8

mkdir "$folder/bin"
# The other host: it answers, and all that is started there has a mark in its environment.
cat > "$folder/bin/ssh" <<'SH'
#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
shift
ON_THE_OTHER_HOST=1 exec bash -c "$*"
SH
cat > "$folder/bin/pdsh" <<'SH'
#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -w || $1 == -f ]] && shift; shift; done
command="$*"
ON_THE_OTHER_HOST=1 exec bash -c "${command//%n/0}"
SH
chmod +x "$folder/bin/"*
echo 'other-host slots=1' > "$folder/hosts"
cat > "$folder/rank.py" <<'PYTHON'
import os

print("trains", "there" if os.environ.get("ON_THE_OTHER_HOST") else "here")
PYTHON

cd "$folder"
run() { # the place where the rank ran
    PATH="$folder/bin:$PATH" DS_ACCELERATOR=cpu "$python" -m deepspeed.launcher.runner --hostfile hosts "$@" \
        --no_local_rank rank.py 2> log | grep -o 'trains .*' || { cat log; exit 1; }
}
alone=$(run)
forced=$(run --force_multi)
echo "deepspeed 0.19.8: a hostfile of one other host $alone; with --force_multi it $forced"
[ "$alone, $forced" = "trains here, trains there" ] || { echo "changed: expected 'trains here', 'trains there'"; exit 1; }
