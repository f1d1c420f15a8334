"""Rewards: what counts as the answer of a completion, and when it equals the reference."""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import signal
import sys
import threading
import time
import traceback
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aent.cli import UsersCodeError
from aent_llm.data import mathematics, rewards, tiny
from aent_llm.data.announcements import boxed_answer, final_answer, hash_answer
from aent_llm.data.rewards import exact_match, is_correct, math_verify, parses, reward_function, score_completions

rationals = st.fractions(min_value=-50, max_value=50, max_denominator=40)
# Denominators 2^a 5^b: a finite decimal, so that no rounding is involved.
decimals = st.builds(
    lambda n, a, b: Fraction(n, 2**a * 5**b), st.integers(-999, 999), st.integers(0, 3), st.integers(0, 3)
)


def latex(value: Fraction, *, style: str) -> str:
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    if bottom == 1:
        return f"{sign}{top}"
    return {"frac": rf"{sign}\frac{{{top}}}{{{bottom}}}", "dfrac": rf"{sign}\dfrac{{{top}}}{{{bottom}}}"}.get(
        style, f"{sign}{top}/{bottom}"
    )


def decimal(value: Fraction) -> str:
    scaled = value * 10**6
    assert scaled.denominator == 1
    return f"{'-' if value < 0 else ''}{abs(scaled.numerator) // 10**6}.{abs(scaled.numerator) % 10**6:06d}".rstrip(
        "0"
    ).rstrip(".")


# ------------------------------------------------------------------------------------------------------- math_verify
@given(rationals, st.sampled_from(["frac", "dfrac", "/"]), st.sampled_from(["frac", "dfrac", "/"]), st.integers(2, 9))
def test_equal_rationals_earn_one_however_they_are_written(
    value: Fraction, gold: str, written: str, scale: int
) -> None:
    expanded = rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator) * scale}}}{{{value.denominator * scale}}}"
    completions = [rf"thus $\boxed{{{latex(value, style=written)}}}$.", rf"\boxed{{{expanded}}}"]
    assert math_verify(completions, [latex(value, style=gold)] * 2) == [1.0, 1.0]


@given(decimals)
def test_a_decimal_equals_its_fraction_both_ways(value: Fraction) -> None:
    assert math_verify([rf"\boxed{{{decimal(value)}}}"], [latex(value, style="frac")]) == [1.0]
    assert math_verify([rf"\boxed{{{latex(value, style='frac')}}}"], [decimal(value)]) == [1.0]


@given(rationals, rationals)
def test_unequal_rationals_earn_nothing(gold: Fraction, other: Fraction) -> None:
    if gold != other and gold * 100 != other and other * 100 != gold:  # math-verify lets 50 and 50% be equal
        assert math_verify([rf"\boxed{{{latex(other, style='frac')}}}"], [latex(gold, style="frac")]) == [0.0]


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        (r"\{1, 2\}", r"$\boxed{\{2,1\}}$", r"$\boxed{\{1,3\}}$"),
        ("(1, 2]", r"$\boxed{(1,2]}$", r"$\boxed{[1,2]}$"),
        (r"(-\infty,-2)\cup(1,\infty)", r"\boxed{(1,\infty)\cup(-\infty,-2)}", r"\boxed{(1,\infty)}"),
        (r"\sqrt{8}", r"\boxed{2\sqrt2}", r"\boxed{\sqrt2}"),
        ("x^2+2x+1", r"\boxed{(x+1)^2}", r"\boxed{(x+2)^2}"),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", r"\boxed{\text{Carla}}"),
        ("1,000", r"\boxed{1000}", r"\boxed{1}"),
        (r"10,\!000", r"\boxed{10{,}000}", r"\boxed{10}"),
        ("5", "The answer is 5.", "The answer is 6."),
        ("Half of 48 is 24.\n#### 72", r"\boxed{72}", r"\boxed{24}"),
        (r"We get $x=1$, so $\boxed{2}$.", r"\boxed{2}", r"\boxed{1}"),
        (r"\frac{1}{2}", r"first $\boxed{3}$, no: $\boxed{0.5}$", r"first $\boxed{0.5}$, no: $\boxed{3}$"),
        (r"\{1, 2\}", r"\boxed{1} and \boxed{2}", r"\boxed{1} and \boxed{3}"),
        ("4", r"\boxed{4} \boxed{4}", r"\boxed{1} \boxed{2} \boxed{3} \boxed{4}"),  # no reward for many guesses
    ],
)
def test_kinds_of_answers(reference: str, right: str, wrong: str) -> None:
    assert math_verify([right, wrong], [reference] * 2) == [1.0, 0.0]


