"""What dst writes and renders is what transformers reads and renders."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dst
from tests.support import text_tokenizers
from tests.support.conversations import ANSWERS, conversations
from tests.support.published_tokenizers import FORMS, publish

TEMPLATES = sorted(ANSWERS)


@functools.cache
def pair(template: str, tokenizer: dst.TextTokenizer) -> tuple[dst.ChatTokenizer, Any]:
    """Our chat tokenizer, and transformers' view of the folder that ours saves."""
    from transformers import AutoTokenizer

    chat = dst.ChatTokenizer(dst.load_template(template), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder), chat.template.source)
        return chat, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("template", TEMPLATES)
@given(data=st.data())
def test_text_and_spans_are_those_of_transformers(
    template: str, byte_tokenizer: dst.TextTokenizer, data: st.DataObject
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    chat, theirs = pair(template, byte_tokenizer)
    messages = data.draw(conversations(template))
    length = data.draw(st.integers(1, len(messages)))
    for add_generation_prompt in (False, True):
        ours = chat.render(messages[:length], add_generation_prompt=add_generation_prompt)
        given_to_theirs: Any = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        assert ours.text == theirs.apply_chat_template(messages[:length], **given_to_theirs)
        assert ours.text == theirs.apply_chat_template(
            messages[:length], chat_template=chat.template.source, **given_to_theirs
        )
        rendered: Any = render_jinja_template(
            [[dict(message) for message in messages[:length]]],
            chat_template=chat.template.source,
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            bos_token=byte_tokenizer.bos_token,
            eos_token=byte_tokenizer.eos_token,
        )
        assert list(ours.spans) == rendered[1][0]


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=settings().max_examples // 2)  # of 30 pairs of a template and a tokenizer each
@given(data=st.data())
def test_the_saved_folder_gives_the_same_text_and_ids(
    template: str, tokenizer: dst.TextTokenizer, data: st.DataObject
) -> None:
    """The first prompt is one text to both, so its ids agree whatever it holds but control strings."""
    chat, theirs = pair(template, tokenizer)
    messages = data.draw(conversations(template))
    first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
    prompt = chat.encode(messages[:first], add_generation_prompt=True)
    assert prompt.text == theirs.apply_chat_template(messages[:first], tokenize=False, add_generation_prompt=True)
    if prompt.control_texts == 0:
        assert prompt.ids.tolist() == theirs(prompt.text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_later_rounds_have_the_ids_of_the_whole_text(template: str, tokenizer: dst.TextTokenizer) -> None:
    """Where no merge crosses a border, encoding by segment changes nothing, prefix spaces included."""
    chat, theirs = pair(template, tokenizer)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on the table?"}]}
    answer = {"role": "assistant", "content": "A red bus."}
    whole = chat.encode([user, answer, user, answer])
    assert whole.ids.tolist() == theirs(whole.text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("pieces", [["A red", " bus</s>The table."], ["The</s>", "table", " is", "</s> red</s>bus"]])
def test_pieces_have_the_ids_of_the_whole_text(pieces: list[str], tokenizer: dst.TextTokenizer) -> None:
    _, theirs = pair("visualchat", tokenizer)
    ours = [index for ids in tokenizer.encode(pieces) for index in ids]
    assert ours == theirs("".join(pieces), add_special_tokens=False)["input_ids"]


def test_the_saved_folder_keeps_the_vocabulary(tokenizer: dst.TextTokenizer) -> None:
    _, theirs = pair("visualchat", tokenizer)
    assert len(theirs) == tokenizer.vocabulary_size
    assert theirs.convert_tokens_to_ids(dst.IMAGE_TOKEN) == tokenizer.image_id
    assert (theirs.bos_token or "", theirs.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    assert {token: theirs.convert_tokens_to_ids(token) for token in tokenizer.control} == tokenizer.control


def test_baked_variables_render_alike_in_transformers(byte_tokenizer: dst.TextTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    prompt = "  \"a\" 'b' \\n {{ bos_token }} {% raw %} %} #} {# \n\ttab é 猫 🙂 \u2028 end "
    template = dst.load_template("vicuna", {"system_prompt": prompt})
    byte_tokenizer.save(tmp_path, template.source)
    messages = [{"role": "user", "content": "Hi"}]
    ours = dst.ChatTokenizer(template, byte_tokenizer).render(messages)
    assert ours.text == f"<s>{prompt} USER: Hi "
    assert AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False) == ours.text


def test_a_tokenizer_saved_by_transformers_keeps_its_ids(tokenizer: dst.TextTokenizer, tmp_path: Path) -> None:
    chat, theirs = pair("visualchat", tokenizer)
    theirs.save_pretrained(tmp_path)
    again = dst.load_tokenizer(tmp_path)
    messages = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A red bus."}]
    assert dst.ChatTokenizer(chat.template, again).encode(messages).ids.tolist() == chat.encode(messages).ids.tolist()


def test_a_prompt_rendered_and_tokenized_by_transformers_has_the_trained_ids(tmp_path: Path) -> None:
    """Also if the tokenizer it comes from puts a begin token in front of every text itself."""
    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer

    raw = Tokenizer.from_file(str(text_tokenizers.BYTE_FOLDER / "tokenizer.json"))
    begin = ("<s>", raw.token_to_id("<s>"))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[begin])
    ours = dst.load_tokenizer(text_tokenizers.write(raw, tmp_path / "theirs"))
    chat = dst.ChatTokenizer(dst.load_template("vicuna"), ours)
    ours.save(tmp_path / "ours", chat.template.source)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "ours")
    messages: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = chat.encode(messages, add_generation_prompt=True).ids.tolist()
    assert theirs(text)["input_ids"] == expected
    assert expected.count(begin[1]) == 1


@pytest.mark.parametrize(
    ("form", "tokenizer_class"), [(form, name) for form, kind in FORMS.items() for name in kind.classes]
)
def test_a_saved_folder_adds_nothing_to_the_texts_of_published_tokenizers(
    form: str, tokenizer_class: str, tmp_path: Path
) -> None:
    """Their classes build a post-processor again, from `add_bos_token`, whatever tokenizer.json says."""
    from transformers import AutoTokenizer

    import trainer.compat  # noqa: F401 - config.json makes transformers look for torchvision

    theirs: Any = AutoTokenizer.from_pretrained(publish(form, tmp_path / "published", tokenizer_class=tokenizer_class))
    tokenizer = dst.load_tokenizer(tmp_path / "published")
    chat = dst.ChatTokenizer(dst.load_template("vicuna"), tokenizer)
    tokenizer.save(tmp_path / "saved", chat.template.source)
    # As in an exported folder, where the model's type may choose the class.
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "llava"}')
    saved: Any = AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages: Any = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on the table, 12 é 猫?"}]},
        {"role": "assistant", "content": "A red bus."},
        {"role": "user", "content": "Sure?"},
    ]
    expected = chat.encode(messages, add_generation_prompt=True)
    text = saved.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == expected.text
    assert saved(text)["input_ids"] == expected.ids.tolist()
    whole = saved.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert whole["input_ids"] == expected.ids.tolist()
    if tokenizer.bos_token:
        begin = tokenizer.control[tokenizer.bos_token]
        assert expected.ids.tolist().count(begin) == 1
        assert theirs(text)["input_ids"][:2] == [begin, begin]  # what happens without the change


def test_the_example_tokenizer_opens_in_transformers() -> None:
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(text_tokenizers.BYTE_FOLDER).eos_token == "</s>"
