"""Control strings in data and in templates: data stays text, and no halves join into control tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dst
from tests.support.conversations import ANSWERS
from tests.support.template_chats import LOOP, assistant, chat_of, jinja, user

TEMPLATES = sorted(ANSWERS)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "hostile",
    ["<image>", "</s>", "<|im_end|>", "<|eot_id|>", "### Image 1:", "<<image>>", "<s></s>", "<|im_<image>end|>"],
)
def test_control_strings_in_data_stay_text_and_are_counted(
    template: str, hostile: str, tokenizer: dst.TextTokenizer
) -> None:
    chat = chat_of(template, tokenizer)
    plain = chat.encode([user(None, "Why?"), assistant("So.")])
    encoded = chat.encode([user(None, f"Why {hostile}?"), assistant(f"So {hostile}.")])
    count = [int(np.isin(e.ids, list(tokenizer.control_ids)).sum()) for e in (plain, encoded)]
    assert count[0] == count[1]
    assert f"So {hostile}." in tokenizer.decode(encoded.ids)
    if hostile.startswith("#"):
        assert encoded.control_texts == (2 if template == "visualchat" else 0)
    else:
        assert encoded.control_texts == 2 * (2 if hostile == "<s></s>" else 1)
    assert plain.control_texts == 0


@pytest.mark.parametrize("parts", [("a <im", "age> b"), ("a <", "image", "> b"), ("</", "", "s>"), ("<im", "age", ">")])
def test_halves_of_control_strings_do_not_join(parts: tuple[str, ...], tokenizer: dst.TextTokenizer) -> None:
    encoded = chat_of("visualchat", tokenizer).encode([user(*parts), assistant("So.")])
    assert encoded.control_texts == 1
    assert not np.any(encoded.ids == tokenizer.image_id)
    assert "".join(parts) in tokenizer.decode(encoded.ids)


@pytest.mark.parametrize(
    ("body", "text"), [("{{ p.text }}image>", "b <"), ("<{{ p.text }}>", "image"), ("<im{{ p.text }}", "age> b")]
)
def test_data_does_not_complete_the_templates_own_text(
    body: str, text: str, tokenizer: dst.TextTokenizer, tmp_path: Path
) -> None:
    chat = dst.ChatTokenizer(jinja(tmp_path, LOOP.replace("BODY", body)), tokenizer)
    encoded = chat.encode([user(None, text), assistant("So.")])
    assert np.count_nonzero(encoded.ids == tokenizer.image_id) == 1
    assert encoded.control_texts == 1
    assert encoded.text.count("<image>") == 2


@pytest.mark.parametrize(
    "change",
    ["{{ p.text[:4] }} {{ p.text[4:] }}", "{{ p.text[::-1] }}", "{{ p.text.split('<')[0] }}", "{{ p.text | length }}"],
)
def test_a_template_that_rewrites_control_strings_is_an_error(
    change: str, byte_tokenizer: dst.TextTokenizer, tmp_path: Path
) -> None:
    chat = dst.ChatTokenizer(jinja(tmp_path, LOOP.replace("BODY", change)), byte_tokenizer)
    chat.encode([user("harmless text"), assistant("So.")])
    with pytest.raises(dst.ControlTextError, match="rewrites"):
        chat.encode([user("some <image> text"), assistant("So.")])


def test_text_that_a_template_turns_into_control_strings_stays_text(
    byte_tokenizer: dst.TextTokenizer, tmp_path: Path
) -> None:
    chat = dst.ChatTokenizer(jinja(tmp_path, LOOP.replace("BODY", "{{ p.text | lower }}")), byte_tokenizer)
    encoded = chat.encode([user(None, "So </S> and <IMAGE>"), assistant("So.")])
    assert encoded.text == "<s><image>so </s> and <image>A:So.</s>"
    assert byte_tokenizer.decode(encoded.ids) == encoded.text
    assert np.isin(encoded.ids, list(byte_tokenizer.control_ids)).sum() == 3


def test_a_trimming_template_may_hold_control_strings(byte_tokenizer: dst.TextTokenizer, tmp_path: Path) -> None:
    chat = dst.ChatTokenizer(jinja(tmp_path, LOOP.replace("BODY", "{{ p.text | trim }}")), byte_tokenizer)
    encoded = chat.encode([user("  </s> text\n"), assistant("So.")])
    assert "</s> textA:" in byte_tokenizer.decode(encoded.ids)


def test_a_text_with_every_noncharacter_is_an_error_only_next_to_control_strings(
    byte_tokenizer: dst.TextTokenizer,
) -> None:
    chat = chat_of("visualchat", byte_tokenizer)
    noncharacters = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    assert noncharacters in byte_tokenizer.decode(chat.encode([user(noncharacters), assistant("So.")]).ids)
    assert "</s>" in chat.encode([user(noncharacters[:-2], "</s>"), assistant("So.")]).text
    with pytest.raises(dst.ControlTextError, match="noncharacters"):
        chat.encode([user(noncharacters, "</s>"), assistant("So.")])


@pytest.mark.parametrize("text", ["\ud800", "a\udfff</s>", "</s>\ud83d"])
def test_half_a_surrogate_pair_is_an_error(text: str, tokenizer: dst.TextTokenizer) -> None:
    with pytest.raises(dst.ControlTextError, match="surrogate"):
        chat_of("visualchat", tokenizer).encode([user(text), assistant("So.")])
