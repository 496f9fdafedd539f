#!/usr/bin/env bash
# The command `deepspeed` exits with 0 if the process that watches its ranks was killed, while the ranks go on.
#
# One expects: a start command whose part is killed, by the system when memory runs out or by a scheduler, exits with an
# error. Seen: deepspeed.launcher.runner starts deepspeed.launcher.launch, which starts the ranks; the runner passes the
# exit code on only if it is above 0, and the code of a process that a signal ended is below. So scripts that go on
# after `deepspeed train.py && ...`, and schedulers, take a run for done that still trains, or was cut off; the ranks
# have no parent that would end them together. Something that the ranks write when they end shows the difference.
#
# Seen with deepspeed 0.18.9 and 0.19.8, torch 2.13.0 (the CPU build is enough), pip 23.2.1, Python 3.11, Linux.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
pip=("$python" -m pip install -qq --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 'numpy<3' 'setuptools<81' wheel

cat > "$folder/rank.py" <<'PYTHON'
import os
import pathlib
import time

pathlib.Path(f"started-{os.environ['RANK']}").write_text(str(os.getpid()))
while not pathlib.Path("end").exists():
    time.sleep(0.1)
pathlib.Path(f"ended-{os.environ['RANK']}").touch()
PYTHON

check() { # VERSION
    "${pip[@]}" --no-build-isolation "deepspeed==$1"
    cd "$folder"
    rm -f started-* ended-* end
    DS_ACCELERATOR=cpu "$python" -m deepspeed.launcher.runner --num_gpus 2 rank.py > log 2>&1 &
    runner=$!
    until [ -f started-0 ] && [ -f started-1 ]; do
        kill -0 "$runner" 2>/dev/null || { cat log; exit 1; }
        sleep 0.1
    done
    kill -KILL "$(ps -o ppid= -p "$(cat started-0)" | tr -d ' ')"
    code=0
    wait "$runner" || code=$?
    rank=$(kill -0 "$(cat started-0)" 2>/dev/null && echo runs || echo ended)
    touch end
    until [ -f ended-0 ] && [ -f ended-1 ]; do sleep 0.1; done
    echo "deepspeed $1: the command exited with $code, its rank 0 $rank"
    [ "$code $rank" = "0 runs" ] || { echo "changed: expected an exit with 0 while rank 0 runs"; exit 1; }
}

check 0.18.9
check 0.19.8
