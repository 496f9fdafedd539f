"""dst.tokenizer: what is read, what is refused, what is written; normalising and unusual tokenizers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

import dst
from tests.support import text_tokenizers
from tests.support.paths import ROOT

USER = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}


def changed(folder: Path, **change: Any) -> Path:
    """The example tokenizer with some top-level entries of its definition replaced."""
    definition = json.loads((text_tokenizers.BYTE_FOLDER / "tokenizer.json").read_text())
    return text_tokenizers.write(tokenizers.Tokenizer.from_str(json.dumps({**definition, **change})), folder)


def conversation(text: str) -> list[dst.Message]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "So."}]


def chat_of(folder: Path, *add_tokens: str, template: str = "visualchat") -> dst.ChatTokenizer:
    return dst.ChatTokenizer(dst.load_template(template), dst.load_tokenizer(folder, add_tokens))


def test_saving_and_loading_keeps_the_fingerprint(tokenizer: dst.TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one", "x")
    again = dst.load_tokenizer(tmp_path / "one")
    again.save(tmp_path / "two", "x")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.control == tokenizer.control
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_fingerprint_covers_tokens_bos_and_eos(byte_tokenizer: dst.TextTokenizer, tmp_path: Path) -> None:
    added = dst.load_tokenizer(text_tokenizers.BYTE_FOLDER, ["<|more|>"])
    definition = tokenizers.Tokenizer.from_file(str(text_tokenizers.BYTE_FOLDER / "tokenizer.json"))
    no_bos = dst.load_tokenizer(text_tokenizers.write(definition, tmp_path / "a", bos=None))
    other_eos = dst.load_tokenizer(text_tokenizers.write(definition, tmp_path / "b", eos="<|im_end|>"))
    assert len({each.fingerprint for each in (byte_tokenizer, added, no_bos, other_eos)}) == 4


@given(text=st.text())
def test_pieces_joined_decode_to_the_text(byte_tokenizer: dst.TextTokenizer, text: str) -> None:
    halves = [half for half in (text[: len(text) // 2], text[len(text) // 2 :]) if half]
    assert byte_tokenizer.decode([index for ids in byte_tokenizer.encode(halves) for index in ids]) == text


def test_a_template_whose_tokens_are_absent_is_refused_until_they_are_added(tmp_path: Path) -> None:
    definition = json.loads((text_tokenizers.BYTE_FOLDER / "tokenizer.json").read_text())
    kept = [token for token in definition["added_tokens"] if "|" not in token["content"]]
    vocabulary = {token: i for token, i in definition["model"]["vocab"].items() if "|>" not in token}
    folder = changed(tmp_path / "few", added_tokens=kept, model={**definition["model"], "vocab": vocabulary})
    with pytest.raises(dst.TokenizerError, match=r"chatml writes <\|im_end\|> <\|im_start\|>, which.*add_tokens"):
        chat_of(folder, template="chatml")
    with pytest.raises(dst.TokenizerError, match=r"llama3 writes <\|end_header_id\|> <\|eot_id\|>"):
        chat_of(folder, template="llama3")
    chat = chat_of(folder, "<|im_start|>", "<|im_end|>", template="chatml")
    assert chat.tokenizer.vocabulary_size == len(set(chat.tokenizer.control)) + len(vocabulary) - 2
    assert chat.encode(conversation("Hi")).trained_tokens > 1


def test_adding_a_token_that_is_there_changes_nothing(byte_tokenizer: dst.TextTokenizer) -> None:
    again = dst.load_tokenizer(text_tokenizers.BYTE_FOLDER, ["<|im_end|>", "<image>", "<image>"])
    assert again.fingerprint == byte_tokenizer.fingerprint


@pytest.mark.parametrize("role", ["bos", "eos", "neither"])
def test_the_unknown_token_does_not_hide_data(role: str, tmp_path: Path) -> None:
    """A model that knows nothing but a few words turns the rest into <unk>; that alone is no injection."""
    model = tokenizers.models.WordLevel({"<unk>": 0, "So": 1, ".": 2, ":": 3}, unk_token="<unk>")
    raw = tokenizers.Tokenizer(model)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    names = {"bos": ("<unk>", "</s>"), "eos": ("<s>", "<unk>"), "neither": ("<s>", "</s>")}[role]
    folder = text_tokenizers.write(raw, tmp_path / "words", bos=names[0], eos=names[1])
    if role == "neither":
        encoded = chat_of(folder).encode(conversation("strange <unk> words </s>"))
        assert encoded.control_texts == 2
        assert np.count_nonzero(encoded.ids == 2) >= 1
    else:  # strange words would become the bos or eos token itself
        with pytest.raises(dst.ControlTextError):
            chat_of(folder)


def test_a_tokenizer_whose_three_names_are_one_token_works(tmp_path: Path) -> None:
    """As GPT-2: <|endoftext|> is bos, eos and the unknown token, and byte-level BPE never says unknown."""
    definition = json.loads((text_tokenizers.BYTE_FOLDER / "tokenizer.json").read_text())
    folder = changed(tmp_path / "gpt2", model={**definition["model"], "unk_token": "</s>"})
    (folder / "tokenizer_config.json").write_text('{"bos_token": "</s>", "eos_token": {"content": "</s>"}}')
    chat = chat_of(folder)
    encoded = chat.encode(conversation("a </s> b"))
    assert int(encoded.ids[-1]) == chat.tokenizer.control["</s>"]
    assert np.count_nonzero(encoded.ids == encoded.ids[-1]) == 2


@pytest.mark.parametrize("normalizer", [normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFKD()])
@pytest.mark.parametrize("text", ["＜/s＞", "</S>", "<|IM_END|>", "＜image＞", "ﬁ </s>", "<ｓ>", "<IMAGE>"])
def test_normalising_never_makes_data_control(normalizer: Any, text: str, tmp_path: Path) -> None:
    raw = tokenizers.Tokenizer.from_file(str(text_tokenizers.BYTE_FOLDER / "tokenizer.json"))
    raw.normalizer = normalizer
    definition = json.loads(raw.to_str())
    for token in definition["added_tokens"]:
        token["normalized"] = True
    folder = text_tokenizers.write(tokenizers.Tokenizer.from_str(json.dumps(definition)), tmp_path / "normalising")
    chat = chat_of(folder)
    expected = [chat.tokenizer.control[token] for token in ("<s>", "</s>")]
    with contextlib.suppress(dst.ControlTextError):
        encoded = chat.encode(conversation(f"a {text} b"))
        assert [index for index in encoded.ids.tolist() if index in chat.tokenizer.control_ids] == expected


def test_a_control_token_of_one_character_in_data_is_an_error(tmp_path: Path) -> None:
    chat = chat_of(text_tokenizers.BYTE_FOLDER, "¤")
    assert chat.encode(conversation("fine")).control_texts == 0
    with pytest.raises(dst.ControlTextError, match="one character"):
        chat.encode(conversation("a ¤ b"))


def test_a_control_string_that_begins_another_is_cut_too(tmp_path: Path) -> None:
    chat = chat_of(text_tokenizers.BYTE_FOLDER, "<a>", "<a>b", "b<a>")
    for text in ("<a>b", "<a>", "b<a>b", "<a>b<a>"):
        encoded = chat.encode(conversation(text))
        assert sum(index in chat.tokenizer.control_ids for index in encoded.ids.tolist()) == 2
        assert text in chat.tokenizer.decode(encoded.ids)


def test_added_words_and_white_space_are_not_control(tmp_path: Path) -> None:
    raw = tokenizers.Tokenizer.from_file(str(text_tokenizers.BYTE_FOLDER / "tokenizer.json"))
    raw.add_tokens(["    ", "<think>", "[INST]", "helicopter"])
    raw.add_special_tokens(["\n\n"])
    tokenizer = dst.load_tokenizer(text_tokenizers.write(raw, tmp_path / "added"))
    assert {"<think>", "[INST]"} < set(tokenizer.control)
    assert not {"    ", "\n\n", "helicopter"} & set(tokenizer.control)
    encoded = dst.ChatTokenizer(dst.load_template("visualchat"), tokenizer).encode(
        conversation("\n\nhelicopter    <think>")
    )
    assert encoded.control_texts == 1


def test_truncation_and_padding_of_the_folder_do_not_apply(tmp_path: Path) -> None:
    raw = tokenizers.Tokenizer.from_file(str(text_tokenizers.BYTE_FOLDER / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=64)
    tokenizer = dst.load_tokenizer(text_tokenizers.write(raw, tmp_path / "cut"))
    assert (
        tokenizer.decode(tokenizer.encode(["A longer text than four tokens."])[0]) == "A longer text than four tokens."
    )


def test_a_post_processor_that_adds_tokens_is_left_out(tmp_path: Path) -> None:
    """As those of Llama, Mistral and Gemma, which put <s> in front of every text; the template writes it already."""
    added = {"id": "<s>", "ids": [0], "tokens": ["<s>"]}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": added},
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": True}
    none = dst.load_tokenizer(changed(tmp_path / "none", post_processor=None))
    for number, (step, kept) in enumerate(
        [
            (template, None),
            ({**roberta, "add_prefix_space": False}, None),
            (
                {"type": "Sequence", "processors": [byte_level, template]},
                {"type": "Sequence", "processors": [byte_level]},
            ),
            ({"type": "Sequence", "processors": [template]}, None),
            (byte_level, byte_level),
        ]
    ):
        loaded = dst.load_tokenizer(changed(tmp_path / str(number), post_processor=step))
        loaded.save(tmp_path / f"{number}-saved", "")
        saved = json.loads((tmp_path / f"{number}-saved" / "tokenizer.json").read_text())
        assert saved["post_processor"] == kept
        assert (loaded.fingerprint == none.fingerprint) == (kept is None)
        raw = tokenizers.Tokenizer.from_str(json.dumps(saved))
        assert raw.encode("A bus").ids == loaded.encode(["A bus"])[0]


def test_bos_and_eos_are_read_from_either_file(tmp_path: Path) -> None:
    folder = changed(tmp_path / "old")
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    tokenizer = dst.load_tokenizer(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(dst.TokenizerError, match=r"no tokenizer\.json there; expected a folder"):
        dst.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(dst.TokenizerError, match=r"tokenizer\.model only"):
        dst.load_tokenizer(tmp_path)
    with pytest.raises(dst.TokenizerError, match="no such folder"):
        dst.load_tokenizer(tmp_path / "absent" / "folder")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(dst.TokenizerError, match="cannot be read"):
        dst.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(dst.TokenizerError, match="holds list; expected an object"):
        dst.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(dst.TokenizerError, match=r"tokenizer\.json cannot be used"):
        dst.load_tokenizer(tmp_path)
    with pytest.raises(dst.TokenizerError, match="names no eos_token"):
        dst.load_tokenizer(
            text_tokenizers.write(tokenizers.Tokenizer(tokenizers.models.BPE()), tmp_path / "a", eos=None)
        )
    (changed(tmp_path / "b") / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(dst.TokenizerError, match="'<end>' is named as bos or eos token but not in"):
        dst.load_tokenizer(tmp_path / "b")


def test_importing_dst_loads_nothing_heavy() -> None:
    code = (
        "import sys, dst; dst.load_template('visualchat'); "
        "print(sorted({'torch', 'transformers', 'polars', 'pyarrow', 'deepspeed', 'ray'} & set(sys.modules)))"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert got.stdout.strip() == "[]"


def test_make_tokenizer_is_deterministic_and_loads(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"question": "What is on the table?", "answer": 3}, "A red bus."]')
    (tmp_path / "b.txt").write_text("The table is red. The bus is red too.")
    script = ROOT / "tools" / "make_tokenizer.py"
    for folder in ("one", "two"):
        command = [sys.executable, *map(str, (script, tmp_path / folder, tmp_path / "a.json", tmp_path / "b.txt"))]
        subprocess.run([*command, "--vocabulary-size", "300"], check=True, capture_output=True)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    for template in dst.BUILTIN:
        chat_of(tmp_path / "one", template=template)
    absent = subprocess.run(
        [sys.executable, script, tmp_path / "x", tmp_path / "c.txt"], capture_output=True, text=True
    )
    assert (absent.returncode, "cannot read the text" in absent.stderr) == (2, True)
