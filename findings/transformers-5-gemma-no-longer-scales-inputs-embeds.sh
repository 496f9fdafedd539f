#!/usr/bin/env bash
# transformers 5.24.0 no longer multiplies `inputs_embeds` of Gemma by the square root of its width; 4.57.6 does.
#
# One expects: a Gemma of the same weights gives the same hidden states for the same inputs_embeds in both releases. Seen:
# in 4.57.6 GemmaModel scales whatever it gets, ids and inputs_embeds alike. In 5.24.0 its embedding module scales, so
# inputs_embeds are taken as they are. For text alone both agree, since embeddings of get_input_embeddings() are scaled
# once either way. A vision-language model that puts image features between them (LlavaForConditionalGeneration with a
# Gemma decoder) computes something else: its image features are larger by sqrt(hidden_size) in 4.57.6.
#
# Seen with transformers 4.57.6 and 5.24.0, torch 2.13.0+cpu, pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/show.py" <<'PYTHON'
import torch
from transformers import GemmaConfig, GemmaModel

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 16}
model = GemmaModel(GemmaConfig(vocab_size=16, num_key_value_heads=4, pad_token_id=0, **sizes)).eval()
seen = []
model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
features = torch.full((1, 3, 64), 0.5)
with torch.no_grad():
    model(inputs_embeds=features)
print(f"inputs_embeds reach the first layer multiplied by {float((seen[0] / features).mean()):.1f}")
PYTHON

for version in 4.57.6 5.24.0; do
    python3 -m venv "$folder/$version"
    python="$folder/$version/bin/python"
    "$python" -m pip install -qq --disable-pip-version-check torch==2.13.0 transformers==$version
    seen=$("$python" "$folder/show.py" 2> "$folder/log") || { cat "$folder/log"; exit 1; }
    echo "$version: $seen"
    case "$version: $seen" in
        "4.57.6: inputs_embeds reach the first layer multiplied by 8.0") ;;
        "5.24.0: inputs_embeds reach the first layer multiplied by 1.0") ;;
        *) echo "changed"; exit 1 ;;
    esac
done
