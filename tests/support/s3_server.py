"""An S3 server on this machine, in a process of its own, and the environment in which s3fs finds it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import s3fs

BUCKET = "models"

_SERVE = """
import json, logging, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
backend, lock, gets = DomainDispatcherApplication(create_backend_app), threading.Lock(), []

def answer(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/-/gets":
        with lock:
            body = json.dumps(gets).encode()
            gets.clear()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    body = b"".join(backend(environ, start_response))
    if environ["REQUEST_METHOD"] == "GET":
        with lock:
            gets.append((path, len(body)))
    return [body]

server = make_server("127.0.0.1", 0, answer, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Get:
    """An answer to a GET request: of which path, and how many bytes."""

    path: str
    size: int


def answered() -> list[Get]:
    """All GET requests since the last call, in the order of their answers."""
    with urllib.request.urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/-/gets") as response:
        return [Get(*pair) for pair in json.load(response)]


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Gives the URL of an empty bucket. The server ends with this block, or with the process that opened it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with (
        subprocess.Popen(
            [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean
        ) as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            environment.setenv("AWS_ACCESS_KEY_ID", "nobody")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            environment.setenv("AWS_CONFIG_FILE", os.devnull)
            environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
            environment.setenv("NO_PROXY", "127.0.0.1")
            s3fs.S3FileSystem.clear_instance_cache()  # connections that a test made to another such server
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            server.kill()
