"""`dsvl-train serve` as a process: keys, addresses, signals and exit codes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from tests.support.chat_requests import chat_body
from tests.support.chat_servers import Reply, ask
from tests.support.paths import ROOT
from tests.support.serve_processes import ServeProcess, serve_process, tiny_export
from tests.support.trainer_commands import run_command
from tests.support.waiting import LIMIT_S, wait_until

JSON = {"content-type": "application/json"}
ENDLESS = chat_body(stream=True, max_tokens=100_000, seed=3, temperature=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("serve"))


def chat(served: ServeProcess, **fields: object) -> Reply:
    return ask(f"{served.url}v1/chat/completions", json.dumps(chat_body(**fields)).encode(), JSON)


def running(served: ServeProcess) -> int:
    return int(ask(f"{served.url}health", None, {}).json()["stats"]["running"])


@pytest.mark.slow
def test_a_server_starts_answers_and_stops_after_its_running_answers(exported: Path) -> None:
    with serve_process(exported, "--temperature", "0") as served:
        starting = ask(f"{served.url}health", None, {})
        assert (starting.status, starting.json()["status"]) in ((503, "starting"), (200, "ok"))
        assert served.wait_until_ready() == f"{exported} is at {served.url} as tiny (Ctrl-C to stop)\n"
        assert chat(served, max_tokens=2).json()["usage"]["completion_tokens"] == 2
        greedy = {chat(served, max_tokens=8).json()["choices"][0]["message"]["content"] for _ in range(3)}
        assert len(greedy) == 1
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(chat(served, max_tokens=1500, stream=True)))
        asking.start()
        wait_until(lambda: running(served) == 1)
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: any("stopping" in line for line in served.stderr))
        refused = chat(served)
        assert (refused.status, refused.error["message"][:22]) == (503, "the server is stopping")
        asking.join()
        assert replies[0].body.endswith(b"data: [DONE]\n\n")
        assert served.end() == 0
        assert served.stderr[-1] == "stopped\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_server_that_loads_its_model(exported: Path, number: signal.Signals) -> None:
    with serve_process(exported) as served:
        assert served.url
        assert served.end(number) == 0
        wait_until(lambda: served.stderr[1:] == ["stopping before the model is loaded\n", "stopped\n"])


def test_no_signal_is_lost_in_a_library_that_loads_the_model() -> None:
    """Python ignores what a handler of a signal raises in a callback of a weak reference."""
    program = """
import sys, time, weakref
from trainer.serving.server import Address, serve
from trainer.serving.service import Service

class Thing:
    pass

def load():
    while True:
        thing = Thing()
        watch = weakref.ref(thing, lambda _: time.sleep(0.2))
        del thing

def log(line):
    print(line, flush=True)

serve(Service(name="a"), Address(port=0), load, stop_within_s=0, started=log, log=log)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert "the model is being loaded" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "stopping before the model is loaded\nstopped\n", "")


def test_answers_that_take_longer_than_allowed_are_cut_off_with_an_error(exported: Path) -> None:
    with serve_process(exported, "--stop-within", "0", "--max-new-tokens", "100000") as served:
        served.wait_until_ready()
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(chat(served, max_tokens=100_000, stream=True)))
        asking.start()
        wait_until(lambda: running(served) == 1)
        assert served.end(signal.SIGINT) == 0
        asking.join()
        assert b"the server is stopping" in replies[0].body.split(b"\n\n")[-2]


@pytest.mark.slow
def test_a_second_signal_ends_the_server_at_once(exported: Path) -> None:
    with serve_process(exported, "--stop-within", "1000", "--max-new-tokens", "100000") as served:
        served.wait_until_ready()
        with socket.create_connection(("127.0.0.1", int(served.url.split(":")[2].strip("/")))) as opened:
            body = json.dumps(ENDLESS).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            opened.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: running(served) == 1)
            served.process.send_signal(signal.SIGINT)
            wait_until(lambda: any("stopping" in line for line in served.stderr))
            assert served.end(signal.SIGINT) == 1


@pytest.mark.slow
def test_a_key_comes_from_the_environment_and_never_from_the_command_line(exported: Path) -> None:
    with serve_process(exported, "--name", "mine", environment={"DSVL_API_KEY": "secret-1"}) as served:
        served.wait_until_ready()
        models = f"{served.url}v1/models"
        assert ask(models, None, {}).status == 401
        reply = ask(models, None, {"authorization": "Bearer secret-1"})
        assert [model["id"] for model in reply.json()["data"]] == ["mine"]
        assert served.end(signal.SIGTERM) == 0
        assert "secret" not in "".join(served.stderr)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: everybody who reaches this address could use the model; set DSVL_API"),
        (["--temperature", "3", "--top-p", "0"], "--temperature: got 3.0; expected 0 to 2"),
        (["--api-key-file", "absent"], "--api-key-file absent: cannot be read"),
        (["--api-key-file", "empty"], "--api-key-file empty: expected a key of printable ASCII characters"),
        (["--host", "192.0.2.1", "--without-key"], "--host 192.0.2.1: cannot be used"),
        ([], "none: no model there; expected a folder that dsvl-train export wrote"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_served_is_said_before_it_is(
    options: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text(" \n")
    code, _, err = run_command(monkeypatch, capsys, "serve", "--model", "none", "--port", 0, *options)
    assert code == 2
    assert f"error: {text}" in err


def test_an_empty_key_in_the_environment_is_not_no_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSVL_API_KEY", "")
    code, _, err = run_command(monkeypatch, capsys, "serve", "--model", "none", "--port", 0)
    assert (code, "error: DSVL_API_KEY: expected a key of printable ASCII" in err) == (2, True)
