#!/usr/bin/env bash
# transformers 5.24: Bamba behind a cache counts positions from 0 again, unless the caller passes position_ids.
#
# One expects: model(new_tokens, past_key_values=cache) goes on where the cache ends, as it does with Llama, Jamba and
# the other decoders, whose forward adds the length of the cache to the positions. Seen: no error and no warning. Bamba's
# forward numbers the new tokens 0, 1, 2, ..., so its attention layers rotate their queries and keys wrongly, and logits
# are off by a third of their size, one token at a time or several. With position_ids they are right. generate() passes
# them; a loop of one's own, as for speculative decoding or a chat that reads its prompt in pieces, must.
#
# Seen with transformers 5.24.0, torch 2.13.0 (the CPU build is enough), Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check torch==2.13.0 transformers==5.24.0 'numpy<3'

cat > "$folder/positions.py" <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sizes = dict(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3,
)
state_space = dict(attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=16, mamba_n_groups=1)


@torch.no_grad()
def verdicts(kind, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more)).eval()
    ids = torch.randint(3, 64, (1, 24))
    whole = model(ids, use_cache=False).logits[:, 12:]
    for positions in ({}, {"position_ids": torch.arange(12, 24)[None]}):
        cache = model(ids[:, :12], use_cache=True).past_key_values
        behind = model(ids[:, 12:], past_key_values=cache, use_cache=True, **positions).logits
        difference = float((behind - whole).norm() / whole.norm())
        yield "right" if difference < 1e-4 else "wrong" if difference > 0.05 else f"{difference:.0e}"


for kind, more in (("llama", {}), ("bamba", state_space)):
    print(kind, "alone {}, with position_ids {}".format(*verdicts(kind, **more)))
PYTHON
found=$("$python" "$folder/positions.py" 2> "$folder/log" | paste -sd';' -) || { cat "$folder/log"; exit 1; }
echo "transformers 5.24.0: $found"
expected='llama alone right, with position_ids right;bamba alone wrong, with position_ids right'
[ "$found" = "$expected" ] || { echo "changed: expected '$expected'"; exit 1; }
