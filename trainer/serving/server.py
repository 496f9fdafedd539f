"""`dsvl-train serve`: a web server that answers with one model until a signal stops it.

The main thread listens for signals and loads the model; another one serves, so that clients are answered with 503
meanwhile. On SIGTERM or Ctrl-C new requests get 503 and running answers may end; a second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvicorn

from dst.common.web_server import listen, own_hosts, url_host
from trainer.distributed.stop_signal import StopFlag
from trainer.errors import TrainError
from trainer.serving.app import make_app
from trainer.serving.connections import ImpatientProtocol
from trainer.serving.service import ServedModel, Service

_POLL_S = 0.1
_CLOSE_S = 5
"""In which clients must take the rest of what they were sent, once all answers have ended"""

_KEEP_ALIVE_S = 30
_CONNECTIONS = 1000
"""More at the same time get 503 from the web server itself"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen, and further names under which the server may be asked."""

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()


def serve(
    service: Service,
    address: Address,
    load: Callable[[], ServedModel],
    *,
    stop_within_s: float,
    started: Callable[[str], None],
    log: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT. load: opens the model. started: gets the URL when the model is loaded.

    Raises ConfigError for an address that cannot be used, TrainError if the model's device fails so that nothing more
    can be answered, and whatever load raises.
    """
    with _sigterm_as_ctrl_c(), listening(service, address, log=log) as (url, thread):
        log(f"listening at {url}; the model is being loaded")
        try:
            model = service.model = load()
            started(url)
            with StopFlag().on_signals(signal.SIGINT, signal.SIGTERM) as asked_to_stop:
                while not asked_to_stop() and thread.is_alive() and model.engine.failure is None:
                    time.sleep(_POLL_S)
                log(f"stopping: running answers have {stop_within_s:g} s to end")
                stop(service, model, within_s=stop_within_s)
            if (failure := model.engine.failure) is not None:
                reason = f"{type(failure).__name__}: {failure}"
                raise TrainError(f"the model's device failed ({reason[:500]}); start the server again") from failure
        except KeyboardInterrupt:
            if service.is_stopping:
                _end_at_once()
            if service.model is not None:
                raise
            log("stopping before the model is loaded")


@contextmanager
def listening(
    service: Service, address: Address, *, log: Callable[[str], None]
) -> Iterator[tuple[str, threading.Thread]]:
    """The URL and the thread of a web server that runs until the block ends. Raises ConfigError."""
    is_own, names = own_hosts(url_host(address.host)), {name.lower() for name in address.names}
    app = make_app(service, is_own=lambda host: is_own(host) or host in names, log=log)
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        log_level="critical",  # the app has a log of its own
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSE_S,
        limit_concurrency=_CONNECTIONS,
    )
    server = uvicorn.Server(config)
    with listen(address.host, address.port) as listened:
        thread = threading.Thread(target=server.run, args=([listened],), name="dsvl-server", daemon=True)
        thread.start()
        try:
            yield f"http://{url_host(address.host)}:{listened.getsockname()[1]}/", thread
        finally:
            server.should_exit = True
            thread.join()


def stop(service: Service, model: ServedModel, *, within_s: float) -> None:
    """Refuse new requests, let running answers end, and cancel the rest after `within_s` seconds."""
    service.is_stopping = True
    model.engine.close(within_s=within_s)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """For the time before and after StopFlag. Without a handler, the first process of a container gets no SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_at_once() -> None:
    """Without waiting for the engine's thread, which may be in the middle of a long prompt."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)
