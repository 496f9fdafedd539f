"""`dsvl-train serve`: a web server that answers with one model until a signal stops it.

The main thread waits for signals. Another one loads the model and a third one serves, so that clients are answered with
503 meanwhile. On SIGTERM or Ctrl-C new requests get 503 and running answers may end; a second signal ends it at once.

Rule: a signal sets a flag, and raises nothing inside a library that loads the model: KeyboardInterrupt is lost in a
callback of a weak reference, as imports have them, and changes the exit code where C code runs Python.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

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
    can be answered, and whatever load raises. Stopped before the model is loaded, it ends the process.
    """
    with (
        _sigterm_as_ctrl_c(),
        StopFlag().on_signals(signal.SIGINT, signal.SIGTERM) as asked_to_stop,
        listening(service, address, log=log) as (url, thread),
    ):
        log(f"listening at {url}; the model is being loaded")
        try:
            loading = _in_thread(load)
            while not (loading.done() or asked_to_stop()):
                wait([loading], timeout=_POLL_S)
            if is_loaded := loading.done():
                model = service.model = loading.result()
                started(url)
                while not asked_to_stop() and thread.is_alive() and model.engine.failure is None:
                    time.sleep(_POLL_S)
                log(f"stopping: running answers have {stop_within_s:g} s to end")
                stop(service, model, within_s=stop_within_s)
                _check_device(model)
            else:
                log("stopping before the model is loaded")
        except KeyboardInterrupt:
            _end_at_once(1)
    log("stopped")
    if not is_loaded:
        _end_at_once(0)  # the end of Python would take the interpreter from a thread that still imports


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


def _check_device(model: ServedModel) -> None:
    """Raises TrainError if the engine ended because of it."""
    if (failure := model.engine.failure) is not None:
        reason = f"{type(failure).__name__}: {failure}"
        raise TrainError(f"the model's device failed ({reason[:500]}); start the server again") from failure


def _in_thread(action: Callable[[], ServedModel]) -> Future[ServedModel]:
    future: Future[ServedModel] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # raised again by whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="dsvl-load", daemon=True).start()
    return future


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """For a second signal, and around StopFlag. Without a handler, the first process of a container gets no SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_at_once(code: int) -> NoReturn:
    """Without waiting for other threads, which may be in the middle of a long prompt, or of an import."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
