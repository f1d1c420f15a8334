"""SIGTERM and SIGINT as a request to stop: while a trainer trains, at the end of the step and with a checkpoint.

    with signals.handled() as stop:      # ``python -m aent_llm train`` does this
        trainer.stop = stop
        trainer.train()                  # raises Interrupted once the checkpoint is whole

Schedulers send SIGTERM some time before they kill. Elsewhere than between steps (loading, evaluation) ``Interrupted``
is raised at once, and so it is by a second Ctrl-C. All ranks of a trainer stop at the same step, whichever got the
signal. Once all is written (``stop.done``) a signal changes nothing.

Left out: signals of other names (SIGUSR1), and a checkpoint in the middle of a step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Interrupted", "Stop", "handled", "whole_process"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TWICE_SECONDS = 1.0  # a launcher passes a terminal's Ctrl-C on to processes that have it already


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop; ``checkpoint`` is what was saved for it, if anything."""

    def __init__(self, number: int, checkpoint: Path | None = None):
        super().__init__(signal.Signals(number).name)
        self.number, self.checkpoint = number, checkpoint

    @property
    def status(self) -> int:
        """Exit status by convention: 128 + the signal's number."""
        return 128 + self.number


class Stop:
    """Whether a signal has asked for a stop, and whether that can wait for the end of a step."""

    def __init__(self) -> None:
        self.number = 0  # of the first signal
        self.done = False  # nothing is left that a signal could stop
        self._at = 0.0
        self._waits = False

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """Only note a signal inside the block, for the trainer to act on; raises one that it did not act on after it.

        Raises:
            Interrupted: a signal came that no step followed, or a second SIGINT.
        """
        self._waits, self.number = True, 0
        try:
            yield
        finally:
            self._waits = False
        if self.number:
            raise Interrupted(self.number)

    def _ask(self, number: int, _: Any) -> None:
        if self.done:
            return
        again = number == signal.SIGINT and self.number and time.monotonic() - self._at > TWICE_SECONDS
        if again or not self._waits:
            raise Interrupted(number)
        if not self.number:
            self.number, self._at = number, time.monotonic()
            name = signal.Signals(number).name
            text = f"\n{name}: saving a checkpoint at the end of this step; a second Ctrl-C stops at once\n"
            os.write(2, text.encode())  # unlike print, allowed while another print is going on


@contextlib.contextmanager
def handled() -> Iterator[Stop]:
    """Handle SIGTERM and SIGINT inside the block; the handlers before it are put back. Main thread only, else nothing.

    Raises:
        Interrupted: at once where nothing waits for the end of a step, else see ``Stop``.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def whole_process(command: Callable[[], int]) -> int:
    """Run a command as all that the process does: from its imports on a signal ends it in one line, after it none does.

    The exit status of a command that is done stays its own while the interpreter shuts down, which takes a second with
    torch.
    """
    stop = Stop()
    for number in SIGNALS:
        signal.signal(number, stop._ask)
    try:
        status = command()
        stop.done = True
    except Interrupted as stopped:  # before or after the part of the command that tells errors
        print(f"stopped by {stopped}", file=sys.stderr)
        return stopped.status
    return status
