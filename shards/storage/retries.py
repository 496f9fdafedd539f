"""Requests that a busy or broken network may have failed are tried again, with growing waits."""

from __future__ import annotations

import errno
import random
import ssl
import sys
from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from shards.errors import NetworkError

TRIES = 5
FIRST_WAIT_S = 0.5
"""Before the second try, on average; each further wait is twice as long."""

LONGEST_S = 60.0
"""No further try begins when so much time went by since the first; the libraries below have tries of their own."""

# fsspec has no error for a broken line: each library below raises its own, and one that is not loaded raises none.
_ERRORS = (
    ("aiohttp", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("http.client", "HTTPException"),
    ("httpx", "HTTPError"),
)
_REFUSED = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
_REFUSED_STATUS = (401, 403)
"""Of a web server"""

_WAITS = random.SystemRandom()  # a generator of its own: `random`'s belongs to the program that reads

T = TypeVar("T")


def retried(action: Callable[[], T]) -> T:
    """What the action gives. Raises FileNotFoundError at once, and NetworkError for all else that cannot be had."""
    began = monotonic()
    for number in range(1, TRIES + 1):
        try:
            return action()
        except FileNotFoundError:
            raise
        except _errors() as error:
            if _is_refusal(error):
                raise NetworkError(
                    f"access refused ({_text(error)}); check the credentials, and that they may list the folder too: "
                    "without that a missing file is refused like a forbidden one"
                ) from error
            if _is_untrusted(error):
                raise NetworkError(
                    f"the server's certificate is not trusted ({_text(error)}); give the file of its authority: "
                    "AWS_CA_BUNDLE for S3, SSL_CERT_FILE for others"
                ) from error
            if number == TRIES or monotonic() - began > LONGEST_S:
                raise NetworkError(
                    f"gave up after {number} tries, the last ended with {_text(error)}; {_step(error)}, then run "
                    "it again"
                ) from error
            sleep(FIRST_WAIT_S * 2 ** (number - 1) * _WAITS.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")


def _is_refusal(error: Exception) -> bool:
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in _REFUSED
        or getattr(error, "status", None) in _REFUSED_STATUS
    )


def _is_untrusted(error: BaseException | None) -> bool:
    """Whether it is about the certificate of a server; libraries wrap what Python says of that."""
    seen: list[BaseException] = []  # what is raised again may be the cause of its own cause
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in seen)


def _step(error: Exception) -> str:
    if isinstance(error, OSError) and (error.errno, error.strerror) == (errno.EINVAL, "Bad Request"):
        return "S3 answers so, without a reason, where a token has ended: renew the credentials"
    return "check the network and the endpoint"


def _errors() -> tuple[type[Exception], ...]:
    return (OSError, *(getattr(sys.modules[module], name) for module, name in _ERRORS if module in sys.modules))


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
