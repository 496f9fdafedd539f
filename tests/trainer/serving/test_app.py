"""What the server answers to requests that no client library sends: other hosts, bodies, readers that leave."""

from __future__ import annotations

import json
import threading
import time

import pytest

pytest.importorskip("starlette")

from tests.support.chat_requests import MODEL, chat_body, data_uri, encoded, image_bytes, image_part, text_part
from tests.support.chat_servers import CHAT, ChatServer, chat_server, connection, has_running, head, served, status_of
from tests.support.tiny_models import loaded
from tests.support.waiting import wait_until
from trainer.errors import TrainError
from trainer.inference.generate import Generator
from trainer.inference.shared_rows import SharedRows
from trainer.serving.answer_events import AnswerEvents
from trainer.serving.answer_text import AnswerText
from trainer.serving.engine import Engine
from trainer.serving.prompts import PromptMaker
from trainer.serving.server import Address, serve
from trainer.serving.service import ServedModel, Service

LONG = {"max_tokens": 2000, "seed": 3}

server = pytest.fixture(served, scope="module")


def test_only_its_own_names_are_answered(server: ChatServer) -> None:
    for host in ("localhost", "127.0.0.1:8000", "[::1]:1"):
        assert server.get("v1/models", host=host).status == 200
    for path in ("v1/models", "health", "nothing"):
        refused = server.get(path, host="evil.example:8000")
        assert refused.status == 421
        assert refused.error["code"] == "wrong_host"


def test_a_body_must_be_declared_as_json_which_other_sites_cannot_send_unasked(server: ChatServer) -> None:
    assert server.post(CHAT, chat_body(max_tokens=1), content_type="Application/JSON; charset=utf-8").status == 200
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        refused = server.post(CHAT, chat_body(), content_type=content_type)
        assert (refused.status, refused.error["code"]) == (415, "wrong_content_type")
    assert server.post(CHAT, chat_body(), content_encoding="gzip").status == 415


def test_pages_of_other_sites_may_ask_only_if_they_were_named(server: ChatServer) -> None:
    asked = {"origin": "https://chat.example.org"}
    assert "access-control-allow-origin" not in server.get("v1/models", **asked).headers
    with chat_server(loaded(), cors_origins=("https://chat.example.org",)) as open_to_one:
        headers = open_to_one.get("v1/models", **asked).headers
        assert headers["access-control-allow-origin"] == "https://chat.example.org"
        assert "access-control-allow-origin" not in open_to_one.get("v1/models", origin="https://evil.org").headers


def test_pages_that_may_ask_can_read_why_they_are_refused_and_may_use_openai_s_client() -> None:
    page = {"origin": "https://chat.example.org"}
    with chat_server(loaded(), cors_origins=(page["origin"],), key="secret") as server:
        for refused in (server.get("v1/models", **page), server.post(CHAT, b"", **page, content_type="text/plain")):
            assert refused.status == 401
            assert refused.headers["access-control-allow-origin"] == page["origin"]
        names = "authorization,content-type,x-stainless-os,x-stainless-retry-count"
        with connection(server) as opened:
            lines = ("Host: localhost", f"Origin: {page['origin']}", f"Access-Control-Request-Headers: {names}")
            asked = (f"OPTIONS /{CHAT} HTTP/1.1", *lines, "Access-Control-Request-Method: POST", "", "")
            opened.sendall("\r\n".join(asked).encode())
            assert status_of(opened) == 200


def test_a_path_or_method_that_there_is_none_of_is_an_error_in_the_same_form(server: ChatServer) -> None:
    assert server.get("v1/embeddings").status == 404
    assert server.get("v1/embeddings").error["type"] == "not_found_error"
    wrong_method = server.get(CHAT)
    assert (wrong_method.status, wrong_method.error["code"]) == (405, "method_not_allowed")
    assert server.post("v1/completions", {"prompt": "a"}).status == 404
    for path in ("chat/completions", "v1/v1/chat/completions"):
        text = server.post(path, chat_body()).error["message"]
        assert text.endswith(f"expected /v1/chat/completions: give programs the base URL {server.url}v1")


