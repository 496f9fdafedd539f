#!/usr/bin/env bash
# transformers 5.24.0 ignores `add_bos_token: false` of a tokenizer folder if tokenizer.json has a post-processor.
#
# One expects: a folder whose tokenizer_config.json says add_bos_token: false adds no begin token, so that a chat
# template which writes `<s>` itself is tokenized as it stands. Seen: the tokenizers of Llama, Mistral and Gemma add the
# begin token in the post-processor of tokenizer.json (TemplateProcessing), and that one runs whatever the setting says:
# tokenizer(tokenizer.apply_chat_template(...)), which processors of vision models do, gives <s> twice. Only without the
# post-processor in the file, or with add_special_tokens=False in every call, are the ids those of the rendered text.
#
# Seen with transformers 5.24.0, tokenizers 0.23.3, pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3

cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

folder = Path(sys.argv[1])


def write(post_processor):
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "hello": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    if post_processor:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)("<s> hello")["input_ids"]


print(f"with a post-processor: {write(True)}; without: {write(False)}")
PYTHON

mkdir "$folder/tokenizer"
found=$("$python" "$folder/show.py" "$folder/tokenizer" 2> "$folder/log") || { cat "$folder/log"; exit 1; }
echo "$found"
[ "$found" = 'with a post-processor: [0, 0, 1]; without: [0, 1]' ] || { echo "changed"; exit 1; }
