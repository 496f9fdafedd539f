"""Tokenizers of every kind that the template engine must handle, made from the repository's example text in a second.

folder = make("metaspace", tmp_path)    # a folder that dst.load_tokenizer and AutoTokenizer open
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from tests.support.paths import ROOT

BYTE_FOLDER = ROOT / "examples" / "tokenizer"
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def make(kind: str, folder: Path) -> Path:
    """Write the tokenizer of a kind below `folder`, once."""
    target = folder / kind
    if not target.exists():
        KINDS[kind](target)
    return target


def write(tokenizer: tokenizers.Tokenizer, folder: Path, *, bos: str | None = "<s>", eos: str | None = "</s>") -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": eos}))
    return folder


def make_merging(texts: list[str], folder: Path) -> Path:
    """A byte-level BPE tokenizer that merges each of the texts into one token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return write(tokenizer, folder)


def example_text() -> list[str]:
    """Every string of the small example annotations (the large ones are base64 images)."""
    files = sorted((ROOT / "examples" / "data").rglob("*.json"))
    return [text for path in files if path.stat().st_size < 12_000 for text in _strings(json.loads(path.read_text()))]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _strings(child)


def _byte(folder: Path) -> None:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen; without a BOS token, as Qwen."""
    write(tokenizers.Tokenizer.from_file(str(BYTE_FOLDER / "tokenizer.json")), folder, bos=None)


def _byte_space(folder: Path) -> None:
    """Byte-level BPE that puts a space in front, as RoBERTa's."""
    tokenizer = tokenizers.Tokenizer.from_file(str(BYTE_FOLDER / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    write(tokenizer, folder)


def _sentencepiece_bpe() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False)
    # Trained word by word, because a whole text taken as one word would teach it whole sentences.
    tokenizer.train_from_iterator([word for text in example_text() for word in text.split()], trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = []  # the byte tokens are ordinary ones
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", *SPECIAL)])
    return tokenizer


def _metaspace(folder: Path) -> None:
    """As Llama 2 and Vicuna converted with legacy=False: a space in front of the whole text only."""
    write(_sentencepiece_bpe(), folder)


def _legacy(folder: Path) -> None:
    """As Llama 2 and Vicuna were first converted: a space in front of the text and after every control token."""
    tokenizer = _sentencepiece_bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    definition = {**json.loads(tokenizer.to_str()), "pre_tokenizer": None}
    write(tokenizers.Tokenizer.from_str(json.dumps(definition)), folder)


def _unigram(folder: Path) -> None:
    """As T5's and XLM-R's model, with byte fallback."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.UnigramTrainer(vocab_size=1000, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(example_text(), trainer)
    definition = json.loads(tokenizer.to_str())
    definition["model"]["vocab"] += [[byte, -20.0] for byte in BYTES]
    definition["model"]["byte_fallback"] = True
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    write(tokenizer, folder)


KINDS: dict[str, Callable[[Path], None]] = {
    "byte": _byte,
    "byte_space": _byte_space,
    "legacy": _legacy,
    "metaspace": _metaspace,
    "unigram": _unigram,
}