def test_the_exact_ids_of_a_prompt_are_those_that_the_model_reads(server: ChatServer) -> None:
    content = [image_part(), image_part(data_uri(image_bytes(2))), text_part("Which?")]
    shown = server.post("v1/prompt", chat_body(messages=[{"role": "user", "content": content}])).json()
    speaker = server.speaker
    tokenizer, image_tokens = speaker.chat_tokenizer.tokenizer, speaker.model.image_tokens
    own = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, text_part("Which?")]}]
    short = speaker.chat_tokenizer.encode(own, add_generation_prompt=True).ids
    expected = [index for index in short for _ in range(image_tokens if index == tokenizer.image_id else 1)]
    assert shown["ids"] == expected
    assert shown["tokens"] == [tokenizer.token(index) for index in expected]
    assert [(image["positions"], image["tiles"]) for image in shown["images"]] == [(image_tokens, 1)] * 2
    for image in shown["images"]:
        span = shown["ids"][image["first"] : image["first"] + image_tokens]
        assert span == [tokenizer.image_id] * image_tokens
    assert shown["control_ids"] == sorted(speaker.chat_tokenizer.tokenizer.control_ids & {*shown["ids"]})
    assert shown["limit"] == server.model.prompts.generator.limit


def test_a_full_queue_is_too_many_requests_for_now() -> None:
    with chat_server(loaded(), batch=1, engine_queue=1) as busy, connection(busy) as first, connection(busy) as second:
        body = encoded(chat_body(stream=True, **LONG))
        first.sendall(head(len(body)) + body)
        wait_until(has_running(busy, 1))
        second.sendall(head(len(body)) + body)
        wait_until(lambda: busy.model.engine.stats().waiting == 1)
        refused = busy.post(CHAT, chat_body())
        assert (refused.status, refused.headers["retry-after"]) == (429, "2")
        assert refused.error["type"] == "rate_limit_error"
        assert refused.error["code"] == "queue_full"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_answer(stream: bool) -> None:
    with chat_server(loaded()) as served:
        with connection(served) as opened:
            body = encoded(chat_body(stream=stream, **LONG))
            opened.sendall(head(len(body)) + body)
            wait_until(has_running(served, 1))
        wait_until(has_running(served, 0))
        assert served.model.engine.stats().tokens < 2000
        wait_until(lambda: any(" 499 " in line for line in served.log))


def test_the_log_has_a_line_of_numbers_for_each_request_and_nothing_of_what_was_sent(server: ChatServer) -> None:
    del server.log[:]
    secret = "a-secret-word"
    server.post(CHAT, chat_body(messages=[{"role": "user", "content": secret}], max_tokens=2), authorization=secret)
    server.post(CHAT, chat_body(messages=[{"role": secret, "content": "a"}]))
    server.get("v1/%1b[31m" + "a" * 200)
    wait_until(lambda: len(server.log) == 3)
    lines = [line.split(" ", 1)[1] for line in server.log]
    assert lines[0].startswith("POST /v1/chat/completions 200 images=0 prompt=")
    assert " new=2 " in lines[0]
    assert lines[1].startswith("POST /v1/chat/completions 400 ")
    assert "\x1b" not in lines[2]
    assert len(lines[2]) < 120
    assert secret not in "".join(server.log)


def test_what_nobody_foresaw_is_logged_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(loaded()) as broken:

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("inside knowledge")

        decoder = broken.speaker.model.decoder.base_model
        monkeypatch.setattr(decoder, "forward", fail)
        for stream in (False, True):
            failed = broken.post(CHAT, chat_body(stream=stream, max_tokens=1))
            assert b"inside knowledge" not in failed.body
            assert b"its log has the reason" in failed.body
            assert failed.status == (200 if stream else 500)
        wait_until(lambda: sum("RuntimeError: inside knowledge" in line for line in broken.log) == 2)
        monkeypatch.undo()
        assert broken.post(CHAT, chat_body(max_tokens=1)).status == 200


