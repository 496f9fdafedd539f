"""`generation_kwargs` of a task of lmms-eval, or of its `--gen_kwargs`, as settings of answers.

Rule: a key that would change the answers and is not supported is refused, unless it holds the value that changes
nothing. Where lmms-eval's own models agree on a meaning that is not in the name, it is theirs:
- `temperature` alone decides whether answers are sampled; `do_sample` does not.
- An `until` of one blank line is what lmms-eval writes into tasks that name none. It ends no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import TrainError
from trainer.inference.generate import Sampling

_NOT_NAMED = ["\n\n"]
"""`until` of tasks that have none: their `fewshot_delimiter`"""

_READ = ("max_new_tokens", "temperature", "top_p", "seed", "until", "stop_sequences")

_WITHOUT_EFFECT = ("image_aspect_ratio", "use_cache")
"""How LLaVA's own code prepares images, which the export says itself; and a cache that changes no answer"""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (False, True),
    "num_beams": (1,),
    "repetition_penalty": (1,),
    "top_k": (-1, 0),
    "num_return_sequences": (1,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "skip_special_tokens": (True,),
}
"""Key that is not supported -> its values that change nothing, in addition to None"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """How the answers to a task's questions are made."""

    sampling: Sampling
    until: tuple[str, ...] = ()
    """Texts that end an answer, and are not part of it"""

    def cut(self, answer: str) -> str:
        """The answer up to the first of the texts that end it."""
        ends = [index for text in self.until if (index := answer.find(text)) >= 0]
        return answer[: min(ends)].rstrip() if ends else answer


def answer_settings(kwargs: Mapping[str, Any], *, max_new_tokens: int) -> AnswerSettings:
    """max_new_tokens: of tasks that name none. Raises TrainError with all problems."""
    problems = [problem for name, value in kwargs.items() if (problem := _problem(name, value))]
    if kwargs.get("do_sample") and kwargs.get("temperature") is None:
        problems.append("do_sample is True without a temperature; expected one, for example temperature=1")
    numbers: dict[str, Any] = {
        name: kwargs.get(name) if kwargs.get(name) is not None else default
        for name, default in (("max_new_tokens", max_new_tokens), ("temperature", 0.0), ("top_p", 1.0), ("seed", 0))
    }
    problems += [
        f"{name}: got {value!r}; expected a number"
        for name, value in numbers.items()
        if isinstance(value, bool) or not isinstance(value, int | float)
    ]
    if not problems:
        if not numbers["temperature"] or kwargs.get("top_k") == 1:
            numbers |= {"temperature": 0.0, "top_p": 1.0}  # tasks write top_p: 0 where nothing is sampled
        sampling = Sampling(
            max_new_tokens=int(numbers["max_new_tokens"]),
            temperature=float(numbers["temperature"]),
            top_p=float(numbers["top_p"]),
            seed=int(numbers["seed"]),
        )
        problems = [problem.removeprefix("--").replace("-", "_", 2) for problem in sampling.problems()]
    if problems:
        raise TrainError("; ".join(problems))
    return AnswerSettings(sampling=sampling, until=tuple(dict.fromkeys(_ends(kwargs))))


def _problem(name: str, value: object) -> str | None:
    """Why a key cannot be used; None if it can."""
    if name in _WITHOUT_EFFECT or value is None:
        return None
    if name in ("until", "stop_sequences"):
        is_texts = isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))
        return None if is_texts else f"{name}: got {value!r}; expected a text or a list of texts"
    if name in _READ or (name == "top_k" and value == 1):
        return None
    if name not in _NEUTRAL:
        return f"{name}: not supported; expected {', '.join(_READ)}"
    if value in _NEUTRAL[name]:
        return None
    return f"{name}: got {value!r}, which is not supported; expected {_NEUTRAL[name][0]}"


def _ends(kwargs: Mapping[str, Any]) -> list[str]:
    """The texts that end an answer; an empty one would end each at once, and is what a task means that has none."""
    texts: list[str] = []
    for name in ("until", "stop_sequences"):
        value = kwargs.get(name) or []
        if name != "until" or value != _NOT_NAMED:
            texts += [value] if isinstance(value, str) else value
    return [text for text in texts if text]
