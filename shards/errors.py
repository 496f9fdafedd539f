"""What can be wrong with a build, its location, the network, a field of JSON data, or an image."""

from typing import Literal

from dst.errors import DsvlError


class ShardError(DsvlError):
    """A build, shard or index is missing, damaged, incomplete, or of another version.

    The text names the file, and the sample if there is one. Never raised for sound data.

    Example: build: no manifest.json there; ...
    What to do: check the location; run the same `dsvl-prep build` again, which writes only what is missing or damaged.
    """


class LocationError(ShardError):
    """A build's location cannot be used: an unknown protocol, a package that is not installed, or other files there.

    Example: s4://bucket/build: unknown protocol s4; did you mean s3?; ...
    What to do: correct the URL, or install the package that the text names.
    """

    exit_code = 2


class NetworkError(DsvlError, OSError):
    """A request failed after all tries; the text has their number and the last error.

    Inside the package only: callers get a ShardError with the URL in front of this text.

    Example: gave up after 5 tries, the last ended with TimeoutError: ...
    What to do: check the network, the endpoint and the credentials, then run the same command again.
    """


class FieldError(DsvlError, ValueError):
    """A field of a manifest or of an export's record is missing, has another type, or is out of range.

    Inside the package only: callers get a ShardError or a TrainError with the file in front of this text.

    Example: config.image.size: got 0; expected a whole number from 1 on
    What to do: rebuild, or export the model again.
    """


class ImageError(DsvlError, ValueError):
    """An image cannot be used: it is damaged, of an unsupported format, animated, or too large.

    `reason` is the kind of fault; `detail` has what was got and what was expected. The compiler makes a reject of it.

    Example: no image: the file starts with b'text'
    What to do: replace the image file, or leave out the records that show it.
    """

    def __init__(self, reason: Literal["unreadable", "format", "too_large", "animated"], detail: str) -> None:
        super().__init__(reason, detail)  # both as arguments, so that the error survives pickling between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail
