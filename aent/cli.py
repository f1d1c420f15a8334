"""What the command lines share: a mistake of the user's is one line on stderr and exit status 2, never a traceback.

    parser = Parser(prog="python -m toymdp")     # argparse with suggestions and without the usage in front of an error
    sys.exit(run("toymdp", lambda: command(parser.parse_args()), extra="figures"))

``AENT_DEBUG=1`` in the environment shows tracebacks. The standard library is enough here, so that ``--help`` is instant
and a missing package can be named.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, NoReturn

from aent.extras import missing
from aent.names import suggest

__all__ = [
    "FOR_USERS",
    "BrokenOff",
    "Parser",
    "UsersCodeError",
    "describe",
    "one_line",
    "positive_number",
    "run",
    "run_as",
    "whole_number",
    "workers",
]

OURS = ("aent", "toymdp", "paper_figures", "aent_llm", "benchmarks", "experiments")
DEBUG = "AENT_DEBUG"


class BrokenOff(RuntimeError):
    """A computation cannot go on, through no mistake of the input: one line and status 1."""


class UsersCodeError(BrokenOff):
    """A function of the user's own has failed; its error, with the frames of that function, is the ``__cause__``."""


GIVEN_UP = (FloatingPointError, BrokenExecutor, BrokenOff)
FOR_USERS = (ImportError, MemoryError, OSError, ValueError, *GIVEN_UP)  # told in one line; others are our faults
WORKERS_PER_CORE = 8  # more only cost memory
BROKEN_OFF = 1
KILLED = "a worker process was killed, as the system does when memory runs out"
BROKEN_PIPE, INTERRUPTED = 141, 130  # 128 + the number of the signal, as shells say it


def run(name: str, command: Callable[[], int | None], *, extra: str) -> int:
    """Run a command and return its exit status; errors that are written for users become one line and status 2.

    What is no mistake of the input (NaN in a computation, a killed worker, ``BrokenOff``) is one line and status 1.

    Args:
        name: what stands in front of the line.
        command: returns an exit status, None for 0.
        extra: the extra of the distribution that the command needs, named when a package is missing.
    """
    _prepare_streams()
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # of argparse: 0 after --help, 2 after its line
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except BrokenPipeError:  # the reader of a pipe has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at exit goes nowhere
        return BROKEN_PIPE
    except KeyboardInterrupt as stop:
        print(f"{name}: {f'stopped by {stop}' if str(stop) else 'interrupted'}", file=sys.stderr)
        return getattr(stop, "status", INTERRUPTED)
    except FOR_USERS as error:
        if DEBUG in os.environ:
            raise
        print(f"{name}: {describe(error, extra=extra)}", file=sys.stderr)
        return BROKEN_OFF if isinstance(error, GIVEN_UP) else 2


def run_as(package: str, command: str) -> NoReturn:
    """Run ``python -m package command`` with this process's arguments, as the module of the command does when run."""
    sys.argv[1:1] = [command]
    runpy.run_module(package, run_name="__main__", alter_sys=True)
    raise SystemExit(0)


def describe(error: Exception, *, extra: str) -> str:
    """Describe an error of ``FOR_USERS`` in one line, with a hint at the traceback where the words are not ours."""
    text = one_line(str(error)) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in OURS:
        by_python = text.startswith(("No module named", "import of"))  # else somebody has said it better
        return missing(error.name, extra) if by_python else text
    if isinstance(error, MemoryError):
        return f"not enough memory ({text}); ask for less at a time"
    if isinstance(error, FileNotFoundError) and error.filename is None and len(error.args) > 1:  # of os.getcwd
        return "the current folder no longer exists; change to another one"
    if isinstance(error, BrokenExecutor):
        return f"{KILLED}; give fewer --jobs"
    if isinstance(error, OSError | FloatingPointError) or _raised_by_us(error):
        return text
    return f"{text} ({DEBUG}=1 shows where this was raised)"


def _raised_by_us(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = {} if trace is None else trace.tb_frame.f_globals
    return (module.get("__package__") or module.get("__name__", "")).partition(".")[0] in OURS  # of __main__ too


def _stray(word: str, parser: argparse.ArgumentParser) -> str:
    """Say what a word is that stands where only flags are expected."""
    kind = "is a folder" if os.path.isdir(word) else "is a file" if os.path.exists(word) else "is no flag"
    known = [flag for flag in parser._option_string_actions if flag.startswith("--") and flag != "--help"]
    such = f", such as {'--out' if '--out' in known else known[0]}" if known else ""
    return f"; {word} {kind}, and this command takes flags only{such};"


def _prepare_streams() -> None:
    """Let every character be printed, as ``?`` where the encoding has none, and closed streams take what they get."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: no usage in front, the nearest known name where one is unknown.

    An empty value is an error: shells make one of a variable that is not set.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message)}\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and suggest the nearest flag for an unknown one (argparse alone does not).

        ``set_defaults(parser=...)`` on a subparser says whose flags are known.
        """
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(found, "parser", self)
            flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            near = (suggest(flag, parser._option_string_actions) for flag in flags)
            hint = next(filter(None, near), ";").replace("'", "")
            if not flags:
                hint = _stray(unknown[0], parser)
            parser.error(f"unknown arguments: {' '.join(unknown)}{hint} `{parser.prog} --help` shows what is possible")
        return found

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not arg_string.strip() and action.nargs != argparse.PARSER:  # that is a command with all its words
            raise argparse.ArgumentError(action, f"expected a value, got {arg_string!r}")
        return super()._get_value(action, arg_string)  # type: ignore[misc]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            hint = suggest(str(value), known)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{hint} (choose from {', '.join(map(repr, known))})"
            )


def one_line(text: str) -> str:
    r"""Put a text on one line; what no terminal should be sent (control codes, halves of characters) becomes ``?``.

    Examples:
        >>> one_line("two\n  lines, \x1b[31mred")
        'two lines, ?[31mred'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make a type for ``add_argument``: whole numbers from ``least`` to ``most``."""
    wanted = f"a whole number >= {least}" if most is None else f"a whole number from {least} to {most}"

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return number

    return convert


def workers(text: str) -> int:
    """Convert a number of joblib workers: -1 for one per core, else at most ``WORKERS_PER_CORE`` per core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        return cores if text.strip() == "-1" else whole_number(1, WORKERS_PER_CORE * cores)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or -1 for one per core ({cores})") from None


def positive_number(text: str) -> float:
    """Convert a text to a finite number above zero, as a type for ``add_argument``."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"expected a finite number > 0, got {text!r}")
    return number
