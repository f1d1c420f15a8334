"""Rewards: is the answer of a completion the reference answer?

A reward follows TRL's contract, ``f(completions, answer, **kwargs) -> list[float | None]``: one number per completion,
in order; None leaves the row out. Completions are strings, or lists of messages ``{"role": ..., "content": ...}`` when
the prompts are conversational. Whatever a model writes gives a reward, never an exception: what cannot be read is 0.0.
A reference may be text or a number; where there is none (None, NaN) the reward is None.

``announcements`` finds the final answer and ``answers`` reads it, for every reward alike; the rewards differ in how
they compare it.

Left out on purpose: format and length rewards, reward models. Any Python callable of that contract can be named by its
dotted path instead (``reward_function``).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aent.cli import UsersCodeError
from aent.registry import Registry
from aent_llm.data import mathematics
from aent_llm.data.announcements import announced_answer, completion_text, read_final
from aent_llm.data.answers import PLAIN, decimals_agree, differ, read_answer, reference_text, same_answer

Completion = str | Sequence[dict[str, Any]]
Reward = Callable[..., list[float | None]]

CORRECT_REWARD = 0.5  # a completion is correct when its reward is at least this
TIMEOUT_SECONDS = 3  # of one parse and of one comparison; a usual one takes a millisecond, 9^{9^{9}} for ever


# ----------------------------------------------------------------------------------------------------------- rewards
def exact_match(completions: Sequence[Completion], answer: Sequence[Any], **kwargs: Any) -> list[float | None]:
    r"""Return 1 where the final answer is the reference as text, else 0; None where there is no reference.

    A completion that announces no answer is all answer. Ways of writing that ``answers.read_answer`` removes do not
    matter, nor does a unit that one side leaves out. A decimal number counts by its value, so 42.0 is 42, and the
    reference 1e-7 is met by ``1e-7``, ``10^{-7}`` and ``0.0000001``; True is met by ``True`` only. 1/2 is not 0.5 here:
    that is what ``math_verify`` is for. The reference may be the bare answer or a whole solution that ends in
    ``#### 42`` or ``\boxed{42}``.

    Examples:
        >>> exact_match(["6 * 7 = 42\n#### 42", "#### 41", "42", r"\boxed{10^{-7}}"], ["#### 42", 42, 42.0, 1e-7])
        [1.0, 0.0, 1.0, 1.0]
    """
    pairs = zip(completions, map(reference_text, answer), strict=True)
    return [None if expected is None else _matched(completion_text(text), expected) for text, expected in pairs]


def math_verify(completions: Sequence[Completion], answer: Sequence[Any], **kwargs: Any) -> list[float | None]:
    r"""Return 1 where the announced answer equals the reference as mathematics (``math-verify``), else 0.

    A completion that announces no answer (see ``announcements``) earns nothing: a number that merely stands somewhere,
    as where the length limit cut the completion off, is none. Fractions, decimals, sets, intervals and matrices are
    compared by value; words, and names of several capital letters, as text without regard to case. Decimals are equal
    that agree to six places, or to six digits below 1; ``1,1,2`` is not ``1,2``, but ``\{1,1,2\}`` is ``\{1,2\}``;
    ``(3,4)`` is not ``3,4``, but ``y=4, x=3``, in the order of the names. Numerals of different bases differ. A unit
    matters only where both answers have one and it is a common one: 5 cm is not 5 m, but 5.

    A parse or a comparison is given up after ``TIMEOUT_SECONDS``, and counts as wrong; it runs in a process of its own.

    Returns:
        1.0 or 0.0 per completion; None where the reference is missing or cannot be read (``check_problems`` finds it).

    Examples:
        >>> math_verify([r"so $\boxed{0.5}$", "The answer is **1/2**", "1/2", r"\boxed{2}"], [r"\frac{1}{2}"] * 4)
        [1.0, 1.0, 0.0, 0.0]
    """
    pairs = zip(completions, map(reference_text, answer), strict=True)
    return [None if expected is None else _verified(completion_text(text), expected) for text, expected in pairs]


def arithmetic(completions: Sequence[Completion], answer: Sequence[Any], **kwargs: Any) -> list[float | None]:
    """Return the reward of the embedded task, ``aent_llm.data.tiny.reward``."""
    from aent_llm.data.tiny import reward

    return [*reward(completions, answer, **kwargs)]


def _matched(text: str, reference: str) -> float:
    return float(same_answer(read_final(text), read_final(reference)))


def _verified(text: str, reference: str) -> float | None:
    if not parses(reference):
        return None
    announced, expected = announced_answer(text), read_final(reference)
    if announced is None:
        return 0.0
    given = read_answer(announced)
    if same_answer(given, expected):
        return 1.0
    alike = given.key.casefold() == expected.key.casefold()
    words = given.is_words + expected.is_words  # to sympy "listen" is a product, and so equal to "silent"
    if words == 2 or (words and alike):
        return float(alike)
    if differ(given, expected):
        return 0.0
    if decimals_agree(given, expected) and (
        given.variable == expected.variable or "" in (given.variable, expected.variable)
    ):
        return 1.0
    return float(mathematics.equal(expected, given, seconds=TIMEOUT_SECONDS))


@functools.lru_cache(maxsize=8192)
def parses(reference: str) -> bool:
    """Tell whether ``math_verify`` can read this reference as a formula or a name."""
    final = read_final(reference)
    return bool(PLAIN.fullmatch(final.value)) or mathematics.readable(final, seconds=TIMEOUT_SECONDS)


def is_plain(reference: str) -> bool:
    """Tell whether a reference is a decimal, a fraction of whole numbers or one word, which needs no parser."""
    return bool(PLAIN.fullmatch(read_final(reference).value))


def score_completions(
    reward: Callable[..., Any],
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
) -> list[float | None]:
    """Call a reward as TRL does on one completion of each row; a conversation is answered by a message.

    Args:
        reward: TRL's contract, plain or async; ``trainer_state`` is None, what it logs is dropped.
        rows: the problem of each completion: "prompt" and the columns that the reward reads.
        texts: the completions.
        token_ids: of each completion.

    Returns:
        One finite number per completion, or None where the reward gives none.

    Raises:
        ValueError: anything else, as in training (``reward_checks.py``); the message shows prompt and completion.
        UsersCodeError: the reward raised an error; the message names it and its line.
    """
    from aent_llm.data.reward_checks import check_rewards

    faults: list[Any] = []
    checked = check_rewards(reward, getattr(reward, "__name__", type(reward).__name__), faults.append)
    given = checked(
        prompts=[row["prompt"] for row in rows],
        completions=[
            text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ],
        completion_ids=[list(ids) for ids in token_ids],
        trainer_state=None,
        log_extra=lambda *_: None,
        log_metric=lambda *_: None,
        **{key: [row[key] for row in rows] for key in rows[0] if key != "prompt"},
    )
    values = asyncio.run(given) if inspect.iscoroutine(given) else given
    if faults and isinstance(faults[0], UsersCodeError):
        raise faults[0]
    if faults:
        raise ValueError(f"{faults[0]}: expected one finite number, or None, per completion")
    return [None if value is None else float(value) for value in values]


def is_correct(score: float | None) -> bool:
    """Tell whether a completion with this reward is correct: at least ``CORRECT_REWARD``; without one it is not."""
    return score is not None and score >= CORRECT_REWARD


# ------------------------------------------------------------------------------------------------------------- names
REWARDS: Registry[Reward] = Registry(
    "reward",
    {"math_verify": math_verify, "exact_match": exact_match, "arithmetic": arithmetic},
    expected="a function f(completions, answer, **kwargs)",
    accepts=callable,
)


def reward_function(name: str) -> Reward:
    """Look up a reward: ``math_verify``, ``exact_match``, ``arithmetic``, or the path of a function of your own.

    A path is ``package.module:function`` or ``package.module.function``; the function must take TRL's keyword call,
    ``f(completions, answer, **kwargs)``.

    Raises:
        ValueError: the name is unknown, the path cannot be imported, or what it names cannot be called so.
    """
    return _check_call(*REWARDS.find(name))


def _check_call(name: str, function: Any) -> Any:
    """Refuse now what TRL would only trip over at the first step, after the model is loaded."""
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
