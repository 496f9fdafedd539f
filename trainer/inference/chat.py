"""Talk to a model in the terminal, round after round, about pictures that come in as one goes.

Rules
- What one types is a question, unless it begins with `/`: see COMMANDS. `//` sends a question that begins with `/`.
- A question that could not be asked or answered leaves the conversation as it was; its pictures wait for the next one.
- Answers go to stdout, all else to stderr. Nothing that the model says commands the terminal.

    Chat(speaker, Sampling()).run(stdin)
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from dst import ControlTextError, TemplateError
from dst.common.suggest import nearest
from dst.common.terminal_text import visible
from trainer.distributed.stop_signal import StopFlag
from trainer.errors import TooLongError, TrainError
from trainer.inference.cached_decoder import Prompt
from trainer.inference.conversation import (
    Exchange,
    Seen,
    Speaker,
    TextStream,
    answer_text,
    look,
    messages_of,
    prompt_of,
)
from trainer.inference.generate import Generator, Sampling

PROMPT = "> "


class Chat:
    """A conversation and what each line does to it."""

    def __init__(
        self, speaker: Speaker, sampling: Sampling, *, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self.exchanges: list[Exchange] = []
        self.waiting: list[Seen] = []
        """Pictures that the next question brings in"""
        self.refused = False
        """Whether a line could not be done"""
        self._speaker, self._sampling = speaker, sampling
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._generator = Generator(speaker.model, speaker.chat_tokenizer)
        self._session = self._generator.session()

    def run(self, stdin: TextIO) -> None:
        """Until /quit or the end of input. Ctrl-C ends an answer, or the line that is being typed."""
        for stream in (stdin, self._out, self._err):
            _never_fail(stream)
        self._note("a line is a question; /image PATH... shows pictures; /help shows all commands")
        read = _reader(stdin)
        while True:
            try:
                line = read()
                if line is None or not self.line(line):
                    return
            except KeyboardInterrupt:
                self._err.write("\n")
                self._note("stopped; /quit or Ctrl-D ends the conversation")

    def line(self, line: str) -> bool:
        """One line that was typed. False: it ends the conversation."""
        line = line.strip()
        if line.startswith("/") and not line.startswith("//"):
            name, *rest = line.split(maxsplit=1)
            return self._command(name, rest[0] if rest else "")
        if line:
            self.ask(line[1:] if line.startswith("//") else line)
        return True

    def ask(self, question: str) -> None:
        """Ask, and say the answer as it comes."""
        exchange = Exchange(question=question, pictures=tuple(self.waiting))
        end_id = self._generator.end_id
        try:
            prompt = prompt_of([*self.exchanges, exchange], self._speaker, end_id=end_id)
            tokens, stopped = self._hear(prompt)
        except (ControlTextError, TemplateError) as error:
            self._refuse(f"not asked: {error}; put it in other words, or /clear")
            return
        except TooLongError as error:
            self._refuse(f"not asked: {error}; ask for less, or /clear starts a new conversation")
            return
        except torch.OutOfMemoryError:
            self._refuse("not answered: the GPU's memory ran out; ask for less, or /clear starts a new conversation")
            return
        answer = answer_text(self._speaker.chat_tokenizer.tokenizer, tokens, end_id)
        if stopped and not answer:
            self._note("stopped before the first word; the question is forgotten")
            return
        self.exchanges.append(replace(exchange, answer=answer))
        self.waiting = []
        if stopped:
            self._note("stopped; what was said stays in the conversation")
        elif tokens[-1] != end_id:
            full = len(tokens) < self._sampling.max_new_tokens
            why = f"the model reads {self._generator.limit} positions" if full else "--max-new-tokens allows no more"
            self._note(f"cut off after {len(tokens)} tokens: {why}")
        elif not answer:
            self._note("the model ended its answer without a word")

    def show(self, arguments: str) -> None:
        """/image"""
        try:
            paths = [Path(name).expanduser() for name in shlex.split(arguments)]
        except (RuntimeError, ValueError) as error:  # no home folder; a quotation mark that stands alone
            self._refuse(f"not shown: {error}; paths with spaces want quotes around them")
            return
        if not paths:
            dropped, self.waiting = len(self.waiting), []
            self._note(f"waiting pictures put away: {dropped}; /image PATH... shows pictures")
            return
        found, problems = [], []
        for path in paths:
            try:
                found.append(look(path, self._speaker.geometry))
            except TrainError as error:
                problems.append(str(error))
        if problems:
            self._refuse("\n".join([*problems, "none of these pictures is shown"] if found else problems))
            return
        self.waiting += found
        self._note(f"pictures waiting for the next question: {len(self.waiting)}")

    def clear(self, arguments: str) -> None:
        """/clear"""
        self.exchanges, self.waiting = [], []
        self._session.reset()
        self._note("a new conversation")

    def save(self, arguments: str) -> None:
        """/save"""
        try:
            names = shlex.split(arguments)
            if len(names) != 1 or not names[0].endswith(".jsonl"):
                self._refuse("not saved: wanted one file whose name ends in .jsonl")
            elif not self.exchanges:
                self._refuse("not saved: nothing was answered yet")
            else:
                self._save(Path(names[0]).expanduser())
        except OSError as error:
            self._refuse(f"not saved: {error.filename or arguments}: {error.strerror or error}")
        except (RuntimeError, ValueError) as error:
            self._refuse(f"not saved: {error}")

    def help(self, arguments: str) -> None:
        """/help"""
        width = max(len(f"{name} {command.arguments}") for name, command in COMMANDS.items())
        self._note("\n".join(f"{f'{name} {one.arguments}':{width}}  {one.text}" for name, one in COMMANDS.items()))

    def _save(self, path: Path) -> None:
        _append_line(path, record_of(self.exchanges, path.parent))
        self._note(f"{path}: added the conversation as one line; rounds: {len(self.exchanges)}")
        shown = [picture.path for exchange in self.exchanges for picture in exchange.pictures]
        if outside := [name for name in (_name(picture, path.parent) for picture in shown) if name.startswith("/")]:
            self._note(
                f"dsvl-prep reads only pictures below the file's folder, and {outside[0]} is not; save the "
                "conversation in a folder above its pictures, or copy them there and mend their paths"
            )

    def _command(self, name: str, arguments: str) -> bool:
        if name == "/quit":
            return False
        if name in COMMANDS:
            COMMANDS[name].run(self, arguments)
        else:
            hint = nearest(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
            self._refuse(f"{name}: no such command{hint} (// sends a question that begins with /)")
        return True

    def _hear(self, prompt: Prompt) -> tuple[list[int], bool]:
        """The answer's tokens, said as they come, and whether Ctrl-C ended it."""
        stream = TextStream(self._speaker.chat_tokenizer.tokenizer)
        tokens: list[int] = []
        begun = False
        with _stopping() as asked_to_stop:
            for token in self._session.answer(prompt, self._sampling, key=("chat", len(self.exchanges))):
                tokens.append(token)
                if token != prompt.end_id:
                    begun = self._say(stream.add(token), begun)
                if asked_to_stop():
                    break
            self._say(stream.end(), begun)
        self._out.write("\n")
        self._out.flush()
        return tokens, asked_to_stop() and tokens[-1] != prompt.end_id

    def _say(self, piece: str, begun: bool) -> bool:
        """Write a piece of an answer, which begins without white space. Returns whether it has begun."""
        piece = piece if begun else piece.lstrip()
        if piece:
            self._out.write(visible(piece))
            self._out.flush()
        return begun or bool(piece)

    def _refuse(self, text: str) -> None:
        self.refused = True
        self._note(text)

    def _note(self, text: str) -> None:
        self._err.write(f"{visible(text)}\n")
        self._err.flush()


