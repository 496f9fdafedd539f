#!/usr/bin/env bash
# peft 0.21.2 puts LoRA on the out_proj of torch's nn.MultiheadAttention, where it is never called and never trained.
#
# One expects: target_modules="all-linear" gives a trained adapter to each nn.Linear, or raises where it cannot. Seen:
# out_proj is a subclass of nn.Linear and gets one, which counts among the trainable parameters. But the attention reads
# out_proj.weight and does not call the module, so the adapter changes no output and its gradients stay None. No
# warning appears. If such an adapter has weights all the same, for instance from a random start, merging adds them: the
# merged model has other outputs than the one that was trained and evaluated. The ViTs of open_clip are built from
# nn.MultiheadAttention, so "LoRA on the vision tower" silently leaves all of its attention out. Targeting the attention
# module itself ("attn") works: peft has a layer of its own for it.
#
# Seen with peft 0.21.2, transformers 5.24.0, torch 2.13.0 (the CPU build is enough), pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check torch==2.13.0 peft==0.21.2 transformers==5.24.0 'numpy<3'

"$python" - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.mlp(x + self.attn(x, x, x, need_weights=False)[0])


def check(targets):
    """Whether an adapter of out_proj exists, has gradients, and changes the output; and what merging changes."""
    torch.manual_seed(0)
    config = LoraConfig(target_modules=targets, r=2, lora_alpha=4, init_lora_weights=False)
    model = get_peft_model(Block(), config)
    x = torch.randn(1, 3, 8)
    output = model(x)
    output.sum().backward()
    adapter = [p for name, p in model.named_parameters() if "out_proj.lora" in name and p.requires_grad]
    gradients = sum(p.grad is not None and bool(p.grad.any()) for p in adapter)
    with torch.no_grad():
        for p in adapter:
            p.mul_(2)
        changed = not torch.allclose(model(x), output, atol=1e-5)
        output = model(x)
        difference = (model.merge_and_unload()(x) - output).abs().max().item()
    print(f"{targets}: {len(adapter)} trainable weights at out_proj, {gradients} with a gradient;", end=" ")
    print(f"doubling them changes the output: {changed}; merging changes it by {difference:.2g}")
    return len(adapter), gradients, changed, difference > 1e-4


found = [check(targets) for targets in ("all-linear", ["out_proj", "mlp"], ["attn", "mlp"])]
if found != [(2, 0, False, True), (2, 0, False, True), (2, 2, True, False)]:
    sys.exit("changed: expected no gradients and a change by merging in the first two, and neither in the third")
PYTHON
