"""The rules of dst.ChatTokenizer: what is trained, where prompts end, and which templates are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dst
from tests.support import text_tokenizers
from tests.support.conversations import ANSWERS, conversations
from tests.support.oracles_dst import Aligner, template_controls
from tests.support.template_chats import LOOP, assistant, chat_of, jinja, user

TEMPLATES = sorted(ANSWERS)


@pytest.fixture(scope="session")
def aligner(tokenizer: dst.TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Aligner:
    folder = tmp_path_factory.mktemp("aligner")
    tokenizer.save(folder, "")
    return Aligner(tokenizer, (folder / "tokenizer.json").read_text(encoding="utf-8"))


def text_of(message: dst.Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=settings().max_examples // 2)  # of 30 pairs of a template and a tokenizer each
@given(data=st.data())
def test_labels_are_the_answers_and_prompts_are_their_prefix(
    template: str, tokenizer: dst.TextTokenizer, aligner: Aligner, data: st.DataObject
) -> None:
    chat = chat_of(template, tokenizer)
    messages = data.draw(conversations(template))
    whole = chat.encode(messages)
    spans = chat.render(messages).spans
    answers = [text_of(message) for message in messages if message["role"] == "assistant"]
    assert [whole.text[start:end] for start, end in spans] == [ANSWERS[template].format(text) for text in answers]

    controls = template_controls(chat, messages, prompt=False)
    ranges = aligner.align(whole.ids.tolist(), whole.text, controls)
    expected = [aligner.byte_range(whole.text, span) for span in spans]
    assert len(whole.trained) == len(expected)
    for (first, last), (start, end) in zip(whole.trained, expected, strict=True):
        assert all(start <= low and high <= end for low, high in ranges[first:last])  # no more than the span
        assert (ranges[first][0], ranges[last - 1][1]) == (start, end)  # and all of it
        assert int(whole.ids[last - 1]) in tokenizer.control_ids
    is_trained = np.zeros(len(whole.ids), dtype=bool)
    for first, last in whole.trained:
        is_trained[first:last] = True
    assert np.array_equal(whole.labels, np.where(is_trained, whole.ids, dst.IGNORE))
    assert whole.trained_tokens == is_trained.sum() > 0

    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    images = sum(part["type"] == "image" for content in contents for part in content)
    assert np.count_nonzero(whole.ids == tokenizer.image_id) == images == whole.images

    rounds = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index, (first, _) in zip(rounds, whole.trained, strict=True):
        prompt = chat.encode(messages[:index], add_generation_prompt=True)
        assert prompt.text == whole.text[: len(prompt.text)]
        assert np.array_equal(prompt.ids, whole.ids[:first])
        assert np.array_equal(prompt.labels != dst.IGNORE, is_trained[:first])


@pytest.mark.parametrize(("end", "answer"), [("A: ", "cat"), ("Wh", "at"), ("A:", "\n\nIt is"), ("A:\n", "\n\nIt is")])
def test_a_merge_across_the_prompts_end_is_broken(end: str, answer: str, tmp_path: Path) -> None:
    """' cat', 'What', ':\\n\\n' and '\\n\\n\\n' are one token each in vocabularies such as Llama 3's."""
    source = LOOP.replace("BODY", "{{ p.text }}").replace("A:", end)
    merging = dst.load_tokenizer(text_tokenizers.make_merging([end + answer], tmp_path / "merging"))
    chat = dst.ChatTokenizer(jinja(tmp_path, source), merging)
    messages = [user("What?"), assistant(answer)]
    whole, prompt = chat.encode(messages), chat.encode(messages[:1], add_generation_prompt=True)
    assert merging.encode([whole.text])[0] != whole.ids.tolist()
    assert np.array_equal(prompt.ids, whole.ids[: len(prompt.ids)])
    assert merging.decode(whole.ids) == whole.text


@pytest.mark.parametrize("answer", ["\nIt is red.", " It is red.", "\n\nIt", " ", "\n", ""])
@pytest.mark.parametrize("template", TEMPLATES)
def test_answers_that_begin_with_white_space_keep_the_prompts_ids(
    answer: str, template: str, tokenizer: dst.TextTokenizer
) -> None:
    chat = chat_of(template, tokenizer)
    messages = [user(None, "What?"), assistant(answer), user(None, "And?"), assistant(answer)]
    whole = chat.encode(messages)
    for length, (first, _) in zip((1, 3), whole.trained, strict=True):
        assert np.array_equal(chat.encode(messages[:length], add_generation_prompt=True).ids, whole.ids[:first])


