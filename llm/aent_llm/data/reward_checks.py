"""Check what a reward returns, and say where it failed."""

from __future__ import annotations

import functools
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl.trainer.utils import is_async_callable

import aent
import aent_llm
from aent.cli import UsersCodeError

__all__ = ["blamed", "check_rewards"]

LARGEST = 1e18  # of a reward: TRL squares them in float32 for the deviation of a group
SHOWN = 200  # characters of a prompt and a completion in a message


def check_rewards(function: Callable[..., Any], name: str, report: Callable[[Any], None]) -> Callable[..., Any]:
    """Wrap a reward so that what it returns is one finite number, or None, per completion.

    Anything else goes to ``report`` as a sentence, an exception of the reward as a ``UsersCodeError``, and infinity
    stands in its place: ranks find it in the rewards that they exchange, and stop together.
    """

    def failed(error: BaseException, completions: Any) -> list[float | None]:
        report(blamed(f"the reward {name!r}", error))
        return [math.inf] * len(completions)

    def checked(found: Any, prompts: Any, completions: Any) -> list[float | None]:
        fault = _fault(found, len(completions))
        if fault is None:
            return list(found)
        row, what = fault
        where = "" if row is None else f" for prompt {_short(prompts[row])}, completion {_short(completions[row])}"
        report(f"the reward {name!r} returned {what}{where}")
        return [math.inf] * len(completions)

    if is_async_callable(function):

        @functools.wraps(function, updated=())
        async def later(*, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
            try:
                found = await function(prompts=prompts, completions=completions, **columns)
            except (Exception, SystemExit) as error:
                return failed(error, completions)
            return checked(found, prompts, completions)

        return later

    @functools.wraps(function, updated=())
    def now(*, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        try:
            found = function(prompts=prompts, completions=completions, **columns)
        except (Exception, SystemExit) as error:
            return failed(error, completions)
        return checked(found, prompts, completions)

    return now


def blamed(what: str, error: BaseException) -> UsersCodeError:
    """Name what failed and the line of its file; the cause is the error with the frames of that code alone."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    frames = traceback.extract_tb(trace)
    theirs = [one for one in frames if one.filename == frames[0].filename and not _is_ours(one.filename)]
    where = [f" ({one.filename}, line {one.lineno})" for one in theirs[-1:]]
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    fault = UsersCodeError(f"{what}{''.join(where)} raised {said}")
    fault.__cause__ = error.with_traceback(trace)
    return fault


def _is_ours(file: str) -> bool:
    return any(Path(file).is_relative_to(Path(str(one.__file__)).parent) for one in (aent, aent_llm))


def _fault(found: Any, expected: int) -> tuple[int | None, str] | None:
    """(row, what is wrong there) of the first bad value; the row is None where the answer as a whole is wrong."""
    if isinstance(found, str | bytes | dict) or not hasattr(found, "__len__") or not hasattr(found, "__iter__"):
        return None, f"a {type(found).__name__}"
    if len(found) != expected:
        return None, f"{len(found)} values for {expected} completions"
    for row, value in enumerate(found):
        if value is None:
            continue
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= LARGEST:
            return row, f"{value!r}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
