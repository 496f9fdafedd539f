"""Errors that end a command: what a user can fix, in one line each, without a traceback."""


class ConfigError(Exception):
    """The configuration cannot work. `problems` holds all of them, each naming its place; exit code 2."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(Exception):
    """A whole file or build is unusable (a record that is not becomes a reject instead); exit code 1."""
