"""The forms of chat records, by the keys that hold their turns.

Rule: a record is read in the one form whose keys have values. If it fits two, or none, it is a reject; the option
`form` decides between two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from preprocess.adapters.base import Option, Request
from preprocess.adapters.parsing.fields import list_of, show
from preprocess.adapters.parsing.keys import check_keys, given, one_of
from preprocess.adapters.parsing.lettered_options import options_of, with_options
from preprocess.adapters.parsing.media_tags import TagRules, slots
from preprocess.adapters.parsing.messages import CONTENT_KEYS, messages_of, question_and_answer
from preprocess.adapters.parsing.tools import parsed
from preprocess.adapters.parsing.turns import Message
from preprocess.adapters.parsing.videos import VIDEO_KEYS
from preprocess.containers.image_columns import IMAGE_KEYS, NUMBERED_KEYS
from preprocess.errors import RejectError

CAPTION_FORM = "caption"
CAPTION_KEYS = ("caption", "text", "txt")
OPTION_KEYS = ("options", "choices")
SYSTEM_KEYS = ("system", "system_prompt", "system_message", "system_instruction", "system_text")
TOOL_KEYS = ("tools", "functions", "available_tools")
COMMON_KEYS = frozenset(("id", "group", "split", *SYSTEM_KEYS, *TOOL_KEYS, *IMAGE_KEYS, *NUMBERED_KEYS, *VIDEO_KEYS))


class Context(NamedTuple):
    """num_images: how many the record names; a video counts as one."""

    request: Request
    num_images: int
    rules: TagRules

    @property
    def has_images(self) -> bool:
        return self.num_images > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """needs: keys that all must have a value; none: a key of `may` must. may: further keys that it reads.

    turns: makes the record's messages.
    """

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    turns: Callable[[dict[str, Any], Form, Context], list[Message]]

    @property
    def keys(self) -> frozenset[str]:
        return frozenset((*self.needs, *self.may))


def _listed(record: dict[str, Any], form: Form, context: Context) -> list[Message]:
    """Messages in one array, which may be JSON text."""
    (key,) = form.needs
    items = parsed(record[key], key) if type(record[key]) is str else record[key]
    return messages_of(list_of({key: items}, key), context.request, context.has_images, context.rules)


def _one_round(record: dict[str, Any], form: Form, context: Context) -> list[Message]:
    """Rounds of `history`, then a question and its answer. An alpaca record's input follows its instruction."""
    question_key, answer_key = form.needs
    question = record[question_key]
    if "input" in form.may and given(record, ("input",)):
        if type(question) is not str or type(record["input"]) is not str:
            raise RejectError("wrong_type", f"input is {show(record['input'])}; expected text after the {question_key}")
        question = f"{question}\n{record['input']}"
    messages: list[Message] = []
    if given(record, ("history",)):
        for item in list_of({"history": parsed(record["history"], "history")}, "history"):
            if type(item) is not list or len(item) != 2:
                raise RejectError("wrong_type", f"an item of history is {show(item)}; expected [question, answer]")
            messages += question_and_answer(item[0], item[1], context.has_images, context.rules)
    return [*messages, *question_and_answer(question, record[answer_key], context.has_images, context.rules)]


def _question(record: dict[str, Any], form: Form, context: Context) -> list[Message]:
    """One question, with its lettered options if it has some, and its answer."""
    question, answer = record["question"], record["answer"]
    key = one_of(record, OPTION_KEYS, "list of options")
    if key is not None:
        question, answer = with_options(question, options_of(record[key], key), answer)
    return question_and_answer(question, answer, context.has_images, context.rules)


def _caption(record: dict[str, Any], form: Form, context: Context) -> list[Message]:
    """The images are the question, and their caption is the answer."""
    if not context.has_images:
        raise RejectError("missing_key", "there is a caption and no image; expected an image under one of its keys")
    return [
        Message("user", [None] * context.num_images),
        Message("assistant", slots(_caption_text(record), "assistant", True, context.rules)),
    ]


def _caption_text(record: dict[str, Any]) -> Any:
    """The caption; one of the keys, or several with the same text. Raises RejectError."""
    names = given(record, CAPTION_KEYS)
    if not names:
        raise RejectError("empty_answer", "the caption is empty")
    values = [record[name] for name in names]
    captions = [value[0] if type(value) is list and len(value) == 1 else value for value in values]
    if type(captions[0]) is list:
        raise RejectError("bad_value", f"{names[0]} has {len(captions[0])} texts; expected one caption")
    if any(caption != captions[0] for caption in captions):
        one_of(record, CAPTION_KEYS, "caption")
    return captions[0]


