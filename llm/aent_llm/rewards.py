"""Rewards: is the answer of a completion the reference answer?

A reward follows TRL's contract, ``f(completions, answer, **kwargs) -> list[float | None]``: one number per completion,
in order; None leaves the row out. Completions are strings, or lists of messages ``{"role": ..., "content": ...}`` when
the prompts are conversational. Whatever a model writes gives a reward, never an exception: what cannot be read is 0.0.

Left out on purpose: format and length rewards, reward models. Any Python callable of that contract can be named by its
dotted path instead (``reward_function``).
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Completion = str | Sequence[dict[str, Any]]
Reward = Callable[..., list[float | None]]

TIMEOUT_SECONDS = 3  # of one parse and of one comparison; a usual one takes a millisecond, 9^{9^{9}} for ever
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s\\{}$]+)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace, \{, is part of the answer and nests nothing
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


# ------------------------------------------------------------------------------------------------------ reading text
def _last_box(text: str) -> tuple[int, str] | None:
    r"""(start, content) of the last ``\boxed{...}`` whose braces balance."""
    for opening in reversed(list(_BOX.finditer(text))):
        depth = 1
        for brace in _BRACE.finditer(text, opening.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return opening.start(), text[opening.end() : brace.start()].strip()
    bare = list(_BARE_BOX.finditer(text))
    return (bare[-1].start(), bare[-1].group(1)) if bare else None


def boxed_answer(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` (or ``\fbox{...}``) with balanced braces holds, or None: the answers of MATH.

    Examples:
        >>> boxed_answer(r"so \boxed{1}, no: $\boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
    """
    found = _last_box(text)
    return found[1] if found else None


def hash_answer(text: str) -> str | None:
    """What follows the last ``####`` on its line, or None: the answers of GSM8K.

    Examples:
        >>> hash_answer("6 * 7 = 42\\n#### 42")
        '42'
    """
    start = text.rfind("####")
    return text[start + 4 :].strip().partition("\n")[0].strip() if start >= 0 else None


def final_answer(text: str) -> str:
    r"""The final answer: the later of the last ``\boxed{...}`` and the last ``#### ...``; with neither, the whole text.

    It is stripped of white space, enclosing ``$``, a full stop at the end, a currency sign before a number and the
    thousands separators of a number (``1,000``, ``1,\!000``, ``1{,}000``). Nothing else is made equal: ``42.0`` is not
    ``42`` (that is what ``math_verify`` is for), and the last number of a text is not taken for its answer.

    Examples:
        >>> [final_answer(t) for t in ("Paris.", r"it is $\boxed{1,000}$", "we pay\n#### $1,000")]
        ['Paris', '1000', '1000']
    """
    box, mark = _last_box(text), text.rfind("####")
    found = box[1] if box and box[0] > mark else hash_answer(text)
    answer = " ".join((text if found is None else found).replace(r"\!", "").replace("{,}", ",").split())
    answer = answer.removesuffix(".").strip()
    if len(answer) > 1 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1].strip()
    number = re.sub(r"^\\?[$€£¥]\s*(?=[\d.])", "", answer)
    return number.replace(",", "") if _GROUPED.fullmatch(number) else number


