r"""Compare answers as mathematics with ``math-verify``, in a process of its own that may be killed.

A model may write ``\gcd(10^{10^{10}}, 3)``, which sympy computes inside one call into C: no signal ends that, in no
thread. So ``equal`` asks a child process, which gives itself a limit of time (math-verify's own alarm, then the
kernel's) and of memory. A child that dies counts as "not equal", and the next question starts a new one. It works from
any thread, one question at a time. Starting takes about two seconds, an answer a few milliseconds.

Left out: a pool of such processes (one comparison takes milliseconds, a rollout takes seconds).
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from aent_llm.data.answers import DATE, NO_UNIT, RATIO, UNIT_TEXT, VARIABLE, Answer

__all__ = ["equal", "readable"]

MEMORY = 4 << 30  # bytes of address space of the child
_LOCK = threading.Lock()
_CHILD: list[subprocess.Popen[str]] = []  # none, or one


def equal(reference: Answer, answer: Answer, *, seconds: int) -> bool:
    """Ask whether two answers are equal as mathematics.

    Args:
        reference: the reference answer, which is ``readable``.
        answer: what the model gives; a unit is not compared.
        seconds: limit of time for reading and for comparing; beyond it the answers count as different.

    Raises:
        RuntimeError: the child process cannot be started.
    """
    if reference.unit == answer.unit:
        reference, answer = reference._replace(unit=""), answer._replace(unit="")
    question = json.dumps([_formula(reference), _formula(answer), seconds])
    with _LOCK:
        try:
            child = _running_child()
            print(question, file=child.stdin, flush=True)
            reply = child.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            reply = ""
        except BaseException:  # an interrupt: its answer must not be taken for that of the next question
            _stop_child()
            raise
        if not reply:
            _stop_child()
            return False
    return json.loads(reply)


def readable(reference: Answer, *, seconds: int = 3) -> bool:
    """Tell whether math-verify reads this reference as a formula or name, not only as a string of characters."""
    return any(not isinstance(value, str) for value in _parsed(_formula(reference), seconds))


# ------------------------------------------------------------------------------------------------------------ the child
def serve() -> None:
    """Answer questions, one JSON line each, until the standard input ends; what the child process runs."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)  # math-verify reports every time-out
    import math_verify  # noqa: F401 - before "ready", so that its import is not timed

    print("ready", flush=True)
    for line in sys.stdin:
        reference, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, 4 * seconds)  # processor time; its signal kills, also inside C
        try:
            result = _compare(reference, answer, seconds)
        except (MemoryError, RecursionError):
            result = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(result), flush=True)


def _running_child() -> subprocess.Popen[str]:
    if not _CHILD or _CHILD[0].poll() is not None:
        package = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.insert(0, {package!r}); from aent_llm.data.mathematics import serve; serve()"
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the trainer
        )
        if child.stdout.readline() != "ready\n":  # type: ignore[union-attr]
            raise RuntimeError(f"math_verify: its process did not start (exit status {child.wait()}, see above)")
        _CHILD[:] = [child]
    return _CHILD[0]


@atexit.register
def _stop_child() -> None:
    while _CHILD:
        child = _CHILD.pop()
        child.kill()
        child.communicate()


def _forget_child() -> None:
    """Leave the child to the process that was forked: two on one pipe would read each other's answers."""
    global _LOCK
    _LOCK = threading.Lock()
    _CHILD.clear()


os.register_at_fork(after_in_child=_forget_child)


# ------------------------------------------------------------------------------------------------------- math and LaTeX
def _repeating(decimal: re.Match[str]) -> str:
    r"""Write a repeating decimal as a fraction: 0.1\overline{6} is (16 - 1) / 90."""
    whole, start, cycle = decimal[1], decimal[2], decimal[3] or decimal[4]
    bottom = (10 ** len(cycle) - 1) * 10 ** len(start)
    return rf"\frac{{{int(whole + start + cycle) - int(whole + start or 0)}}}{{{bottom}}}"


def _proportions(ratio: re.Match[str]) -> str:
    """Divide the parts of a ratio by its first: 2:4:6 is (4/2, 6/2)."""
    first, *others = (part.strip() for part in ratio[0].split(":"))
    return "(" + ",".join(rf"\frac{{{part}}}{{{first}}}" for part in others) + ")"


def _cases(rows: re.Match[str]) -> str:
    """Write the rows of a system as a list, x=3, y=4; of a function by cases, whose order counts, as a tuple."""
    inner = rows[2].replace("&=", "=")
    parts = [part.strip(" ,;.") for part in re.split(r"\\\\(?:\[\w+\])?|&", inner)]
    joint = ", ".join(filter(None, parts))
    return f"({joint})" if "&" in inner else joint


