#!/usr/bin/env bash
# deepspeed.initialize 0.19.8 imports torch's compiler on every rank, with torch.optim.AdamW and nothing to compile.
#
# One expects: torch's compiler (torch._inductor) is loaded by a program that compiles something. Seen: initialize asks
# whether the optimizer is one that ZeRO knows. For that it imports its own Muon, whose functions are decorated with
# torch.compile, and the decorator imports Inductor: more than a thousand modules, before the first step. 0.18.9 does it
# in `import deepspeed` already. Each rank pays seconds of its start and tens of MB of memory; short runs and test
# suites that start ranks notice it most. Replacing `deepspeed.runtime.compiler.compile` while
# deepspeed.runtime.zero.muon.muon_optimizer is imported for the first time avoids it.
#
# Seen with deepspeed 0.18.9 and 0.19.8, torch 2.13.0 (the CPU build is enough), pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
pip=("$python" -m pip install -qq --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 'numpy<3' 'setuptools<81' wheel

cat > "$folder/rank.py" <<'PYTHON'
import sys

import torch


def state():
    return "loaded" if "torch._inductor.compile_fx" in sys.modules else "not loaded"


seen = [state()]
import deepspeed

seen.append(state())
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled with a C++ compiler
deepspeed.init_distributed("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1, auto_mpi_discovery=False)
model = torch.nn.Linear(4, 4)
before = len(sys.modules)
config = {"train_batch_size": 1, "zero_optimization": {"stage": 1}}
deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
print("import torch: {}; import deepspeed: {}; initialize: {}".format(*seen, state()))
print(f"modules that initialize imported: {len(sys.modules) - before}", file=sys.stderr)
PYTHON

check() { # VERSION EXPECTED: where Inductor is loaded
    "${pip[@]}" --no-build-isolation "deepspeed==$1"
    found=$(cd "$folder" && DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 "$python" rank.py 2> "$folder/log" | tail -n 1) || {
        cat "$folder/log"; exit 1; }
    echo "deepspeed $1: $found"
    tail -n 1 "$folder/log"
    [ "$found" = "$2" ] || { echo "changed: expected '$2'"; exit 1; }
}

check 0.18.9 'import torch: not loaded; import deepspeed: loaded; initialize: loaded'
check 0.19.8 'import torch: not loaded; import deepspeed: not loaded; initialize: loaded'