def test_a_number_nobody_announces_earns_nothing() -> None:
    assert math_verify(["12 + 30 = 42", "42", "we have 42 apples", r"\boxed{4"], ["42"] * 4) == [0.0] * 4


def test_garbage_earns_zero_and_never_raises() -> None:
    garbage: list[Any] = [
        "",
        " ",
        "\x00\ud800",
        "\\boxed{",
        "\\boxed{}",
        "}{" * 500,
        r"\boxed{\frac{1}{0}}",
        r"\boxed{\frac{1}",
    ]
    garbage += [
        "\\boxed{" + "(" * 50 + "}",
        "$" * 3001,
        "answer " * 3000,
        "\U0001f600" * 99,
        [],
        [{"role": "assistant"}],
    ]
    garbage += [[{"role": "assistant", "content": None}], [{"role": "assistant", "content": [{"type": "image"}]}]]
    for reward in (math_verify, exact_match):
        assert reward(garbage, ["42"] * len(garbage)) == [0.0] * len(garbage)


@given(st.text(max_size=60) | st.text(alphabet="\\{}$^_/()[]+-=.,0123456789x boxedfrac", max_size=60))
def test_any_text_gives_a_reward(text: str) -> None:
    for completion in (text, rf"\boxed{{{text}}}"):
        assert math_verify([completion], ["1/7"])[0] in (0.0, 1.0)
        assert exact_match([completion], ["1/7"])[0] in (0.0, 1.0)


def test_a_word_and_a_formula_are_compared_as_formulas_and_two_words_as_words() -> None:
    assert math_verify([r"\boxed{abcd}", r"\boxed{ab\cdot cd}"], [r"ab \cdot cd", "abcd"]) == [1.0, 1.0]
    assert math_verify([r"\boxed{silent}", r"\boxed{Listen}"], ["listen", "listen"]) == [0.0, 1.0]


def test_a_completion_is_correct_from_half_a_reward_on() -> None:
    assert [is_correct(score) for score in (None, 0.0, 0.49, 0.5, 1.0)] == [False, False, False, True, True]


def test_a_computation_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= rewards.TIMEOUT_SECONDS <= 5  # 0 is no limit at all
    monkeypatch.setattr(rewards, "TIMEOUT_SECONDS", 1)
    start = time.monotonic()
    assert math_verify([r"\boxed{9^{9^{9^{9}}}}", r"\boxed{42}"], ["42", "42"]) == [0.0, 1.0]
    assert time.monotonic() - start < 30  # 1 s, and a busy machine


@pytest.mark.parametrize("formula", [r"\gcd(10^{10^{10}}, 3)", "9^{9^{9^{9}}}"])
@pytest.mark.parametrize("in_a_thread", [False, True])
def test_a_computation_that_no_signal_ends_is_killed(
    monkeypatch: pytest.MonkeyPatch, formula: str, in_a_thread: bool
) -> None:
    """The first is one call into C: Python sees no alarm during it, and in a thread there is no alarm at all."""
    monkeypatch.setattr(rewards, "TIMEOUT_SECONDS", 1)
    found: list[Any] = []

    def work() -> None:
        found.extend(math_verify([rf"\boxed{{{formula}}}", r"\boxed{84/2}"], ["42", "42"]))

    if in_a_thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout=120)
    else:
        work()
    assert found == [0.0, 1.0]


def test_a_comparing_process_that_dies_is_replaced() -> None:
    assert math_verify([r"\boxed{1/3}"], [r"\frac{2}{6}"]) == [1.0]
    (child,) = mathematics._CHILD
    child.kill()
    child.wait()
    assert math_verify([r"\boxed{1/7}"], [r"\frac{2}{14}"]) == [1.0]


