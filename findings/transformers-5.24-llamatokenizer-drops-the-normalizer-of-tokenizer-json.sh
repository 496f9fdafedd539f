#!/usr/bin/env bash
# transformers 5.24.0's LlamaTokenizer builds a Metaspace pre-tokenizer in the place of the normalizer in tokenizer.json.
#
# One expects: AutoTokenizer gives the ids of the folder's tokenizer.json. Seen: tokenizer.json of Llama 2, Vicuna and
# LLaVA-1.5 has no pre-tokenizer and a normalizer (Prepend, Replace), which puts `▁` in front of the text behind each
# special token, also if that begins with a space. With tokenizer_class LlamaTokenizer or LlamaTokenizerFast,
# transformers 5.24 reads only vocabulary and merges, and its Metaspace puts no second `▁` there: "</s> USER:", as in
# every later round of LLaVA-1.5, has one token less than with transformers 4.57.6, or with tokenizers alone.
# `PreTrainedTokenizerFast.from_pretrained(folder)` follows the file.
#
# Seen with transformers 5.24.0 and 4.57.6, tokenizers 0.23.3 and 0.22.2, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "▁", "U", "a"])}
tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
tokenizer.decoder = decoders.Replace("▁", " ")
tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
tokenizer.save(str(folder / "tokenizer.json"))
special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
(folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": False, **special})
)
theirs = AutoTokenizer.from_pretrained(folder)("a</s> U", add_special_tokens=False)["input_ids"]
print(f"tokenizer.json: {tokenizer.encode('a</s> U').ids}; AutoTokenizer: {theirs}")
PYTHON

seen() {
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/python" -m pip install -qq --disable-pip-version-check "transformers==$1" "tokenizers==$2"
  mkdir "$folder/tokenizer-$1"
  "$folder/$1/bin/python" "$folder/show.py" "$folder/tokenizer-$1" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
}
new=$(seen 5.24.0 0.23.3)
old=$(seen 4.57.6 0.22.2)
echo "5.24.0: $new"
echo "4.57.6: $old"
[ "$new" = 'tokenizer.json: [3, 5, 2, 3, 3, 4]; AutoTokenizer: [3, 5, 2, 3, 4]' ] || { echo "changed"; exit 1; }
[ "$old" = 'tokenizer.json: [3, 5, 2, 3, 3, 4]; AutoTokenizer: [3, 5, 2, 3, 3, 4]' ] || { echo "changed"; exit 1; }
