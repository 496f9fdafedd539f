"""Train a small byte-level BPE tokenizer from text files and write a folder that `dst.load_tokenizer` opens.

Rule: the same files give the same folder, byte for byte. From a .json file every string value is read.

    python tools/make_tokenizer.py examples/tokenizer $(find examples/data -name "*.json" -size -12k)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

BOS, EOS = "<s>", "</s>"
# What the chatml and llama3 templates write.
TEMPLATE_TOKENS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def strings(value: Any) -> Iterator[str]:
    """Every string value below a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from strings(child)


def read_texts(paths: Iterable[Path]) -> list[str]:
    """Raises OSError or ValueError for a file that cannot be read."""
    texts: list[str] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        texts += strings(json.loads(text)) if path.suffix == ".json" else [text]
    return texts


def train(texts: Iterable[str], vocabulary_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[BOS, EOS, *TEMPLATE_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": BOS, "eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a small byte-level BPE tokenizer from text files.")
    parser.add_argument("folder", type=Path, help="where to write tokenizer.json and tokenizer_config.json")
    parser.add_argument("files", type=Path, nargs="+", help="text to learn from; of .json files, every string in them")
    parser.add_argument("--vocabulary-size", type=int, default=2000, help="how many tokens to learn (default 2000)")
    arguments = parser.parse_args()
    try:
        texts = read_texts(arguments.files)
    except (OSError, ValueError) as error:
        print(f"make_tokenizer: cannot read the text: {error}", file=sys.stderr)
        return 2
    tokenizer = train(texts, arguments.vocabulary_size)
    write(tokenizer, arguments.folder)
    print(f"{arguments.folder}: {tokenizer.get_vocab_size()} tokens from {sum(map(len, texts))} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