class Command(NamedTuple):
    """A line that is no question: what comes after its name, what it does."""

    arguments: str
    text: str
    run: Callable[[Chat, str], None]


COMMANDS: dict[str, Command] = {
    "/image": Command("PATH...", "show pictures with the next question; no path: put waiting ones away", Chat.show),
    "/clear": Command("", "start a new conversation", Chat.clear),
    "/save": Command("FILE", "add the conversation to a .jsonl file that dsvl-prep's chat adapter reads", Chat.save),
    "/help": Command("", "show this", Chat.help),
    "/quit": Command("", "end; Ctrl-D does it too", lambda chat, arguments: None),
}


def record_of(exchanges: list[Exchange], folder: Path) -> dict[str, Any]:
    """The conversation as the chat adapter reads it. Pictures are named from `folder` where they lie below it."""
    messages = [dict(message) for message in messages_of(exchanges)]
    pictures = iter([_name(picture.path, folder) for exchange in exchanges for picture in exchange.pictures])
    for message in messages:
        if not isinstance(message["content"], str):
            message["content"] = [
                {**part, "path": next(pictures)} if part["type"] == "image" else part for part in message["content"]
            ]
    return {"messages": messages}


def _name(path: Path, folder: Path) -> str:
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


def _append_line(path: Path, record: dict[str, Any]) -> None:
    line = json.dumps(record, ensure_ascii=False).encode()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")


@contextmanager
def _stopping() -> Iterator[StopFlag]:
    """Ctrl-C asks to stop after the current token; a second one stops at once."""
    if threading.current_thread() is threading.main_thread():
        with StopFlag().on_signals(signal.SIGINT) as flag:
            yield flag
    else:  # only the main thread gets signals
        yield StopFlag()


def _reader(stdin: TextIO) -> Callable[[], str | None]:
    """Gives the next line; None at the end."""
    if stdin is sys.stdin and stdin.isatty() and sys.stdout.isatty():  # a prompt would be among the answers of a file
        with suppress(ImportError):
            import readline  # noqa: F401 - `input` then lets one edit the line and go back to earlier ones
        return _typed
    return lambda: stdin.readline() or None


def _typed() -> str | None:
    try:
        return input(PROMPT)
    except EOFError:
        sys.stdout.write("\n")
        return None


def _never_fail(stream: TextIO) -> None:
    """Bytes that are no text are told as an error of the question; what a terminal cannot show becomes a `?`."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="surrogateescape" if stream.readable() else "replace")
