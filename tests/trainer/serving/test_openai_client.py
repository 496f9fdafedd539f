"""The official client of OpenAI's API against a server: chat, streams, images, stop strings, seeds, usage, errors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

import openai

from tests.support.chat_requests import MODEL, data_uri, image_bytes, image_part, text_part
from tests.support.chat_servers import LIMIT_S, ChatServer, chat_server, served
from tests.support.tiny_models import loaded
from trainer.inference.conversation import answer_text, prompt_of_messages
from trainer.inference.generate import Generator, Sampling
from trainer.inference.images import opened_image

QUESTION = [{"role": "user", "content": "What is this?"}]
PHOTO = image_bytes(3)
ABOUT_PHOTO = [{"role": "user", "content": [image_part(data_uri(PHOTO)), text_part("What is this?")]}]

server = pytest.fixture(served, scope="module")


def client_of(server: ChatServer, **options: Any) -> Any:
    return openai.OpenAI(
        base_url=f"{server.url}v1", **{"api_key": "any", "max_retries": 0, "timeout": LIMIT_S, **options}
    )


@pytest.fixture(scope="module")
def client(server: ChatServer) -> Iterator[Any]:
    with client_of(server) as opened:
        yield opened


def ask(client: Any, messages: Any = QUESTION, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **{"max_tokens": 12, "seed": 1, **options})


def text_of(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def expected(server: ChatServer, messages: Any, photos: list[bytes], sampling: Sampling) -> str:
    """The text of the library's own answer to messages in dst's form."""
    speaker = server.speaker
    generator = Generator(speaker.model, speaker.chat_tokenizer)
    images = [opened_image(photo, speaker.geometry, Path("photo.png")) for photo in photos]
    prompt = prompt_of_messages(messages, images, speaker, end_id=generator.end_id, limit=generator.limit)
    (tokens,) = generator.batch([prompt], sampling, keys=[()])
    return answer_text(speaker.chat_tokenizer.tokenizer, tokens, generator.end_id)


def test_an_answer_is_the_one_that_the_library_gives(server: ChatServer, client: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, text_part("What is this?")]}]
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (0.8, 0.5)):
        completion = ask(client, ABOUT_PHOTO, temperature=temperature, top_p=top_p, seed=5)
        sampling = Sampling(max_new_tokens=12, temperature=temperature, top_p=top_p, seed=5)
        assert text_of(completion) == expected(server, messages, [PHOTO], sampling)


def test_several_rounds_and_images_and_a_system_message_reach_the_model(server: ChatServer, client: Any) -> None:
    other = image_bytes(9, form="JPEG")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image_part(data_uri(PHOTO)), image_part(data_uri(other)), text_part("Older?")]},
        {"role": "assistant", "content": "The first."},
        {"role": "user", "content": "Why?"},
    ]
    own = [messages[0], {"role": "user", "content": [{"type": "image"}] * 2 + [text_part("Older?")]}, *messages[2:]]
    sampling = Sampling(max_new_tokens=12, seed=1)
    assert text_of(ask(client, messages, temperature=0)) == expected(server, own, [PHOTO, other], sampling)
    assert text_of(ask(client, messages, temperature=0)) != text_of(ask(client, QUESTION, temperature=0))


def test_a_stream_has_the_text_of_the_whole_answer_in_pieces(client: Any) -> None:
    whole = ask(client, ABOUT_PHOTO)
    chunks = list(ask(client, ABOUT_PHOTO, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == text_of(whole)
    assert len(pieces) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    counts = (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens, chunks[-1].usage.total_tokens)
    assert counts == (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens)
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_counts_the_positions_of_the_prompt_and_the_tokens_of_the_answer(server: ChatServer, client: Any) -> None:
    completion = ask(client, ABOUT_PHOTO)
    ids = server.post("v1/prompt", {"model": MODEL, "messages": ABOUT_PHOTO}).json()["ids"]
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(ids), 12, len(ids) + 12)
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= len(ids)
    assert completion.choices[0].finish_reason == "length"


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: Any) -> None:
    whole = text_of(ask(client, max_tokens=40))
    stop = whole[9:13]
    for options in ({"stop": stop}, {"stop": ["never in it", stop]}):
        stopped = ask(client, max_tokens=40, **options)
        assert text_of(stopped) == whole[: whole.index(stop)].strip()
        assert stopped.choices[0].finish_reason == "stop"
        assert stopped.usage.completion_tokens < 40
        chunks = [chunk for chunk in ask(client, max_tokens=40, stream=True, **options) if chunk.choices]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(stopped)


def test_a_seed_repeats_an_answer_and_without_one_answers_differ(client: Any) -> None:
    assert text_of(ask(client, seed=7)) == text_of(ask(client, seed=7))
    assert len({text_of(ask(client, seed=None)) for _ in range(4)}) > 1
    assert text_of(ask(client, seed=7)) != text_of(ask(client, seed=-8))
    assert len({text_of(ask(client, seed=None, temperature=0)) for _ in range(3)}) == 1


def test_both_names_of_the_limit_of_tokens_are_heard(client: Any) -> None:
    assert ask(client, max_tokens=3).usage.completion_tokens == 3
    assert ask(client, max_tokens=None, max_completion_tokens=4).usage.completion_tokens == 4


def test_the_list_of_models_has_the_one_that_is_served(client: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here; this server has 'tiny'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("options", "param", "text"),
    [
        ({"n": 2}, "n", "n: not supported by this server; expected 1 or no value"),
        ({"temperature": 3}, "temperature", "temperature: got 3; expected a number from 0 to 2"),
        ({"messages": []}, "messages", "messages: got an empty list"),
        ({"extra_body": {"top_z": 1}}, "top_z", "top_z: unknown parameter; did you mean top_"),
        (
            {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant", "assistant", "user")]},
            "messages",
            "turn 3 is from assistant where user",
        ),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, "messages", "the model reads at most 8192"),
        (
            {"messages": [{"role": "user", "content": [image_part(data_uri(PHOTO[:60]))]}]},
            "messages[0].content[0].image_url.url",
            "cannot be decoded",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_client_can_correct_is_a_bad_request(
    client: Any, options: dict[str, Any], param: str, text: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **{"messages": QUESTION, "stream": stream, **options})
        assert text in str(caught.value)
        assert caught.value.param == param


def test_another_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)


def test_answers_to_many_clients_at_once_are_those_to_each_alone(client: Any) -> None:
    questions = [[{"role": "user", "content": f"What is {number}?"}] for number in range(12)]
    alone = [text_of(ask(client, question, seed=number)) for number, question in enumerate(questions)]
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda number: text_of(ask(client, questions[number], seed=number)), range(12)))
    assert together == alone


def test_a_key_is_needed_where_the_server_has_one() -> None:
    with chat_server(loaded(), key="secret-1") as guarded:
        assert text_of(ask(client_of(guarded, api_key="secret-1")))
        for key in ("secret-2", "secret", "secret-11"):
            with pytest.raises(openai.AuthenticationError, match="expected Authorization: Bearer KEY"):
                ask(client_of(guarded, api_key=key))
            with pytest.raises(openai.AuthenticationError):
                client_of(guarded, api_key=key).models.list()
        assert "secret" not in "\n".join(guarded.log)
        assert guarded.get("health").status == 200


def test_a_server_that_starts_or_stops_is_unavailable_for_now(server: ChatServer) -> None:
    with chat_server(loaded()) as other:
        model, other.service.model = other.service.model, None
        with pytest.raises(openai.InternalServerError, match="its model is being loaded") as caught:
            ask(client_of(other))
        assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "10")
        assert (other.get("health").status, other.get("health").json()["status"]) == (503, "starting")
        other.service.model, other.service.is_stopping = model, True
        with pytest.raises(openai.InternalServerError, match="the server is stopping"):
            ask(client_of(other))
        assert other.get("health").json()["status"] == "stopping"