def test_health_is_degraded_from_an_error_of_the_model_until_its_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(loaded(), key="k") as failing:
        keyed = {"authorization": "Bearer k"}

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("CUDA error: launch failed\nSet CUDA_LAUNCH_BLOCKING=1")

        assert failing.get("health").json()["status"] == "ok"
        decoder = failing.speaker.model.decoder.base_model
        monkeypatch.setattr(decoder, "forward", fail)
        before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for _ in range(2):
            assert failing.post(CHAT, chat_body(max_tokens=1), **keyed).status == 500
        bad = failing.get("health", **keyed)
        assert (bad.status, bad.json()["status"]) == (200, "degraded")  # it takes requests, and one may succeed
        failures = bad.json()["failures"]
        assert before <= failures.pop("last_time")
        assert failures == {"total": 2, "in_a_row": 2, "last_error": "RuntimeError: CUDA error: launch failed"}
        assert "last_error" not in failing.get("health").json()["failures"]
        monkeypatch.undo()
        assert failing.post(CHAT, chat_body(max_tokens=0), **keyed).status == 400  # not a failure of the model
        assert failing.get("health").json()["status"] == "degraded"
        assert failing.post(CHAT, chat_body(max_tokens=1), **keyed).status == 200
        good = failing.get("health", **keyed).json()
        assert (good["status"], good["failures"]["total"], good["failures"]["in_a_row"]) == ("ok", 2, 0)


def test_a_stream_that_fails_sends_all_tokens_before_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is held at the first token, so that it finds the last tokens and the error together."""
    with chat_server(loaded()) as failing:
        expected = failing.post(CHAT, chat_body(max_tokens=4, temperature=0)).json()["choices"][0]["message"]["content"]
        has_failed = threading.Event()
        plain_add, plain_failed, plain_step = AnswerText.add, AnswerEvents.failed, SharedRows.step
        steps: list[int] = []

        def add(text: AnswerText, token: int) -> str:
            assert has_failed.wait(60)
            return plain_add(text, token)

        def failed(events: AnswerEvents, error: Exception) -> None:
            plain_failed(events, error)
            has_failed.set()

        def step(rows: SharedRows, tokens: list[int]) -> object:
            steps.append(1)
            if len(steps) == 4:
                raise RuntimeError("lost")
            return plain_step(rows, tokens)

        monkeypatch.setattr(AnswerText, "add", add)
        monkeypatch.setattr(AnswerEvents, "failed", failed)
        monkeypatch.setattr(SharedRows, "step", step)
        reply = failing.post(CHAT, chat_body(max_tokens=9, temperature=0, stream=True))
        events = [json.loads(event.removeprefix("data: ")) for event in reply.body.decode().split("\n\n")[:-1]]
        assert events[-1]["error"]["type"] == "server_error"
        assert "".join(event["choices"][0]["delta"]["content"] for event in events[:-1]) == expected


def test_a_stream_is_events_of_json_that_end_with_done(server: ChatServer) -> None:
    reply = server.post(CHAT, chat_body(stream=True, max_tokens=3))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = reply.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["model"] == MODEL for chunk in chunks)
    assert "usage" not in chunks[0]


def test_the_chat_page_and_its_files_are_served_without_a_key() -> None:
    with chat_server(loaded(), key="k") as guarded:
        page = guarded.get("")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert guarded.get("page/main.js").status == 200
        assert guarded.get("v1/models").status == 401


def test_a_server_whose_device_has_failed_ends_with_an_error() -> None:
    speaker, said = loaded(), list[str]()
    generator = Generator(speaker.model, speaker.chat_tokenizer)
    engine = Engine(generator, cache_gb=0)
    engine.failure = RuntimeError("CUDA error: unspecified launch failure")
    model = ServedModel(engine=engine, prompts=PromptMaker(speaker=speaker, generator=generator))
    with pytest.raises(TrainError, match=r"device failed \(RuntimeError: CUDA error: .*\); start the server again"):
        serve(
            Service(name=MODEL), Address(port=0), lambda: model, stop_within_s=0, started=said.append, log=said.append
        )
    assert len(said) == 3
