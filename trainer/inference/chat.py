"""A conversation with a model in the terminal, in rounds, with images that may be added in each round.

Rules
- A line is a question, unless it begins with `/`: see COMMANDS. `//` sends a question that begins with `/`.
- A question that could not be asked or answered leaves the conversation as it was; its images wait for the next one.
- Answers go to stdout, everything else to stderr. Control characters of an answer are made visible, so that no answer
  controls the terminal.

    Chat(speaker, Sampling()).run(stdin)
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from dst import ControlTextError, TemplateError
from dst.common.suggest import nearest
from dst.common.terminal_text import visible
from trainer.distributed.stop_signal import StopFlag
from trainer.errors import TooLongError, TrainError
from trainer.inference.cached_decoder import Prompt
from trainer.inference.caches import CacheSettings
from trainer.inference.conversation import (
    Exchange,
    Speaker,
    TextStream,
    answer_text,
    prompt_of,
)
from trainer.inference.generate import Generator, Sampling
from trainer.inference.images import LoadedImage, load_image
from trainer.inference.saved_chats import append_line, image_name, record_of

PROMPT = "> "


class Chat:
    """A conversation, and what each line does to it."""

    def __init__(
        self,
        speaker: Speaker,
        sampling: Sampling,
        *,
        cache: CacheSettings | None = None,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        """cache: what is kept of images and earlier conversations. Raises TrainError if its folder cannot be used."""
        self.exchanges: list[Exchange] = []
        self.waiting: list[LoadedImage] = []
        """Images for the next question"""
        self.refused = False
        """Whether any line failed"""
        self._speaker, self._sampling = speaker, sampling
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._generator = Generator(speaker.model, speaker.chat_tokenizer, cache)
        self._notes = self._generator.notes
        self._session = self._generator.session()

    def run(self, stdin: TextIO) -> None:
        """Read lines until /quit or the end of input. Ctrl-C ends an answer, or the line that is being typed."""
        for stream in (stdin, self._out, self._err):
            _tolerate_encoding_errors(stream)
        for note in self._notes:
            self._note(f"note: {note}")
        self._note("a line is a question; /image PATH... adds images; /help lists all commands")
        if "tools" in self._speaker.chat_tokenizer.template.mentions:
            self._note("no tools are defined here, and none are run: an answer that calls one is shown as text")
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
        """Do what one line says. False: it ends the conversation."""
        line = line.strip()
        if line.startswith("/") and not line.startswith("//"):
            name, *rest = line.split(maxsplit=1)
            return self._command(name, rest[0] if rest else "")
        if line:
            self.ask(line[1:] if line.startswith("//") else line)
        return True

    def ask(self, question: str) -> None:
        """Ask a question, and print the answer while it is generated."""
        exchange = Exchange(question=question, images=tuple(self.waiting))
        end_id = self._generator.end_id
        try:
            prompt = prompt_of([*self.exchanges, exchange], self._speaker, end_id=end_id, limit=self._generator.limit)
            if prompt.fewer_tiles:
                self._note("images are seen with fewer tiles, so that the conversation fits")
            tokens, was_stopped = self._stream_answer(prompt)
        except (ControlTextError, TemplateError) as error:
            self._refuse(f"not asked: {error}; rephrase it, or /clear")
            return
        except TooLongError as error:
            self._refuse(f"not asked: {error}; ask a shorter question, or start a new conversation with /clear")
            return
        except torch.OutOfMemoryError:
            self._refuse("not answered: the GPU's memory ran out; use fewer images, or start again with /clear")
            return
        answer = answer_text(self._speaker.chat_tokenizer.tokenizer, tokens, end_id)
        if was_stopped and not answer:
            self._note("stopped before the first word; the question is dropped")
            return
        self.exchanges.append(replace(exchange, answer=answer))
        self.waiting = []
        if was_stopped:
            self._note("stopped; the answer so far stays in the conversation")
        elif tokens[-1] != end_id:
            is_full = len(tokens) < self._sampling.max_new_tokens
            why = f"the model reads {self._generator.limit} positions" if is_full else "--max-new-tokens allows no more"
            self._note(f"cut off after {len(tokens)} tokens: {why}")
        elif not answer:
            self._note("the answer is empty")

    def add_images(self, arguments: str) -> None:
        """/image"""
        try:
            paths = [Path(name).expanduser() for name in shlex.split(arguments)]
        except (RuntimeError, ValueError) as error:  # no home folder; an unpaired quotation mark
            self._refuse(f"not added: {error}; put quotes around paths with spaces")
            return
        if not paths:
            num_dropped, self.waiting = len(self.waiting), []
            self._note(f"images removed: {num_dropped}; /image PATH... adds images")
            return
        images, problems = [], []
        for path in paths:
            try:
                images.append(load_image(path, self._speaker.geometry))
            except TrainError as error:
                problems.append(str(error))
        if problems:
            self._refuse("\n".join([*problems, "none of these images is added"] if images else problems))
            return
        self.waiting += images
        self._note(f"images for the next question: {len(self.waiting)}")

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
                self._refuse("not saved: expected one file whose name ends in .jsonl")
            elif not self.exchanges:
                self._refuse("not saved: there is no answer yet")
            else:
                self._save(Path(names[0]).expanduser())
        except OSError as error:
            self._refuse(f"not saved: {error.filename or arguments}: {error.strerror or error}")
        except (RuntimeError, ValueError) as error:
            self._refuse(f"not saved: {error}")

    def help(self, arguments: str) -> None:
        """/help"""
        texts = {f"{name} {command.arguments}": command.text for name, command in COMMANDS.items()}
        width = max(map(len, texts))
        self._note("\n".join(f"{usage:{width}}  {text}" for usage, text in texts.items()))

    def _save(self, path: Path) -> None:
        append_line(path, record_of(self.exchanges, path.parent))
        self._note(f"{path}: added the conversation as one line; rounds: {len(self.exchanges)}")
        paths = [image.path for exchange in self.exchanges for image in exchange.images]
        if outside := [name for name in (image_name(image, path.parent) for image in paths) if name.startswith("/")]:
            self._note(
                f"dsvl-prep reads only images in the file's folder or below it, and {outside[0]} is not; save the "
                "conversation in a folder that contains its images, or copy them there and change their paths"
            )

    def _command(self, name: str, arguments: str) -> bool:
        if name == "/quit":
            return False
        if name in COMMANDS:
            COMMANDS[name].run(self, arguments)
        else:
            hint = nearest(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
            self._refuse(f"{name}: no such command{hint} (type // for a question that begins with /)")
        return True

    def _stream_answer(self, prompt: Prompt) -> tuple[list[int], bool]:
        """Print the answer while it is generated. Returns its tokens, and whether Ctrl-C ended it."""
        stream = TextStream(self._speaker.chat_tokenizer.tokenizer)
        tokens: list[int] = []
        has_begun = False
        with _stop_on_interrupt() as asked_to_stop:
            for token in self._session.answer(prompt, self._sampling, key=("chat", len(self.exchanges))):
                tokens.append(token)
                if token != prompt.end_id:
                    has_begun = self._print(stream.add(token), has_begun)
                if asked_to_stop():
                    break
            self._print(stream.end(), has_begun)
        self._out.write("\n")
        self._out.flush()
        return tokens, asked_to_stop() and tokens[-1] != prompt.end_id

    def _print(self, piece: str, has_begun: bool) -> bool:
        """Print a piece of an answer, without leading white space. Returns whether the answer has begun."""
        piece = piece if has_begun else piece.lstrip()
        if piece:
            self._out.write(visible(piece))
            self._out.flush()
        return has_begun or bool(piece)

    def _refuse(self, text: str) -> None:
        self.refused = True
        self._note(text)

    def _note(self, text: str) -> None:
        self._err.write(f"{visible(text)}\n")
        self._err.flush()


class ChatCommand(NamedTuple):
    """A command: its arguments and its help text, as /help prints them, and what runs it."""

    arguments: str
    text: str
    run: Callable[[Chat, str], None]


COMMANDS: dict[str, ChatCommand] = {
    "/image": ChatCommand("PATH...", "add images to the next question; without a path: remove them", Chat.add_images),
    "/clear": ChatCommand("", "start a new conversation", Chat.clear),
    "/save": ChatCommand("FILE", "add the conversation to a .jsonl file for dsvl-prep's chat adapter", Chat.save),
    "/help": ChatCommand("", "list the commands", Chat.help),
    "/quit": ChatCommand("", "end the conversation, as Ctrl-D does", lambda chat, arguments: None),
}


@contextmanager
def _stop_on_interrupt() -> Iterator[StopFlag]:
    """Ctrl-C asks to stop after the current token; a second one stops at once."""
    if threading.current_thread() is threading.main_thread():
        with StopFlag().on_signals(signal.SIGINT) as flag:
            yield flag
    else:  # only the main thread gets signals
        yield StopFlag()


def _reader(stdin: TextIO) -> Callable[[], str | None]:
    """A function that returns the next line; None at the end."""
    if stdin is sys.stdin and stdin.isatty() and sys.stdout.isatty():  # else a prompt would be among the answers
        with suppress(ImportError):
            import readline  # noqa: F401 - `input` then supports editing and history
        return _typed_line
    return lambda: stdin.readline() or None


def _typed_line() -> str | None:
    try:
        return input(PROMPT)
    except EOFError:
        sys.stdout.write("\n")
        return None


def _tolerate_encoding_errors(stream: TextIO) -> None:
    """Undecodable input becomes an error of the question; output that the terminal cannot encode becomes `?`."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="surrogateescape" if stream.readable() else "replace")