def _prompt(record: dict[str, Any], form: Form, context: Context) -> list[Message]:
    """TRL's prompt and completion, as text or as messages; answers within the prompt are not trained."""
    prompt, completion = record["prompt"], record["completion"]
    if type(prompt) is not list and type(completion) is not list:
        return question_and_answer(prompt, completion, context.has_images, context.rules)
    before, after = (
        messages_of(list_of(record, key), context.request, context.has_images, context.rules)
        for key in ("prompt", "completion")
    )
    return [*(message._replace(trained=message.role != "assistant") for message in before), *after]


FORMS: dict[str, Form] = {
    "messages": Form(needs=("messages",), turns=_listed),
    "sharegpt": Form(needs=("conversations",), turns=_listed),
    "conversation": Form(needs=("conversation",), turns=_listed),
    "dialogue": Form(needs=("dialogue",), turns=_listed),
    "texts": Form(needs=("texts",), turns=_listed),
    "query_response": Form(needs=("query", "response"), may=("history",), turns=_one_round),
    "alpaca": Form(needs=("instruction", "output"), may=("input", "history"), turns=_one_round),
    "prompt_completion": Form(needs=("prompt", "completion"), turns=_prompt),
    "prompt_response": Form(needs=("prompt", "response"), may=("history",), turns=_one_round),
    "question_answer": Form(needs=("question", "answer"), may=OPTION_KEYS, turns=_question),
    CAPTION_FORM: Form(needs=(), may=CAPTION_KEYS, turns=_caption),
}
FORM = Option(
    default="auto",
    choices=("auto", *FORMS),
    help="The form of the records. auto takes the one whose keys have values. Set it if records fit two; then the keys "
    "of the other forms are ignored.",
)
_ALL_KEYS = frozenset(chain.from_iterable(form.keys for form in FORMS.values()))
KEYS = COMMON_KEYS | _ALL_KEYS
"""All keys that some form reads."""
_MAX_KEYS_CACHED = 64
_REPEATING = ("prompt", "question", "query", "instruction")
_UNDERSTOOD = {name: COMMON_KEYS | form.keys for name, form in FORMS.items()}


def form_of(record: dict[str, Any], request: Request) -> Form:
    """The form of a record, after a check that it drops no key that carries meaning. Raises RejectError."""
    chosen = str(request.options.get("form", "auto"))
    if chosen != "auto":
        form = FORMS[chosen]
        check_keys(record, request, KEYS)
        for name in given(record, tuple(_ALL_KEYS - form.keys)):
            request.tally.ignored_key(name)
        if any(record.get(name) is None for name in form.needs):
            raise RejectError("missing_key", f"there is no {' or no '.join(form.needs)}; the option form is {chosen}")
        request.tally.form(chosen)
        return form
    present = (_cached_present if len(record) <= _MAX_KEYS_CACHED else _present)(tuple(record))
    names = [name for name in present if len(given(record, FORMS[name].needs)) == len(FORMS[name].needs)] or [
        name for name in present if all(record[key] is not None for key in FORMS[name].needs)
    ]
    if not names and any(record.get(key) is not None for key in CAPTION_KEYS):  # last: often next to turns
        names = [CAPTION_FORM]
    if not names:
        if type(record.get("questions")) is list and type(record.get("answers")) is list:
            raise RejectError("missing_key", "the keys questions and answers are OCR-VQA's; use the adapter ocr_vqa")
        check_keys(record, request, KEYS)
        raise RejectError("missing_key", f"no form has the keys {_names(record)}; map your own names in `fields`")
    if len(names) > 1:
        raise RejectError("bad_value", f"the record fits the forms {' and '.join(names)}; set the option form")
    form = FORMS[names[0]]
    repeated = _repeated(record, form)
    check_keys(
        {key: record[key] for key in record if key not in repeated} if repeated else record,
        request,
        _UNDERSTOOD[names[0]],
    )
    request.tally.form(names[0])
    return form


def _repeated(record: dict[str, Any], form: Form) -> list[str]:
    """Keys whose text is that of a message, such as `prompt` next to `messages` in UltraChat."""
    names = [name for name in given(record, _REPEATING) if name not in form.needs] if form.turns is _listed else []
    if not names or type(record[form.needs[0]]) is not list:
        return []
    messages = [item for item in record[form.needs[0]] if type(item) is dict]
    said = [item[key] for item in messages for key in CONTENT_KEYS if type(item.get(key)) is str]
    return [name for name in names if record[name] in said]


def _present(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The forms whose keys are all there."""
    return tuple(name for name, form in FORMS.items() if form.needs and all(key in keys for key in form.needs))


_cached_present = lru_cache(maxsize=512)(_present)


def _names(record: dict[str, Any]) -> str:
    return show(", ".join(map(str, list(record)[:20])))
