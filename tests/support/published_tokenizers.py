"""Tokenizer folders in the forms in which models are published, with small vocabularies of the example text.

folder = publish("llama3", tmp_path)    # tokenizer.json, tokenizer_config.json, special_tokens_map.json

Each puts its begin token in front of every text by its post-processor, but for `qwen`, which has none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support import text_tokenizers
from tests.support.text_tokenizers import BYTES

_WORDS = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")


@dataclass(frozen=True, slots=True)
class Form:
    """tokenizer_class: names that configurations of this form have. config: other keys of tokenizer_config.json."""

    make: Callable[[Sequence[str]], tokenizers.Tokenizer]
    special: tuple[str, ...]
    bos: str | None
    eos: str
    classes: tuple[str, ...]
    config: dict[str, Any]
    normalized: bool = False
    """Of the added tokens"""


def example_text() -> list[str]:
    return [text.replace("<image>", "") for text in text_tokenizers.example_text()]


def _sentencepiece(special: Sequence[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=special[0], fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=[*special, *BYTES], show_progress=False)
    tokenizer.train_from_iterator(example_text(), trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = []  # the byte tokens are ordinary ones
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _without_pre_tokenizer(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "pre_tokenizer": None}))


def _prepending(special: Sequence[str]) -> tokenizers.Tokenizer:
    """Llama 2 and Mistral as first published: a space in front of the text and after each special token."""
    tokenizer = _without_pre_tokenizer(_sentencepiece(special))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def _metaspace(special: Sequence[str]) -> tokenizers.Tokenizer:
    """Llama 2 and Mistral 0.3 converted with `legacy: false`."""
    tokenizer = _sentencepiece(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def _gemma(special: Sequence[str]) -> tokenizers.Tokenizer:
    """No space in front; bytes for what the vocabulary lacks."""
    tokenizer = _sentencepiece(special)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _byte_level(special: Sequence[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(example_text(), trainer)
    return tokenizer


def _nfc(special: Sequence[str]) -> tokenizers.Tokenizer:
    tokenizer = _byte_level(special)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


_LLAMA = ("<unk>", "<s>", "</s>")
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GEMMA = ("<unk>", "<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast")
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FORMS: dict[str, Form] = {
    "llama2": Form(
        _prepending,
        _LLAMA,
        "<s>",
        "</s>",
        _CLASSES,
        {"add_bos_token": True, "add_eos_token": False, "legacy": True, "unk_token": "<unk>"},
    ),
    "llama2_metaspace": Form(
        _metaspace,
        _LLAMA,
        "<s>",
        "</s>",
        _CLASSES,
        {"add_bos_token": True, "add_eos_token": False, "legacy": False, "unk_token": "<unk>"},
    ),
    "llama3": Form(_byte_level, _LLAMA3, _LLAMA3[0], "<|eot_id|>", ("PreTrainedTokenizerFast",), {}),
    "mistral_nemo": Form(_byte_level, _LLAMA, "<s>", "</s>", ("PreTrainedTokenizerFast",), {"add_bos_token": True}),
    "gemma": Form(
        _gemma,
        _GEMMA,
        "<bos>",
        "<eos>",
        ("GemmaTokenizer", "GemmaTokenizerFast"),
        {"add_bos_token": True, "add_eos_token": False, "pad_token": "<pad>", "unk_token": "<unk>"},
    ),
    "qwen": Form(
        _nfc, _QWEN, None, "<|im_end|>", ("Qwen2Tokenizer",), {"add_prefix_space": False, "pad_token": "<|endoftext|>"}
    ),
}


def publish(form: str, folder: Path, *, tokenizer_class: str | None = None, added: Sequence[str] = ()) -> Path:
    """Write a folder in this form. added: special tokens behind the vocabulary, as LLaVA's have `<image>`."""
    kind = FORMS[form]
    tokenizer = kind.make(kind.special)
    tokenizer.add_special_tokens([AddedToken(token, normalized=kind.normalized) for token in (*kind.special, *added)])
    tokenizer.post_processor = _post_processor(tokenizer, kind)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": kind.bos, "eos_token": kind.eos}
    config = {
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "tokenizer_class": tokenizer_class or kind.classes[0],
        **kind.config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    names = {key: value for key, value in {**special, **kind.config}.items() if key.endswith("_token") and value}
    named = {key: {"content": value, "lstrip": False} for key, value in names.items() if isinstance(value, str)}
    (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def _post_processor(tokenizer: tokenizers.Tokenizer, form: Form) -> Any:
    is_byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    offsets = processors.ByteLevel(trim_offsets=False)
    if form.bos is None:
        return offsets
    begin = (form.bos, tokenizer.token_to_id(form.bos))
    adding = processors.TemplateProcessing(
        single=f"{form.bos} $A", pair=f"{form.bos} $A {form.bos}:1 $B:1", special_tokens=[begin]
    )
    return processors.Sequence([offsets, adding]) if is_byte_level else adding
