"""PAPER.md names only symbols, tests and files that exist."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from aent.controllers import Constant
from aent.entropy import Full
from aent.methods import METHODS
from aent.shaping import Shaping
from pages import read, section

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


def test_the_tables_of_methods_are_those_of_the_code(page: str) -> None:
    """PAPER.md: label, reference, parts, and "same" where nothing is assumed. docs/methods.md: names and knobs."""
    guide, rows = read("docs/methods.md"), table(section("Methods of other papers", page))
    knobs = {row[0]: row[1] for row in table(guide)}
    for name, method in METHODS.items():
        sweep = method.sweep
        if method.reference or method.label in knobs:
            knob = knobs.pop(name if method.reference else method.label)
            assert knob == (sweep.knob if sweep else "learning rate"), name
        if not method.reference or "2509.03493" in method.reference:  # the paper's own are in the tables above
            continue
        (row,) = [row for row in rows if row[0] in (f"{method.label}, {method.reference}", method.reference)]
        rows.remove(row)
        parts = {type(part) for part in (method.shaping, method.controller, method.support)}
        symbols = {f"{part.__module__}.{part.__name__}" for part in parts - {Shaping, Constant, Full}}
        assert symbols <= set(SYMBOL.findall(row[2])), row
        assert (row[-1] == "same") == (not method.assumptions), row
    assert rows == []
    assert knobs == {}
    assert re.findall(r"^\*\*([\w-]+)[.*]", guide, re.MULTILINE) == [n for n, one in METHODS.items() if one.reference]


def table(text: str) -> list[list[str]]:
    """Cells of the rows of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


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
