"""PAPER.md names only symbols, tests and files that exist."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SYMBOL = re.compile(r"`((?:aent|toymdp|paper_figures|aent_llm)(?:\.\w+)+)`")
FILE = re.compile(r"`((?:aent|toymdp|paper_figures|llm|tests)/[\w/]+\.py)(?:::(\w+))?`")


def missing(text: str) -> list[str]:
    """Everything in backticks that looks like ours and is not there."""
    symbols = [name for name in SYMBOL.findall(text) if not _resolves(name)]
    files = [f"{path}::{test}" if test else path for path, test in FILE.findall(text) if not _has(path, test)]
    return symbols + files


def _resolves(name: str) -> bool:
    words = name.split(".")
    modules = [".".join(words[:end]) for end in range(1, len(words) + 1)]
    known = [module for module in modules if _importable(module)]
    if len(known) < 2:  # a package alone names nothing
        return False
    found = importlib.import_module(known[-1])
    for attribute in words[len(known) :]:
        fields = getattr(found, "__dataclass_fields__", {})  # a field without a default is no attribute of the class
        if not hasattr(found, attribute) and attribute not in fields:
            return False
        found = getattr(found, attribute, None)
    return True


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


def _has(path: str, test: str) -> bool:
    file = ROOT / path
    if not file.is_file():
        return False
    return not test or test in {n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)}


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "PAPER.md").read_text(encoding="utf-8")


def test_everything_named_exists(page: str) -> None:
    assert missing(page) == []


def test_the_page_really_names_things(page: str) -> None:
    assert len(set(SYMBOL.findall(page))) >= 40
    assert len({test for _, test in FILE.findall(page) if test}) >= 12


def test_every_backtick_of_a_package_is_understood(page: str) -> None:
    """A typo such as a missing suffix must not slip past both patterns."""
    ours = re.findall(r"`((?:aent|toymdp|paper_figures|aent_llm|llm|tests)[./][^`]*)`", page)
    assert [name for name in ours if not SYMBOL.fullmatch(f"`{name}`") and not FILE.fullmatch(f"`{name}`")] == []


def test_every_proposition_is_on_the_page(page: str) -> None:
    propositions = importlib.import_module("toymdp.theory.propositions").PROPOSITIONS
    named = {name.rsplit(".", 1)[-1] for name in SYMBOL.findall(page)}
    controls_only = {"p1_negative_controls"}
    assert {function.__name__ for function in propositions} - controls_only <= named


def test_every_method_is_on_the_page(page: str) -> None:
    """Its paper by number, and its shaping rule and controller by symbol."""
    named, methods = set(SYMBOL.findall(page)), importlib.import_module("aent.methods").METHODS
    parts = [part for method in methods.values() for part in (method.shaping, method.controller, method.support)]
    symbols = {f"{type(part).__module__}.{type(part).__name__}" for part in parts}
    assert symbols - named - {"aent.entropy.Full"} == set()
    papers = {number for method in methods.values() for number in re.findall(r"\d{4}\.\d{5}", method.reference)}
    assert len(papers) > 15
    assert {number for number in papers if number not in page} == set()


def test_every_figure_module_is_on_the_page(page: str) -> None:
    modules = {path.name for path in (ROOT / "paper_figures").glob("f[0-9]*_*.py")}
    assert {name for name in modules if f"paper_figures/{name}" not in page} == set()


@pytest.mark.parametrize(
    "gone",
    [
        "`aent.entropy.clamped_entropyy`",
        "`aent.nowhere.entropy`",
        "`toymdp.mdp.Optimum.no_such_field`",
        "`tests/aent/test_nothing.py`",
        "`tests/aent/test_entropy.py::test_nothing`",
        "`paper_figures/f0_nothing.py`",
    ],
)
def test_what_is_gone_is_reported(gone: str) -> None:
    assert missing(f"text {gone} text") == [gone.strip("`")]
    assert missing("`toymdp.mdp.Optimum.log_responses` `aent.entropy.entropy`") == []