def test_an_interrupted_question_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "TIMEOUT_SECONDS", 2)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    assert math_verify([r"\boxed{1/3}"], [r"\frac{2}{6}"]) == [1.0]
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            math_verify([r"\boxed{9^{9^{9^{9}}}}"], ["42"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert math_verify([r"\boxed{1/7}"], [r"\frac{2}{14}"]) == [1.0]  # the answer to the question before was 0


def test_a_fork_starts_a_comparing_process_of_its_own() -> None:
    """Two processes on one pipe would read each other's answers; ``datasets`` and trainers fork."""
    assert math_verify([r"\boxed{1/3}"], [r"\frac{2}{6}"]) == [1.0]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        cases = [([rf"\boxed{{{i}/3}}"], [rf"\frac{{{2 * (i + i % 2)}}}{{6}}"]) for i in range(1, 41)]
        found = pool.starmap(math_verify, cases, chunksize=1)
    assert found == [[float(i % 2 == 0)] for i in range(1, 41)]
    assert math_verify([r"\boxed{1/3}"], [r"\frac{2}{6}"]) == [1.0]


def test_a_reference_that_does_not_parse_is_left_out() -> None:
    assert [parses(text) for text in ("???", r"\frac{1}{", "", "42", r"\text{east}")] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert math_verify([r"\boxed{???}", r"\boxed{42}"], ["???", "42"]) == [None, 1.0]


def test_works_outside_the_main_thread() -> None:
    """The time limit of math-verify is a signal, which only the main thread can set."""
    found: list[Any] = []
    work = threading.Thread(
        target=lambda: found.extend(math_verify([r"\boxed{7/14}", r"\boxed{3}", "?"], ["0.5", "0.25", "1"]))
    )
    work.start()
    work.join(timeout=60)
    assert found == [1.0, 0.0, 0.0]


def test_order_is_kept_for_strings_and_for_messages() -> None:
    numbers = [(7 * i) % 40 for i in range(80)]
    references = [str(i % 40) for i in range(80)]
    expected = [float(a == i % 40) for i, a in enumerate(numbers)]
    assert 0 < sum(expected) < 80
    texts = [rf"so \boxed{{{a}}}" for a in numbers]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    for reward in (math_verify, exact_match):
        assert reward(texts, references, prompts=None, trainer_state=None) == expected
        assert reward(messages, references) == expected


@pytest.mark.parametrize("reward", [exact_match, math_verify])
def test_lengths_must_agree(reward: Any) -> None:
    with pytest.raises(ValueError, match="zip"):
        reward(["1", "2"], ["1"])


# ------------------------------------------------------------------------------------------------------- exact match
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She sells 9 * 2 = 18.\n#### 18", "18"),
        ("#### 1\n#### 2\nmore text", "2"),
        ("#### $1,234.50 ", "1234.50"),
        (r"\boxed{1}, then \boxed{\frac{a}{b}}", r"\frac{a}{b}"),
        (r"\boxed{\{1, \sqrt{2}\}}", r"\{1, \sqrt{2}\}"),
        (r"\boxed{3} and \boxed{cut off", "3"),
        (r"#### 5 but then \boxed{6}", "6"),
        ("\\boxed{6} but then\n#### 5", "5"),
        (r"\fbox{8}", "8"),
        (r"\boxed 9", "9"),
        ("  Paris.\n", "Paris"),
        ("$x + 1$", "x + 1"),
        ("1,234,567", "1234567"),
        ("(1,234)", "(1,234)"),  # a pair, not a number
        ("-1,000", "-1000"),
        ("the last number is 7 here", "the last number is 7 here"),
    ],
)
def test_final_answer(text: str, expected: str) -> None:
    assert final_answer(text) == expected


@given(st.integers(-(10**12), 10**12))
def test_thousands_separators_do_not_matter(number: int) -> None:
    written = [f"#### {number:,}", rf"\boxed{{{number}}}", f"{number:,}.", f"thus\n\n#### {number}\n"]
    assert exact_match(written, [f"{number}", f"#### {number:,}", f"{number}", f"{number:,}"]) == [1.0] * 4
    assert exact_match(written, [str(number + 1)] * 4) == [0.0] * 4


@given(
    st.recursive(
        st.sampled_from(["a", r"\{", r"\}", " 1", r"\\"]), lambda x: st.builds("{{{}}}{}".format, x, x), max_leaves=12
    )
)
def test_boxed_finds_its_closing_brace(content: str) -> None:
    assert boxed_answer(rf"\boxed{{0}} so \boxed{{{content}}}}} {{tail}}") == content.strip()


def test_nothing_marked_is_nothing_found() -> None:
    assert boxed_answer("no box {1}") is None
    assert hash_answer("### 3") is None


# ------------------------------------------------------------------------------------------------- scoring, as TRL does
ROWS = [{"prompt": "a", "answer": "1"}, {"prompt": [{"role": "user", "content": "b"}], "answer": "2"}]


def scored(reward: Any) -> list[float | None]:
    return score_completions(reward, ROWS, ["one", "two"], [[1], [2, 3]])


