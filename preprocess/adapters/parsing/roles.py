"""Who speaks: the names that published data has for user, assistant, system and tool.

Rule: only a name that has one meaning is in the table; upper case does not matter. Others need the blend's `roles`.
"""

from __future__ import annotations

from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import show
from preprocess.conversation import Role
from preprocess.errors import RejectError

_NAMES: dict[Role, str] = {
    "user": "user human prompter questioner",
    "assistant": "assistant gpt model bot chatbot chatgpt bing bard claude gemini ai answerer function_call tool_call",
    "system": "system developer",
    "tool": "tool function observation ipython tool_response tool_result",
}
ROLES: dict[str, Role] = {name: role for role, names in _NAMES.items() for name in names.split()}
CALLERS = ("function_call", "tool_call")
"""Assistants whose content is the JSON of a call."""


def role_of(value: Any, request: Request) -> Role:
    """The role that a name stands for, for the dataset or for everybody. Raises RejectError for an unknown one."""
    if type(value) is not str:
        raise RejectError("wrong_type", f"a role is {show(value)}; expected user, assistant, system or tool")
    if request.roles and value in request.roles:
        request.tally.roles_found.add(value)
        return request.roles[value]
    role = ROLES.get(value) or ROLES.get(value.lower())
    if role is None:
        raise RejectError(
            "role_order",
            f"a turn is by {show(value)}; expected user, assistant, system or tool; set roles: {{{show(value)}: user}} "
            "if it is the user",
        )
    return role
