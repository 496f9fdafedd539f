#!/usr/bin/env bash
# transformers 5.24: the layers of StableLM and Nemotron drop the extra arguments of forward; attention never sees them.
#
# One expects: an argument that model.forward does not know reaches the attention function (AttentionInterface), as with
# Llama and the other decoders. Packing without padding needs it: cu_seq_lens_q, or a layout of samples of one's own.
# Seen: no error and no warning. The layers of these two take **kwargs and call their attention without them, so a
# function that is registered under a name runs as if nothing had been passed, and packed samples may see each other.
# A run should check once, with a call on a tiny input, that its argument arrives.
#
# Seen with transformers 5.24.0, torch 2.13.0 (the CPU build is enough), pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check torch==2.13.0 transformers==5.24.0 'numpy<3'

cat > "$folder/arguments.py" <<'PYTHON'
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

seen = []


def looking(module, query, key, value, mask, **arguments):
    seen.append("sample_ids" in arguments)
    arguments.pop("sample_ids", None)
    return sdpa_attention_forward(module, query, key, value, mask, **arguments)


AttentionInterface.register("looking", looking)
sizes = dict(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
for name in ("llama", "gpt_neox", "stablelm", "nemotron"):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes), attn_implementation="looking").eval()
    seen.clear()
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]), sample_ids=torch.tensor([[0, 0, 1]]), use_cache=False)
    print(name, "passed" if seen and all(seen) else "dropped" if seen and not any(seen) else "other")
PYTHON
found=$("$python" "$folder/arguments.py" 2> "$folder/log" | paste -sd, -) || { cat "$folder/log"; exit 1; }
echo "transformers 5.24.0: $found"
expected='llama passed,gpt_neox passed,stablelm dropped,nemotron dropped'
[ "$found" = "$expected" ] || { echo "changed: expected '$expected'"; exit 1; }