def _named(pair: re.Match[str]) -> str:
    """Write (y,x)=(3,4) as y=3, x=4."""
    names, values = (group.split(",") for group in pair.groups())
    return ", ".join(map("=".join, zip(names, values, strict=True))) if len(names) == len(values) else pair[0]


def _system(equations: re.Match[str]) -> str:
    """Write y=3, x=4 as a tuple in the order of its variables, in which a pair names their values."""
    parts = [part.strip(" .") for part in re.split(_BETWEEN, equations[0]) if part.strip(" .")]
    parts.sort(key=lambda part: (part.startswith("\\"), part.partition("=")[0]))  # Greek letters last: (r, \theta)
    several = len({part[:2].strip(" =_") for part in parts}) == len(parts)  # x=3, x=4 are values of one
    return f"({', '.join(parts)})" if several else ", ".join(parts)


_BETWEEN = r"[,;]|\\text\s*\{\s*(?:,|and)\s*\}|\band\b"
_EQUATION = rf"\s*{VARIABLE}\s*=[^=,;]+?"
_RULES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(r"(?<!\\)%"), r"\\%"),
    (re.compile(r"^(?:\\\{)?\\begin\{(cases|array|aligned)\}(?:\{\w+\})?(.*)\\end\{\1\}$"), _cases),
    (re.compile(rf"^\(({VARIABLE}(?:, ?{VARIABLE})+)\) ?= ?\(([^()]+)\)$"), _named),
    (re.compile(rf"^{_EQUATION}(?:(?:\s*(?:{_BETWEEN}))+{_EQUATION})+[\s,;.]*$"), _system),
    (re.compile(r"^([+-]?\d+) (\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),  # 1 1/2
    (re.compile(rf"^{RATIO.pattern}$"), _proportions),
    (re.compile(rf"^{DATE.pattern}$"), r"(\1,\2,\3)"),
    (re.compile(r"(?<!\d)(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))"), _repeating),
    *(
        (re.compile(rf"(?<=\d)\s*(?:\\text\s*\{{\s*{word}s?\s*\}}|{word}s?)$"), rf"\\times 10^{{{power}}}")
        for word, power in (("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
    ),
    (
        re.compile(
            r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\d)?\s*[({]?\s*)(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)"
        ),
        r"\1{\\frac{\2\\pi}{180}}",
    ),
    (re.compile(UNIT_TEXT), lambda found: f" {found[1]} " if NO_UNIT.match(found[1].strip()) else found[0]),  # drops it
    (re.compile(r"(?<![A-Za-z\\{])([A-Z])([A-Z]+)(?![A-Za-z])"), r"\1_{\2}"),  # ABC is a name, no product
]


def _formula(answer: Answer) -> str:
    """The answer as math-verify reads it best; its unit is left out, but for the per cent sign of a decimal."""
    text = answer.value if answer.variable.startswith("(") else answer.text
    text += "%" if answer.unit == "%" and re.fullmatch(r"[+-]?[\d.]+", text) else ""  # it cannot read \frac{1}{2}\%
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def _compare(reference: str, answer: str, seconds: int) -> bool:
    from math_verify import verify
    from math_verify.errors import TimeoutException

    expected = _parsed_reference(reference, seconds)
    try:  # an alarm that rings between the end of the work and its cancelling escapes math-verify's own handlers
        given, expected = (_with_imaginary_unit(one) for one in (_parsed(answer, seconds), expected))
        return bool(verify(expected, given, timeout_seconds=seconds, allow_set_relation_comp=True))
    except (Exception, TimeoutException):
        return False


def _parsed(formula: str, seconds: int) -> list[Any]:
    """What math-verify reads in a formula: [] or its text alone when it is none."""
    from math_verify import LatexExtractionConfig, parse
    from math_verify.errors import TimeoutException

    if not formula or not _balanced(formula):
        return []
    latex = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    limit: Any = seconds if threading.current_thread() is threading.main_thread() else None  # a signal, there only
    try:
        return parse(rf"\boxed{{{formula}}}", [latex], extraction_mode="first_match", parsing_timeout=limit)
    except (Exception, TimeoutException):
        return []


def _with_imaginary_unit(values: list[Any]) -> list[Any]:
    """Replace the name i by the imaginary unit: math-verify leaves it a variable."""
    from sympy import Basic, I

    return [
        value.subs({name: I for name in value.free_symbols if str(name) == "i"}) if isinstance(value, Basic) else value
        for value in values
    ]


_parsed_reference = functools.lru_cache(maxsize=8192)(_parsed)


def _balanced(formula: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", formula, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0
