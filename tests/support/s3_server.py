"""An S3 server on this machine, in a process of its own, and the environment in which s3fs finds it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import s3fs

BUCKET = "models"

_SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


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
