"""Whether a blend trains in the layout that its tokenizer's folder comes with."""

from __future__ import annotations

from dst import Template, TemplateError
from dst.errors import ConfigError, TokenizerError
from preprocess.templates.builtin import Builtin, find_builtin, renders_alike
from preprocess.templates.copy import reference_of_folder
from preprocess.templates.folder import read_folder_template


def template_note(tokenizer: str, template: Template) -> str | None:
    """What to know if the folder has a chat template that renders other texts; None if there is nothing to say.

    tokenizer: the folder or hub id.
    """
    if template.name == "plain":  # for captions, whatever the model's chats look like
        return None
    try:
        published = read_folder_template(tokenizer)
        reference = reference_of_folder(published, published.source, add_end=True)
    except (ConfigError, TokenizerError):
        return None
    except TemplateError as error:
        return f"tokenizer {tokenizer}: its chat template cannot be used for training: {error}"
    if renders_alike(template, reference):
        return None
    builtin = find_builtin(reference)
    if builtin is None:
        return (
            f"tokenizer {tokenizer}: its chat template renders other texts than template: {template.name}; for a copy "
            f"that can be trained on: dsvl-prep template --from {tokenizer}"
        )
    return (
        f"tokenizer {tokenizer}: its chat template renders other texts than template: {template.name}, and the same as "
        f"template: {builtin.name}{variables_hint(builtin)}"
    )


def matching_builtin(tokenizer: str) -> Builtin | None:
    """The built-in template that renders the same texts as the chat template of a folder, if it has one."""
    try:
        published = read_folder_template(tokenizer)
        return find_builtin(reference_of_folder(published, published.source, add_end=True))
    except (ConfigError, TemplateError, TokenizerError):
        return None


def variables_hint(builtin: Builtin) -> str:
    return "".join(f" with {name}: {value!r}" for name, value in builtin.variables.items())
