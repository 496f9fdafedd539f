"""The base class of all errors of this project, and the errors of templates, tokenizers and configurations.

docs/errors.md is made from these docstrings: when an error is raised, an example of its text, and what to do.
"""

from typing import ClassVar


class DsvlError(Exception):
    """An error that the user can act on. A command prints its text, one line per problem, without a traceback.

    exit_code: of a command that ends with the error. 2: what was asked for cannot be done; 1: what it works on is
    missing or damaged, or the work failed.
    """

    exit_code: ClassVar[int] = 1

    def lines(self) -> list[str]:
        """One line per problem."""
        return str(self).splitlines()


class ConfigError(DsvlError):
    """A command line, a configuration file or the installed packages do not allow what was asked for.

    Raised before work starts. `problems` lists all problems, not only the first.

    Example: blend.yaml: datasets.0.weights: unknown key; did you mean weight?
    What to do: correct each line, and run the command again.
    """

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)

    def lines(self) -> list[str]:
        return self.problems


class TemplateError(DsvlError, ValueError):
    """A chat template cannot be used, or refuses a conversation.

    The text names the template and, where possible, the line in it.

    Example: template mine.jinja, line 1: Expected an expression, got 'end of statement block'
    What to do: correct the template; docs/templates.md has one that works.
    """

    exit_code = 2


class TokenizerError(DsvlError, ValueError):
    """A tokenizer folder cannot be read, or does not fit the template.

    Example: tokenizer models/x/y: no such folder; ...
    What to do: name a folder with tokenizer.json, or a hub id of a model with a fast tokenizer.
    """

    exit_code = 2


class ControlTextError(DsvlError, ValueError):
    """Text from data cannot be tokenized: it would become a control token, or it is not Unicode.

    The compiler makes a reject of such a conversation.

    Example: text holds half of a surrogate pair, which is not a character
    What to do: change the text, or use a tokenizer that can write it with ordinary tokens.
    """
