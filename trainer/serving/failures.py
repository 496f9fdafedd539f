"""What a client gets to know of an error: its HTTP status, and a text that does not give away the server's inside."""

from __future__ import annotations

from starlette.responses import JSONResponse

from dst.errors import DsvlError
from trainer.errors import QueueFullError, RequestError, StoppingError, TooLongError
from trainer.serving.bodies import ClientGone
from trainer.serving.completions import error_json
from trainer.serving.request_memory import RETRY_LATER

RETRY_AFTER_S = 2
"""What a client is asked to wait when the queue is full"""

RESTART_AFTER_S = 10
"""What it is asked to wait when the server starts or stops"""

CLIENT_GONE = 499
"""The status in the log when nobody reads the answer"""


def status_of(error: Exception) -> int:
    match error:
        case RequestError():
            return error.status
        case QueueFullError():
            return 429
        case StoppingError():
            return 503
        case TooLongError():
            return 400
        case ClientGone():
            return CLIENT_GONE
    return 500


def text_of(error: Exception) -> str:
    """The text of an error that users are meant to read; for any other, that the log has it."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return "the model ran out of memory; send a shorter request, or send it again later"
    if isinstance(error, DsvlError):
        return str(error)
    return "the server failed while it answered; its log has the reason"


def error_response(error: Exception) -> JSONResponse:
    status = status_of(error)
    param, code = (error.param, error.code) if isinstance(error, RequestError) else (None, None)
    if isinstance(error, QueueFullError):
        code = RETRY_LATER
    if isinstance(error, TooLongError):
        param, code = "messages", "context_length_exceeded"
    seconds = {429: RETRY_AFTER_S, 503: RESTART_AFTER_S}.get(status)
    headers = {} if seconds is None else {"retry-after": str(seconds)}
    return JSONResponse(error_json(status, text_of(error), param=param, code=code), status, headers)


def is_bug(error: Exception) -> bool:
    """Whether the log should have its traceback."""
    return not isinstance(error, DsvlError | ClientGone)
