#!/usr/bin/env bash
# transformers' InternVLConfig makes an InternVLVisionConfig of every vision_config, without a word about its model_type.
#
# One expects: the model builds its tower with AutoModel.from_config(config.vision_config), and LlavaConfig, next to it,
# takes the class that model_type names. So a vision_config with model_type clip_vision_model gives a CLIP tower, or an
# error. Seen: 4.57.6 and 5.24.0 build an InternVLVisionModel with the sizes of the CLIP, and the saved config has no
# trace of the model_type that was asked for. Only a configuration object, which no config.json holds, is kept.
#
# Seen with transformers 4.57.6 and 5.24.0, torch 2.13.0+cpu, pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/show.py" <<'PYTHON'
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlavaConfig, LlavaForConditionalGeneration

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
vision = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, **sizes}
text = {"model_type": "qwen2", "vocab_size": 16, "num_key_value_heads": 4, **sizes}
for config, model in (
    (LlavaConfig, LlavaForConditionalGeneration),
    (InternVLConfig, InternVLForConditionalGeneration),
):
    made = model(config(vision_config=dict(vision), text_config=dict(text)))
    print(type(made.model.vision_tower).__name__, end=" ")
PYTHON

for version in 4.57.6 5.24.0; do
    python3 -m venv "$folder/$version"
    python="$folder/$version/bin/python"
    "$python" -m pip install -qq --disable-pip-version-check torch==2.13.0 transformers==$version
    seen=$("$python" "$folder/show.py" 2> "$folder/log") || { cat "$folder/log"; exit 1; }
    echo "$version: towers of a LLaVA and an InternVL with a CLIP as vision_config: $seen"
    [ "$seen" = "CLIPVisionModel InternVLVisionModel " ] || { echo "changed"; exit 1; }
done
