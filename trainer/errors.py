"""What can go wrong from training to serving; configurations raise ConfigError, builds ShardError."""

from dst.errors import DsvlError


class TrainError(DsvlError):
    """Training, export, chat or evaluation failed while it worked, or its input cannot be used.

    Example: vqa k7: got no references to compare the answer with; expected at least one
    What to do: the text says it; the checkpoints that were saved before stay, and the same command resumes from them.
    """


class LostRankError(TrainError):
    """A rank of a run did not start, failed on its own, or was lost with its process, its host or the network.

    Example: rank 3 on node-b was lost in step 18: its process ended; what that rank printed last, ...
    What to do: see why on the host that the text names; then start the same command again (docs/hosts.md).
    """

    def __init__(self, text: str, rank: int = -1) -> None:
        """rank: the one that was lost, -1 if several never came."""
        super().__init__(text, rank)
        self.text, self.rank = text, rank

    def __str__(self) -> str:
        return self.text


class GpuMemoryError(TrainError):
    """The memory of the GPU ran out.

    Example: CUDA out of memory; in training lower batch.micro_batch_size or batch.max_images, ...
    What to do: lower the settings that the text names, or use more GPUs with a higher zero.stage.
    """


class TooLongError(TrainError):
    """A prompt leaves no positions for an answer.

    Example: the prompt takes 4101 positions with its images, and the model reads at most 4096
    What to do: shorten the question, show fewer images, or begin a new conversation (/clear in chat).
    """

    def __init__(self, positions: int, limit: int) -> None:
        super().__init__(positions, limit)
        self.positions, self.limit = positions, limit

    def __str__(self) -> str:
        return f"the prompt takes {self.positions} positions with its images, and the model reads at most {self.limit}"


class QueueFullError(TrainError):
    """More requests wait for the model than its queue holds.

    Example: 64 requests wait already, as many as the queue holds; try again later
    What to do: send the request again later, or start the server with a longer queue.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.limit} requests wait already, as many as the queue holds; try again later"


class StoppingError(TrainError):
    """The server is stopping, and takes no more requests.

    Example: the server is stopping and takes no more requests; send it to another one, or again when it has restarted
    What to do: send the request to another server, or again when this one has restarted.
    """

    def __str__(self) -> str:
        return (
            "the server is stopping and takes no more requests; send it to another one, or again when it has restarted"
        )


class RequestError(DsvlError, ValueError):
    """A request to the server is refused; the client gets the text as an answer, and the server continues.

    `status` is the HTTP status, `param` the field of the request, `code` a short name of the reason.

    Example: temperature: got 3; expected a number from 0 to 2
    What to do: correct the field, and send the request again; docs/serve.md lists what is supported.
    """

    def __init__(self, text: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(text, param, status, code)
        self.text, self.param, self.status, self.code = text, param, status, code

    def __str__(self) -> str:
        return self.text
