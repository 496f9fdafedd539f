"""What a copy of a published template must write and train, by the original alone.

An answer is trained from the end of its prompt (`add_generation_prompt`) to its end token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dst import IMAGE_TOKEN, Message, TemplateError
from dst.messages import Tools
from preprocess.templates.examples import Example, convert, texts_in
from preprocess.templates.original import Abilities, Original, abilities_of
from preprocess.templates.source_tree import normalized

_TOKEN = re.compile(r"\s*(<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\])")
"""A token after an answer, by its look: published templates write their end tokens so"""

_MARK = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The original, and how a copy differs from it.

    end_token: with which each answer ends. adds_begin: the copy writes the begin token, which the original leaves to
    the tokenizer. adds_end: the copy writes the end tokens, which the original does not.
    """

    original: Original
    abilities: Abilities
    end_token: str
    adds_begin: bool
    adds_end: bool

    def text(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> str:
        """Raises TemplateError if the original refuses the messages."""
        taken = [convert(message, self.abilities.contents) for message in messages]
        text = self.original.render(taken, add_generation_prompt=add_generation_prompt, tools=tools)
        text = text.replace(self.abilities.image, IMAGE_TOKEN)
        if self.adds_begin:
            text = self.original.bos_token + text
        return self._with_ends(text, messages) if self.adds_end else text

    def spans(self, example: Example) -> tuple[tuple[int, int], ...]:
        """Of the answers. Raises TemplateError if a prompt is not the beginning of the conversation."""
        text = self.text(example.messages, tools=example.tools)
        spans = []
        for number, index in enumerate(example.answers, start=1):
            prompt = self.text(example.messages[:index], add_generation_prompt=True, tools=example.tools)
            if not text.startswith(prompt):
                pairs = enumerate(zip(text, prompt, strict=False))
                same = next((index for index, pair in pairs if len({*pair}) > 1), len(text))
                shown = [written[max(0, same - 20) : same + 20] for written in (prompt, text)]
                raise TemplateError(
                    f"the prompt for answer {number} is not the beginning of the finished conversation: the prompt has "
                    f"{shown[0]!r} where that has {shown[1]!r}; write a template of your own (docs/add-a-template.md)"
                )
            answer_end = _after(text, texts_in(example.messages[index]), len(prompt))
            if not example.tools:
                self._check_header(text[len(prompt) : answer_end], texts_in(example.messages[index]))
            start = text.find(self.end_token, answer_end)
            if start < 0:
                raise TemplateError(f"answer {number} of a conversation does not end with {self.end_token}")
            spans.append((len(prompt), start + len(self.end_token)))
        return tuple(spans)

    def _check_header(self, written: str, texts: Sequence[str]) -> None:
        """A prompt that leaves out the header of an answer would train the header."""
        header = written[: written.find(texts[0])].strip()
        if header and not header.startswith("<think>"):
            raise TemplateError(
                f"it writes {header!r} before an answer, and not at the end of a prompt: in a copy of it, write that "
                "at the end if add_generation_prompt is true, and name the copy's folder"
            )

    def _with_ends(self, text: str, messages: Sequence[Message]) -> str:
        """The text with the end token behind each answer."""
        position = 0
        for message in messages:
            position = _after(text, texts_in(message), position)
            if message["role"] == "assistant":
                text = text[:position] + self.end_token + text[position:]
                position += len(self.end_token)
        return text


def reference_of(source: str, *, bos_token: str, eos_token: str, adds_begin: bool, add_end: bool) -> Reference:
    """adds_begin: whether the tokenizer puts its begin token in front of every text. add_end: end each answer with
    `eos_token` if the template ends it with no token.

    Raises TemplateError for a template that cannot be used for chats, or whose answers have no end token.
    """
    original = Original(unmarked(normalized(source)), bos_token=bos_token, eos_token=eos_token)
    abilities = abilities_of(original)
    plain = Reference(original=original, abilities=abilities, end_token="", adds_begin=False, adds_end=False)
    end_token = _end_token(plain)
    if not end_token and not (add_end and eos_token):
        raise TemplateError(
            "it ends an answer with no token, so a model would not learn to stop; "
            + (f"--end-token writes {eos_token} there" if eos_token else "the folder names no eos_token either")
            + "; or choose a built-in template (docs/templates.md)"
        )
    begins = plain.text(abilities.examples[0].messages).startswith(bos_token)
    return Reference(
        original=original,
        abilities=abilities,
        end_token=end_token or eos_token,
        adds_begin=adds_begin and not begins,
        adds_end=not end_token,
    )


def is_marked(source: str) -> bool:
    return _MARK.search(source) is not None


def unmarked(source: str) -> str:
    """The source with comments in the place of its marks, which strip the same white space."""
    return _MARK.sub(r"{#\1 answer \2#}", source)


def _end_token(reference: Reference) -> str:
    """The token that ends every answer; empty if there is none that all have."""
    tokens = set()
    for example in reference.abilities.examples:
        if example.tools:
            continue
        text, position = reference.text(example.messages), 0
        for message in example.messages:
            position = _after(text, texts_in(message), position)
            if message["role"] == "assistant":
                token = _TOKEN.match(text, position)
                tokens.add(token[1] if token else "")
    return tokens.pop() if len(tokens) == 1 else ""


def _after(text: str, parts: Sequence[str], position: int) -> int:
    """Where the parts end, each looked for behind the one before it."""
    for part in parts:
        position = text.index(part, position) + len(part)
    return position
