"""What tasks of lmms-eval set becomes the settings of answers, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from trainer.errors import TrainError
from trainer.inference.generate import Sampling
from trainer.lmms_eval.generation_kwargs import AnswerSettings, answer_settings

GREEDY = Sampling(max_new_tokens=64)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, GREEDY),
        ({"until": ["\n\n"], "do_sample": False}, GREEDY),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1}, Sampling(max_new_tokens=16)),
        ({"max_new_tokens": 16.0, "top_p": 0, "temperature": 0.0}, Sampling(max_new_tokens=16)),
        ({"temperature": None, "top_p": None, "num_beams": None, "top_k": None}, GREEDY),
        ({"temperature": 0.7, "do_sample": False}, Sampling(max_new_tokens=64, temperature=0.7)),
        ({"temperature": 1, "top_p": 0.9, "seed": 3}, Sampling(max_new_tokens=64, temperature=1, top_p=0.9, seed=3)),
        ({"temperature": 1, "top_k": 1}, GREEDY),
        ({"image_aspect_ratio": "pad", "repetition_penalty": 1.0}, GREEDY),
    ],
)
def test_settings_mean_what_the_models_of_lmms_eval_do_with_them(kwargs: dict[str, Any], expected: Sampling) -> None:
    assert answer_settings(kwargs, max_new_tokens=64).sampling == expected


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"num_beams": 4}, "num_beams: got 4, which is not supported; expected 1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty: got 1.2"),
        ({"top_k": 50, "temperature": 1}, "top_k: got 50"),
        ({"visual_cot": True}, "visual_cot: not supported; expected max_new_tokens, temperature"),
        ({"do_sample": True}, "do_sample is True without a temperature"),
        ({"max_new_tokens": "many"}, "max_new_tokens: got 'many'; expected a number"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0; expected 1 or more"),
        ({"temperature": 1, "top_p": 2}, "top_p: got 2.0; expected more than 0, up to 1"),
        ({"until": 3}, "until: got 3; expected a text or a list of texts"),
        ({"num_beams": 4, "n": 2}, "num_beams: got 4, which is not supported; expected 1; n: not supported"),
    ],
)
def test_what_would_change_answers_and_is_not_supported_is_refused(kwargs: dict[str, Any], problem: str) -> None:
    with pytest.raises(TrainError) as caught:
        answer_settings(kwargs, max_new_tokens=64)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "texts"),
    [
        ({"until": ["\n\n"]}, ()),  # what lmms-eval writes into tasks that name none
        ({"until": "\n\n"}, ("\n\n",)),
        ({"until": ["</answer>", "\n\n"]}, ("</answer>", "\n\n")),
        ({"until": ["Q:", ""], "stop_sequences": ["\n", "Q:"]}, ("Q:", "\n")),
        ({"until": None}, ()),
        ({"until": []}, ()),
    ],
)
def test_texts_that_end_an_answer_are_those_that_a_task_names(kwargs: dict[str, Any], texts: tuple[str, ...]) -> None:
    assert answer_settings(kwargs, max_new_tokens=1).until == texts


def test_an_answer_ends_before_the_first_of_the_texts() -> None:
    settings = AnswerSettings(sampling=GREEDY, until=("ASSISTANT:", "\n"))
    assert settings.cut("yes \nASSISTANT: no") == "yes"
    assert settings.cut("ASSISTANT: no\n") == ""
    assert settings.cut("yes") == "yes"
    assert AnswerSettings(sampling=GREEDY).cut("yes\nno") == "yes\nno"