def completion_text(completion: Completion) -> str:
    """The text of a completion: itself, or the content of its last message ("" when there is none)."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, list):  # parts of a multi-modal message
        content = "".join(part.get("text") or "" for part in content)
    return content if isinstance(content, str) else ""


# ----------------------------------------------------------------------------------------------------------- rewards
def exact_match(completions: Sequence[Completion], answer: Sequence[str], **kwargs: Any) -> list[float | None]:
    r"""1 when ``final_answer`` of the completion is that of the reference, letter by letter; else 0.

    The reference may be the bare answer or a whole solution that ends in ``#### 42`` or ``\boxed{42}``.

    Examples:
        >>> exact_match(["6 * 7 = 42\n#### 42", "#### 41", "42"], ["#### 42"] * 3)
        [1.0, 0.0, 1.0]
    """
    pairs = zip(completions, answer, strict=True)
    return [float(final_answer(completion_text(text)) == final_answer(reference)) for text, reference in pairs]


def math_verify(completions: Sequence[Completion], answer: Sequence[str], **kwargs: Any) -> list[float | None]:
    r"""1 when the completion's answer equals the reference as mathematics (``math-verify``), else 0; None: see Returns.

    Read from a completion: the last ``\boxed{...}`` (boxes next to each other make a set); without one, a formula or
    number announced by "answer" ("the answer is 42"). A number that merely stands somewhere, as where the length limit
    cut a completion off, earns nothing. Fractions, decimals, sets, intervals, matrices are compared by value.

    A parse or a comparison is given up after ``TIMEOUT_SECONDS``, and counts as wrong. The limit is a signal, which
    exists in the main thread only: called from another thread there is none (``math-verify`` warns of it once).

    Returns:
        1.0 or 0.0 per completion; None where the reference itself cannot be parsed (``check_problems`` finds these).

    Examples:
        >>> math_verify([r"so $\boxed{0.5}$", "The answer is 1/2", "1/2", r"\boxed{2}"], [r"\frac{1}{2}"] * 4)
        [1.0, 1.0, 0.0, 0.0]
    """
    pairs = zip(completions, answer, strict=True)
    return [_verified(completion_text(text), reference) for text, reference in pairs]


def arithmetic(completions: Sequence[Completion], answer: Sequence[str], **kwargs: Any) -> list[float | None]:
    """The reward of the embedded task, ``aent_llm.tiny.reward``."""
    from .tiny import reward

    return [*reward(completions, answer, **kwargs)]


def _verified(text: str, reference: str) -> float | None:
    from math_verify import verify
    from math_verify.errors import TimeoutException

    expected = _parsed_reference(reference)
    if not parses(reference):
        return None
    # An alarm that rings between the end of the work and its cancelling escapes math-verify's own handlers.
    try:
        return float(verify(expected, _parsed(text), timeout_seconds=_seconds()))
    except (Exception, TimeoutException):
        return 0.0


def parses(reference: str) -> bool:
    """Whether ``math_verify`` can read this reference answer: as a formula, not only as a string of characters."""
    return any(not isinstance(value, str) for value in _parsed_reference(reference))


@functools.lru_cache(maxsize=8192)
def _parsed_reference(reference: str) -> list[Any]:
    r"""A reference is all answer, so it is read as if boxed: bare ``(1, 2]`` or ``\{1, 2\}`` is not found otherwise."""
    text = hash_answer(reference) or reference
    return _parsed(text if _BOX.search(text) else rf"\boxed{{{text}}}")


def _parsed(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    from math_verify.errors import TimeoutException

    latex = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    plain = ExprExtractionConfig(try_extract_without_anchor=False)
    seconds: Any = _seconds()  # math-verify takes None, though its annotation does not say so
    try:
        return parse(text, [latex, plain], extraction_mode="first_match", parsing_timeout=seconds)
    except (Exception, TimeoutException):
        return []


def _seconds() -> int | None:
    return TIMEOUT_SECONDS if threading.current_thread() is threading.main_thread() else None


# ------------------------------------------------------------------------------------------------------------- names
BUILT_IN: dict[str, Reward] = {"math_verify": math_verify, "exact_match": exact_match, "arithmetic": arithmetic}


def reward_function(name: str) -> Reward:
    """The reward of this name: ``math_verify``, ``exact_match``, ``arithmetic`` or a dotted path to a callable.

    A path is ``package.module:function`` or ``package.module.function``; the callable must take TRL's keyword call,
    ``f(completions, answer, **kwargs)``.

    Raises:
        ValueError: the name is unknown, the path cannot be imported, or what it names cannot be called so.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if "." not in name and ":" not in name:
        known = ", ".join(BUILT_IN)
        raise ValueError(
            f"unknown reward {name!r}{did_you_mean(name, BUILT_IN)} Expected one of {known}, or the dotted path of a "
            "callable (package.module:function)"
        )
    module_name, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"reward {name!r}: importing {module_name!r} failed ({type(error).__name__}: {error}). Give the path of a "
            "module that imports from this folder, or add its folder to PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(f"reward {name!r}: {module_name} has no {attribute!r}{did_you_mean(attribute, vars(module))}")
    return _checked(name, getattr(module, attribute))


def _checked(name: str, function: Any) -> Any:
    """Refuse now what TRL would only trip over at the first step, after the model is loaded."""
    if not callable(function):
        raise ValueError(
            f"reward {name!r} is a {type(function).__name__}, expected a function f(completions, answer, **kwargs)"
        )
    if not hasattr(function, "__name__"):
        raise ValueError(f"reward {name!r} has no __name__, under which TRL logs it: give it one, or write a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # built-in callables do not tell
        return function
    given = ("prompts", "completions", "completion_ids", "answer", "trainer_state", "log_extra", "log_metric")
    try:
        signature.bind(**dict.fromkeys(given))
    except TypeError as error:
        raise ValueError(
            f"reward {name!r} has the signature {signature}, which does not take TRL's call ({error}). "
            "Write it as f(completions, answer, **kwargs)"
        ) from error
    return function


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else "."
