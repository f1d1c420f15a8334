"""What the fields of a rule may hold: finite numbers (arrays of them for controllers), within the range of the rule.

A rule is a frozen dataclass. Fields annotated as numbers are checked when it is made; a class may bound some of them,

    ranges: ClassVar[dict[str, str]] = {"share": "(0, 1]"}

and inherits the bounds of its bases. Everything else about a rule is checked by the rule itself.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from typing import Any

import numpy as np

__all__ = ["check_numbers", "is_finite_number", "is_for_numbers", "is_whole_number", "is_within"]

_NUMBERS = {"float", "int", "Scalar"}
_AROUND = {"None", "Optional", "typing", "np", "numpy", "floating", "ndarray"}  # words beside them in an annotation


def check_numbers(rule: Any, *, arrays: bool = False) -> None:
    """Check every field of a dataclass that is annotated as a number.

    Args:
        rule: a frozen dataclass; ``None`` is fine where the annotation says so.
        arrays: whether arrays of numbers are fine too.

    Raises:
        ValueError: text, a bool, NaN, infinity, or a number outside the ``ranges`` of its class.

    Examples:
        >>> from aent.shaping import KLCovariance
        >>> KLCovariance(share=2.0)
        Traceback (most recent call last):
        ValueError: KLCovariance(share=2.0): share must be in (0, 1], e.g. 0.002
    """
    ranges: dict[str, str] = {}
    for base in reversed(type(rule).__mro__):
        ranges |= vars(base).get("ranges", {})
    for field in dataclasses.fields(rule):
        value, words = getattr(rule, field.name), _words(field)
        if not is_for_numbers(field) or (value is None and "None" in words):
            continue
        given = f"{type(rule).__name__}({field.name}={value!r}): {field.name}"
        if not (is_finite_number(value) or (arrays and _are_finite_numbers(value))):
            raise ValueError(f"{given} must be a finite number")
        if words & _NUMBERS == {"int"} and np.any(np.asarray(value) % 1):
            raise ValueError(f"{given} must be a whole number")
        if (range_ := ranges.get(field.name)) is not None and not is_within(value, range_):
            example = "" if field.default in (dataclasses.MISSING, None) else f", e.g. {field.default:g}"
            raise ValueError(f"{given} must be in {range_}{example}")


def is_finite_number(value: Any) -> bool:
    """Whether ``value`` is one real finite number, numpy's scalars included; a bool is none."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def is_whole_number(value: Any) -> bool:
    """Whether ``value`` is an integer, numpy's included; a bool is none, nor is 2.0."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_within(value: Any, range_: str) -> bool:
    """Whether a number, or every one of an array, lies in a range such as ``(0, 1]``."""
    low, high = map(float, range_[1:-1].split(","))
    above = value > low if range_[0] == "(" else value >= low
    below = value < high if range_[-1] == ")" else value <= high
    return bool(np.all(above & below))


def is_for_numbers(field: dataclasses.Field[Any]) -> bool:
    """Whether a field is annotated as a number, or as a number or None."""
    words = _words(field)
    return bool(words & _NUMBERS) and words <= _NUMBERS | _AROUND


def _are_finite_numbers(value: Any) -> bool:
    if not isinstance(value, np.ndarray | list | tuple):
        return False
    values = np.asarray(value)
    return values.dtype.kind in "fiu" and bool(np.all(np.isfinite(values)))


def _words(field: dataclasses.Field[Any]) -> set[str]:
    annotation = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    return set(re.findall(r"\w+", annotation))
