#!/usr/bin/env bash
# torch 2.13: flex_attention on a CPU refuses inputs that require gradients, under torch.no_grad() too.
#
# One expects: without torch.compile it is plain tensor arithmetic ("an unfused implementation that materializes the full
# scores matrix", its warning says), so a test can compare a mask and its gradients on a CPU; or at least its outputs,
# inside torch.no_grad(), where no operation records anything.
# Seen: NotImplementedError in both cases. It asks whether an input has requires_grad, not whether gradients are
# recorded. Outputs come from detached inputs; gradients of a mask cannot be tested on a CPU at all.
#
# Seen with torch 2.13.0 (the CPU build), pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check torch==2.13.0 'numpy<3'

cat > "$folder/flex.py" <<'PYTHON'
import contextlib
import warnings

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

warnings.simplefilter("ignore")
mask = create_block_mask(lambda batch, head, query, key: query >= key, None, None, 8, 8, device="cpu")


def tried(requires_grad, grad_mode):
    inputs = [torch.randn(1, 2, 8, 16, requires_grad=requires_grad) for _ in range(3)]
    try:
        with grad_mode:
            out = flex_attention(*inputs, block_mask=mask)
        reference = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
        return "right" if torch.allclose(out, reference, atol=1e-5) else "wrong"
    except NotImplementedError:
        return "refused"


print("with gradients", tried(True, contextlib.nullcontext()))
print("under no_grad", tried(True, torch.no_grad()))
print("detached", tried(False, contextlib.nullcontext()))
PYTHON
found=$("$python" "$folder/flex.py" 2> "$folder/log" | paste -sd, -) || { cat "$folder/log"; exit 1; }
echo "torch 2.13.0: $found"
expected='with gradients refused,under no_grad refused,detached right'
[ "$found" = "$expected" ] || { echo "changed: expected '$expected'"; exit 1; }