def test_trained_ranges_survive_cuts_and_touching_spans(byte_tokenizer: dst.TextTokenizer, tmp_path: Path) -> None:
    source = LOOP.replace("BODY", "").replace("A:", "")
    chat = dst.ChatTokenizer(jinja(tmp_path, source), byte_tokenizer)
    text_a, text_b = "a </s> b <image> c", "</s></s>"
    encoded = chat.encode([user(""), assistant(text_a), user(""), assistant(text_b)])
    (first, middle), (same, last) = encoded.trained
    assert middle == same
    assert last == len(encoded.ids)
    assert byte_tokenizer.decode(encoded.ids[first:middle]) == text_a + "</s>"
    assert byte_tokenizer.decode(encoded.ids[middle:last]) == text_b + "</s>"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_alone_has_nothing_trained(template: str, byte_tokenizer: dst.TextTokenizer) -> None:
    prompt = chat_of(template, byte_tokenizer).encode([user(None, "What? </s>")], add_generation_prompt=True)
    assert prompt.trained == ()
    assert prompt.trained_tokens == 0
    assert np.all(prompt.labels == dst.IGNORE)
    assert prompt.ids.dtype == prompt.labels.dtype == np.int32


def test_no_messages_give_no_tokens(byte_tokenizer: dst.TextTokenizer) -> None:
    assert len(chat_of("chatml", byte_tokenizer).encode([]).ids) == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            LOOP.replace("<image>", "").replace("BODY", ""),
            r"own\.jinja: wrote 0 image placeholders for 3 images; it has no <image> in it",
        ),
        (
            "{#\n#}\n" + LOOP.replace("<image>", "<image><image>").replace("BODY", ""),
            r"own\.jinja, line 3: wrote 6 image placeholders for 3 images\Z",
        ),
        (LOOP.replace("BODY", "").replace("A:", "{% if add_generation_prompt %}A:{% endif %}"), "not the beginning"),
        (
            LOOP.replace("BODY", "").replace("{{ eos_token }}{% endg", "{% endg"),
            r"not in an end token; put \{\{ eos_token",
        ),
        (
            LOOP.replace("BODY", "").replace(
                "{{ eos_token }}{% endgeneration %}", "{% endgeneration %}\n{{ eos_token }}"
            ),
            "not in an end token; </s> is behind the generation block: move {% endgeneration %} to a place after it",
        ),
        (
            LOOP.replace("BODY", "").replace("<image>", "<|image_pad|>"),
            r"own\.jinja, line 1: wrote 0 .* for 3 images; write <image> where it has <\|image_pad\|>",
        ),
        (LOOP.replace("BODY", "").replace("{{ eos_token }}{% endg", "<image>{% endg"), "image placeholders"),
        (LOOP.replace("BODY", "") + "{% generation %}more{{ eos_token }}{% endgeneration %}", "3 trained spans"),
        (
            LOOP.replace("{{ m.content }}", "{% if not loop.last %}{{ m.content }}{% endif %}")
            .replace("BODY", "")
            .replace("{{ eos_token }}{% endg", "{% endg"),
            "1 trained spans",
        ),
    ],
)
def test_a_template_that_cannot_serve_is_refused_before_any_data(
    source: str, message: str, byte_tokenizer: dst.TextTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(dst.TemplateError, match=message):
        dst.ChatTokenizer(jinja(tmp_path, source), byte_tokenizer)


@pytest.mark.parametrize("space", ["\n", " ", "\n\n", " \n\t"])
def test_white_space_after_the_end_token_of_a_block_is_not_trained(
    space: str, tokenizer: dst.TextTokenizer, tmp_path: Path
) -> None:
    """Generation stops at the end token, so the model never has to write what follows it."""
    source = LOOP.replace("BODY", "{{ p.text }}")
    plain = dst.ChatTokenizer(jinja(tmp_path, source), tokenizer)
    spaced = source.replace("{{ eos_token }}{% endg", f"{{{{ eos_token + {space!r} }}}}{{% endg")
    chat = dst.ChatTokenizer(jinja(tmp_path, spaced), tokenizer)
    messages = [user(None, "What?"), assistant("It. "), user("And?"), assistant("So.\n")]
    trained = [chat.encode(messages), plain.encode(messages)]
    texts = [[tokenizer.decode(one.ids[start:end]) for start, end in one.trained] for one in trained]
    assert texts[0] == texts[1]
    assert trained[0].text == trained[1].text.replace("</s>", f"</s>{space}")


def test_an_image_in_an_answer_is_refused(byte_tokenizer: dst.TextTokenizer) -> None:
    messages = [user("Draw."), {"role": "assistant", "content": [{"type": "image"}]}]
    for template in ("chatml", "llama2", "visualchat", "vicuna"):
        with pytest.raises(dst.TemplateError, match="image"):
            chat_of(template, byte_tokenizer).encode(messages)
