"""Chat in a terminal of its own: what Ctrl-C and Ctrl-D do there."""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S

pytest.importorskip("torch")
pytest.importorskip("transformers")

PROGRAM = """
import itertools, signal, sys, time
import torch
torch.set_num_threads(1)
from tests.support.tiny_models import loaded
from trainer.inference.chat import Chat
from trainer.inference.generate import Sampling
record = loaded()
steps = itertools.count()

def wait_for_ctrl_c(*_):
    if next(steps) == 3:
        pressed, ask = [], signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, lambda *call: (pressed.append(call), ask(*call)))
        print("in the middle", file=sys.stderr, flush=True)
        while not pressed:
            time.sleep(0.01)

chat = Chat(record, Sampling(max_new_tokens=10_000))  # tries the decoder's cache
record.model.decoder.base_model.register_forward_pre_hook(wait_for_ctrl_c)
chat.run(sys.stdin)
print("left", file=sys.stderr)
"""


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_the_program() -> None:
    import pty

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background may ignore it
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM], environment)
    screen = Screen(terminal)
    try:
        screen.until("> ")
        os.write(terminal, b"Tell me everything.\n")
        screen.until("in the middle")
        os.write(terminal, b"\x03")
        screen.until("stopped")
        screen.until("> ")
        os.write(terminal, b"a line that I take ba")
        screen.until("take ba")  # Ctrl-C drops keys that readline has heard of but not read; it waits for them
        os.write(terminal, b"\x03")
        screen.until("/quit or Ctrl-D", again=b"\x03")
        screen.until("> ")
        os.write(terminal, b"/help\n")
        screen.until("as Ctrl-D does", again=b"/help\n")  # a second Ctrl-C may have dropped the first
        screen.until("> ")
        os.write(terminal, b"\x04")
        screen.until("left")
        _, status = os.waitpid(child, 0)
        child = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)


class Screen:
    """What a program writes to its terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self._text = terminal, ""

    def until(self, text: str, again: bytes = b"") -> None:
        """Wait for a text, and continue after it. again: keys to press again, as a person does whom nothing answers."""
        end = time.monotonic() + LIMIT_S
        while text not in self._text:
            ready, _, _ = select.select([self._terminal], [], [], 3 if again else max(0.0, end - time.monotonic()))
            assert ready or (again and time.monotonic() < end), f"expected {text!r}, got {self._text[-2000:]!r}"
            if not ready:
                os.write(self._terminal, again)
                continue
            self._text += os.read(self._terminal, 65536).decode("utf-8", "replace")
        self._text = self._text.split(text, 1)[1]
