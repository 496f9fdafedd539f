"""What can go wrong with templates, tokenizers and configurations; every error is one a user can act on."""


class TemplateError(ValueError):
    """A template that cannot be used, or a conversation it refuses.

    The text names the template and, where one is to blame, its line.
    """


class TokenizerError(ValueError):
    """A tokenizer folder that cannot be read, or does not fit the template."""


class ControlTextError(ValueError):
    """Text from data that no tokens can stand for: it would become a control token, or is no Unicode."""


class ConfigError(Exception):
    """The configuration cannot work. `problems` holds all of them, each naming its place; exit code 2."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