def test_a_reward_is_called_as_trl_calls_it() -> None:
    seen: dict[str, Any] = {}

    def reward(
        completions: Any, answer: Any, trainer_state: Any, log_extra: Any, log_metric: Any, **columns: Any
    ) -> Any:
        log_extra("seen", ["x", "y"])
        log_metric("mean", 0.5)
        seen.update(columns, completions=completions, answer=answer)
        return np.array([0.25, 0.5])

    assert scored(reward) == [0.25, 0.5]
    assert seen == {
        "prompts": [row["prompt"] for row in ROWS],
        "completions": ["one", [{"role": "assistant", "content": "two"}]],
        "completion_ids": [[1], [2, 3]],
        "answer": ["1", "2"],
    }


def test_a_reward_that_raises_is_named_with_its_line() -> None:
    def helper() -> None:
        raise ZeroDivisionError

    def mine(**_: Any) -> Any:
        helper()

    async def later(**_: Any) -> Any:
        helper()

    where = f"({__file__}, line {helper.__code__.co_firstlineno + 1}) raised ZeroDivisionError"
    for reward in (mine, later):
        with pytest.raises(UsersCodeError) as stopped:
            scored(reward)
        assert str(stopped.value) == f"the reward {reward.__name__!r} {where}"
        frames = traceback.extract_tb(cast(Any, stopped.value.__cause__).__traceback__)
        assert [frame.name for frame in frames] == [reward.__name__, "helper"]


def test_a_reward_that_ends_the_process_does_not() -> None:
    """``exit()`` would have ended a run with status 0."""

    def mine(**_: Any) -> Any:
        sys.exit()

    with pytest.raises(UsersCodeError, match=r"raised SystemExit$"):
        scored(mine)


def test_an_async_reward_is_awaited() -> None:
    async def later(completions: Any, **_: Any) -> list[float | None]:
        await asyncio.sleep(0)
        return [1.0, None]

    assert scored(later) == [1.0, None]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "the reward 'given' returned 1 values for 2 completions"),
        ([1.0, math.inf], r"the reward 'given' returned inf for prompt .*'b'.*, completion .*'two'"),
        (
            [-math.inf, 1.0],
            "the reward 'given' returned -inf for prompt 'a', completion 'one': expected one finite number",
        ),
        ([math.nan, 1.0], "the reward 'given' returned nan for prompt 'a'"),
        (["x", 1.0], "the reward 'given' returned 'x' for prompt 'a'"),
        ([1.0, [2]], r"the reward 'given' returned \[2\] for prompt .*'b'"),
    ],
)
def test_rewards_that_are_no_numbers_are_named(values: list[Any], message: str) -> None:
    def given(**_: Any) -> list[Any]:
        return values

    with pytest.raises(ValueError, match=message):
        scored(given)


# ------------------------------------------------------------------------------------------------------------- names
def test_built_in_names_and_the_embedded_task() -> None:
    assert reward_function("math_verify") is math_verify
    assert reward_function("exact_match") is exact_match
    problem = tiny.problems(1, seed=3)[0]
    wrong = str(int(problem["answer"]) + 1)
    assert reward_function("arithmetic")([problem["answer"], wrong], [problem["answer"]] * 2) == [1.0, 0.0]


def test_dotted_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_of_test.py").write_text(
        "def length(completions, answer, **kwargs):\n    return [float(len(c)) for c in completions]\n"
        "def strict(completions, answer):\n    return [0.0]\n"
        "weight = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("my_rewards_of_test:length", "my_rewards_of_test.length"):
        assert reward_function(path)(["ab", ""], ["", ""]) == [2.0, 0.0]
    with pytest.raises(ValueError, match="did you mean 'length'"):
        reward_function("my_rewards_of_test.lenght")
    with pytest.raises(ValueError, match=r"expected a function f\(completions, answer, \*\*kwargs\), got 3"):
        reward_function("my_rewards_of_test:weight")
    with pytest.raises(ValueError, match=r"\(completions, answer\), which does not take TRL's call"):
        reward_function("my_rewards_of_test:strict")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math_verfy", "did you mean 'math_verify'"),
        ("nonsense", "Known: math_verify, exact_match, arithmetic; one of your own is module:name"),
        ("no_such_package.reward", "importing 'no_such_package' failed"),
        ("json:exact_match", "json has no 'exact_match'"),
        ("json:dumps", "does not take TRL's call"),
    ],
)
def test_names_that_are_wrong(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_function(name)


def test_a_module_that_fails_to_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_of_test.py").write_text("import json\njson.loads('{')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="JSONDecodeError") as caught:
        reward_function("broken_of_test:f")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)
