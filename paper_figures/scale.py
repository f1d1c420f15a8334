"""How much work a figure does, and how it tells the progress bar about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Value = TypeVar("Value")
Progress = Callable[[int, int], None]
Frame = Any  # a pandas DataFrame; pandas ships no types, and what a checker infers of its own code rejects plain chains

NAMES = ("smoke", "default", "full")


@dataclass(frozen=True)
class Scale:
    """smoke: seconds, shows that everything runs. default: minutes, the published numbers. full: more seeds."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"unknown scale {self.name!r}: expected one of {', '.join(NAMES)}")

    def pick(self, *, smoke: Value, default: Value, full: Value) -> Value:
        """The value of a knob at this scale."""
        return {"smoke": smoke, "default": default, "full": full}[self.name]


def silent(done: int, total: int) -> None:
    """The progress report of callers that do not watch: ``progress(done, total)``."""
