"""Change the library in one place at a time and see whether a test notices.

    python tests/mutation.py                                     # everything in TARGETS: hours
    python tests/mutation.py toymdp/theory/bounds.py --sample 50        # a seeded sample
    python tests/mutation.py toymdp/theory/bounds.py --retry            # survivors again, after new tests

A mutant swaps an operator, a comparison, a constant, a function name or two branches, drops a statement or returns
None. Annotations, docstrings, decorators, f-strings and the arguments of exceptions are left alone. All work happens in
a copy of the tracked files. One traced run of the tests says which of them execute a line, and only these meet its
mutants: in a process that has collected the tests already, forked once per mutant, the code of one function is
exchanged. What runs on import is written into the copy and imported anew, and so is what survives where a test starts
Python anew; compiled kernels are interpreted. Hypothesis tries ``EXAMPLES`` examples first and its own number where
they found nothing. Results go to ``OUT/results.jsonl``, one line per mutant; a mutant that is there is not tried again
until the text of its function changes.

A survivor is a question, not a verdict: some mutants compute the same (a tolerance of 2e-12 for 1e-12).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from numba.core import event
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
PARTS = tuple(f"tests/aent/test_{name}.py" for name in ("registry", "fields", "files", "runs", "methods"))
SAFE = (
    "tests/llm/test_safe.py",
    "tests/llm/test_checkpoint.py",
    "tests/llm/test_trainer.py::test_nan_stops_the_run_before_the_weights_move",
)
LEARNERS = ("tests/toymdp/test_learners.py",)
KERNELS = tuple(  # what an interpreter runs in seconds
    f"{LEARNERS[0]}::test_{name}"
    for name in (
        "adam_is_the_published_recurrence",
        "cut_is_exact_from_any_first_guess",
        "cut_among_neighbouring_floats",
        "draws_follow_the_policy",
        "a_draw_never_finds_a_token_of_probability_zero",
        "sampled_step_by_hand",
        "fused_equals_reference[exact-unfolded tree]",
        "fused_equals_reference[sampled-unfolded tree]",
        "lumps_follow_the_path_of_their_tokens",
    )
)
PROPOSITIONS = ("tests/toymdp/test_propositions.py",)
TARGETS = {
    "aent/entropy.py": ("tests/aent/test_entropy.py",),
    "aent/controllers.py": ("tests/aent/test_controllers.py", "tests/aent/test_methods.py"),
    "aent/shaping.py": ("tests/aent/test_shaping.py", "tests/aent/test_methods.py"),
    "aent/fields.py": PARTS,
    "aent/files.py": PARTS,
    "aent/methods.py": PARTS,
    "aent/registry.py": PARTS,
    "aent/runs.py": PARTS,
    "toymdp/mdp.py": ("tests/toymdp/test_mdp.py",),
    "toymdp/theory/bounds.py": PROPOSITIONS,
    "toymdp/theory/laws.py": PROPOSITIONS,
    "toymdp/training/batch.py": LEARNERS,
    "toymdp/training/learners.py": LEARNERS,
    "toymdp/training/kernels.py": KERNELS,
    "llm/aent_llm/training/checkpoint.py": SAFE,
    "llm/aent_llm/training/finite.py": SAFE,
    "llm/aent_llm/training/safe.py": SAFE,
    "llm/aent_llm/data/reward_checks.py": SAFE,
    "llm/aent_llm/data/rewards.py": ("tests/llm/test_rewards.py",),
}
COMPILED = (
    "toymdp/training/kernels.py",
)  # no tracer sees compiled code, and it cannot be exchanged: a process interprets it
INTERPRETED = bool(os.environ.get("NUMBA_DISABLE_JIT"))
LOADED = "numpy scipy.special scipy.stats scipy.optimize hypothesis torch numba pandas joblib jaxtyping beartype tqdm"
EXAMPLES = 15  # of Hypothesis in the first pass
LIMIT = 4  # times the traced CPU time of the chosen tests, and LEAST seconds at least
LEAST = 20
RUN = time.time()
OUTCOMES = ("killed", "survived", "uncovered", "timed out")
ALIVE = OUTCOMES[1:3]
SLOWEST = 15  # traced CPU seconds: slower tests are left out

# ---------------------------------------------------------------------------------------------------- what is changed

ARITHMETIC = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "*", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"), ast.Eq: ("!=",),
    ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
TOKENS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
PAIRS = (
    "min max", "amin amax", "minimum maximum", "argmin argmax", "any all", "floor ceil", "zeros ones", "exp expm1",
    "zeros_like ones_like", "log log1p", "sum mean",
)  # fmt: skip
NAMES = {one: other for pair in PAIRS for one, other in (pair.split(), pair.split()[::-1])}


@dataclass(frozen=True)
class Mutant:
    """One change: bytes ``begin`` to ``end`` of the file become ``after``."""

    file: str
    place: str  # the function (or the statement outside functions) and a digest of its text
    offset: int  # in bytes from its beginning
    line: int
    last: int
    kind: str
    before: str
    after: str
    begin: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.file}:{self.place}:{self.offset}:{self.after}"


def mutants(file: str, source: bytes) -> list[Mutant]:
    """List every change of a file that still parses and is another program."""
    starts = [0]
    for row in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))

    def span(node: Any) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def text(node: Any) -> str:
        return source[slice(*span(node))].decode()

    tree = ast.parse(source)
    found, seen = [], {ast.dump(tree)}
    places = sorted(((*span(around), name, text(around)) for name, around in _places(tree, ())))
    for node in _nodes(tree):
        for kind, after in _changes(node, text):
            begin, end = span(node)
            changed = replaced(source, begin, end, after)
            with contextlib.suppress(SyntaxError):
                if (program := ast.dump(ast.parse(changed))) not in seen:
                    seen.add(program)
                    first, _, name, around = [one for one in places if one[0] <= begin and end <= one[1]][-1]
                    place = f"{name}-{zlib.crc32(around.encode()):08x}", begin - first
                    lines = node.lineno, node.end_lineno
                    found.append(Mutant(file, *place, *lines, kind, text(node), after, begin, end))
    return found


def replaced(source: bytes, begin: int, end: int, after: str) -> bytes:
    """Put other text in the place of a node; what comes behind it stays on its line."""
    before, parenthesis, rest = after.encode().partition(b"(")
    lost = source[begin:end].count(b"\n") - after.count("\n")
    return source[:begin] + before + parenthesis + b"\n" * lost + rest + source[end:]


def _places(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the functions with their qualified names, and every statement of module and classes with that of these."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                yield ".".join((*names, name)), child
                yield from _places(child, (*names, name))
            case ast.stmt() if isinstance(node, ast.Module | ast.ClassDef):
                yield ".".join(names), child
            case _:
                pass


def _nodes(node: ast.AST) -> Iterator[Any]:
    """Walk over all that may change."""
    skipped = {"annotation", "returns", "decorator_list", "type_comment"}
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or name in skipped or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue  # a docstring
            yield child
            if not isinstance(child, ast.Raise):
                yield from _nodes(child)


def _changes(node: ast.AST, text: Callable[[Any], str]) -> Iterator[tuple[str, str]]:
    """Yield (kind, new text) of one node."""
    match node:
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
            yield "operator", f"(({text(left)}) {ARITHMETIC[type(operator)]} ({text(right)}))"
        case ast.AugAssign(target, operator, value):
            yield "dropped", "pass"
            if type(operator) in ARITHMETIC:
                yield "operator", f"{text(target)} {ARITHMETIC[type(operator)]}= {text(value)}"
        case ast.Compare(left, operators, right):
            for i, operator in enumerate(operators):
                for other in COMPARISONS[type(operator)]:
                    tokens = [other if i == j else TOKENS[type(own)] for j, own in enumerate(operators)]
                    rest = "".join(f" {token} ({text(term)})" for token, term in zip(tokens, right, strict=True))
                    yield "comparison", f"(({text(left)}){rest})"
        case ast.BoolOp(operator, values):
            other = " or " if isinstance(operator, ast.And) else " and "
            yield "logic", "(" + other.join(f"({text(value)})" for value in values) + ")"
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield "logic", f"({text(operand)})"
        case ast.Constant(bool() as value):
            yield "constant", str(not value)
        case ast.Constant(int() | float() as value):
            for other in {value + 1, 2 * value, 0} if isinstance(value, int) else {2 * value, 0.0, value + 1}:
                if other != value:
                    yield "constant", f"({other!r})"
        case ast.IfExp(test, body, orelse):
            yield "branches", f"(({text(orelse)}) if ({text(test)}) else ({text(body)}))"
        case ast.Return(value) if value is not None and text(value) != "None":
            yield "returned", "return None"
        case ast.Raise() | ast.Expr(ast.Call()):
            yield "dropped", "pass"
        case ast.Assign([ast.Name(name)], value) if any(
            isinstance(part, ast.Name) and part.id == name for part in ast.walk(value)
        ):
            yield "dropped", "pass"
        case ast.Continue() | ast.Break():
            yield "dropped", "pass"
        case ast.Call(ast.Attribute(attr="where") as function, [test, one, other]):
            yield "branches", f"{text(function)}({text(test)}, {text(other)}, {text(one)})"
        case ast.Call(ast.Attribute(owner, name)) if name in NAMES:
            yield "name", f"({text(owner)}).{NAMES[name]}({_arguments(node, text)})"
        case ast.Call(ast.Name(name)) if name in NAMES and name != "sum":
            yield "name", f"{NAMES[name]}({_arguments(node, text)})"


def _arguments(call: ast.Call, text: Callable[[Any], str]) -> str:
    whole, function = text(call), text(call.func)
    return whole[len(function) :].strip()[1:-1]


# ------------------------------------------------------------------------------------------------- who executes a line


class Tracer:
    """A pytest plugin that notes the CPU time of every passing test and the context that coverage sees it in.

    What a fixture of a module runs counts for every test that asks for the fixture.
    """

    def __init__(self, coverage: Any):
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.shared: dict[str, float] = {}  # CPU seconds of fixtures that several tests share
        self.fixtures: dict[str, list[str]] = {}
        self.item, self.compiler = "", Compiler()
        self.starters: set[str] = set()  # tests that start Python anew, which no tracer sees
        sys.addaudithook(self._note_starter)

    def _note_starter(self, event: str, values: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and "python" in Path(os.fspath(values[0])).name:
            self.starters.add(self.item)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            limit_examples(item, EXAMPLES)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        self.item = item.nodeid
        self.coverage.switch_context(self.item)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        name = f"fixture {fixturedef.argname}"
        self.coverage.switch_context(name)
        try:
            with self._measured(self.shared, name):
                return (yield)
        finally:
            self.coverage.switch_context(self.item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        with self._measured(self.seconds, item.nodeid):
            result = yield
        own = [f"fixture {name}" for name in item.fixturenames if f"fixture {name}" in self.shared]
        if self.seconds[item.nodeid] > SLOWEST:
            del self.seconds[item.nodeid]
        else:
            self.seconds[item.nodeid] += sum(self.shared[name] for name in own)
            self.fixtures[item.nodeid] = own
        return result

    @contextlib.contextmanager
    def _measured(self, times: dict[str, float], name: str) -> Iterator[None]:
        """Note CPU seconds under a name, without those of the compiler: later runs find its work on disk."""
        begin = time.process_time() - self.compiler.seconds
        yield
        times[name] = time.process_time() - self.compiler.seconds - begin


class Compiler(event.Listener):
    """Adds up the CPU seconds that numba compiles."""

    def __init__(self) -> None:
        self.seconds, self.depth, self.begin = 0.0, 0, 0.0

    def on_start(self, _: Any) -> None:
        self.depth += 1
        self.begin = time.process_time() if self.depth == 1 else self.begin

    def on_end(self, _: Any) -> None:
        self.depth -= 1
        self.seconds += 0.0 if self.depth else time.process_time() - self.begin


@dataclass(frozen=True)
class Map:
    """Traced CPU seconds of every test, and the tests that execute each line of each file.

    ``starters`` start Python anew, which may execute anything.
    """

    seconds: dict[str, float]
    starters: list[str]
    lines: dict[str, dict[str, list[str]]]

    def tests(self, mutant: Mutant) -> list[str]:
        """Tests of a mutant, quick ones first; all tests where its line runs on import, a table for instance."""
        lines = self.lines.get(mutant.file, {})
        found = {test for line in range(mutant.line, mutant.last + 1) for test in lines.get(str(line), ())}
        found = set(self.seconds) if self.imported(mutant) else found & set(self.seconds)
        return sorted(found, key=lambda test: (self.seconds[test], test))

    def imported(self, mutant: Mutant) -> bool:
        """Whether the mutant's lines run when the file is imported."""
        lines = self.lines.get(mutant.file, {})
        return any("" in lines.get(str(line), ()) for line in range(mutant.line, mutant.last + 1))

    def limit(self, tests: list[str]) -> float:
        """CPU seconds that these tests may take."""
        return max(LEAST, LIMIT * sum(self.seconds[test] for test in tests))


def trace(tree: Path, tests: tuple[str, ...], files: list[str]) -> Map:
    """Run the tests once in ``tree`` under coverage, one context per test."""
    from coverage import Coverage

    coverage = Coverage(data_file=None, include=[str(tree / file) for file in files], config_file=False)
    tracer = Tracer(coverage)
    coverage.start()
    with event.install_listener("numba:compile", tracer.compiler):
        code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[tracer, Interpreter()])
    coverage.stop()
    print(f"traced with exit status {code}: {len(tracer.seconds)} tests")
    lines: dict[str, dict[str, list[str]]] = {}
    users = defaultdict(list)
    for test, names in tracer.fixtures.items():
        for name in names:
            users[name].append(test)
    for file in files:
        own = lines[file] = {}
        for line, contexts in coverage.get_data().contexts_by_lineno(str(tree / file)).items():
            own[str(line)] = sorted({test for context in contexts for test in users.get(context, [context])})
    return Map(tracer.seconds, sorted(tracer.starters & set(tracer.seconds)), lines)


# ------------------------------------------------------------------------------------------------------- the test runs


def limit_examples(item: Any, examples: int) -> bool:
    """Let Hypothesis try few examples and not look for the smallest failing one; returns whether it wanted more."""
    from hypothesis import Phase, settings

    own = getattr(item.obj, "_hypothesis_internal_use_settings", None)
    if own is None:
        return False
    few = settings(own, max_examples=min(examples, own.max_examples), phases=[Phase.explicit, Phase.generate])
    getattr(item.obj, "__func__", item.obj)._hypothesis_internal_use_settings = few
    return own.max_examples > examples


class Interpreter:
    """A pytest plugin: the counts of interpreted kernels stay float64, as in compiled ones."""

    def pytest_collection_finish(self) -> None:
        if INTERPRETED and (kernels := sys.modules.get("toymdp.training.kernels")):
            kernels._ONE, kernels._ZERO = 1.0, 0.0  # type: ignore[attr-defined]


class Loop:
    """A pytest plugin: instead of running the collected tests, gives ``work`` a session that can run some of them."""

    def __init__(self, work: Callable[[Loop], None]):
        self.work = work

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.session = session
        self.work(self)
        return True

    def run(self, tests: list[str], examples: int, note: Path) -> int:
        """Run tests until one fails; its name goes to ``note``. Returns 0 if none does."""
        items = [self.items[test] for test in tests if test in self.items]
        for item in items:
            limit_examples(item, examples)
        for item, after in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.session.testsfailed:
                note.write_text(item.nodeid, encoding="utf-8")
                return 1
        return 0

    def outcome(self, tests: list[str], out: Path, seconds: float, before: Callable[[], None] = lambda: None) -> str:
        """Run tests in forked children, after ``before``: with few examples, then those that wanted more of them."""

        def work(chosen: list[str], examples: int) -> int:
            before()
            return self.run(chosen, examples, out / "first-failure")

        own = [self.items[test].obj for test in tests if test in self.items]
        wanted = {id(one) for one in own if getattr(one, "_hypothesis_internal_use_settings", None) is not None}
        given = [test for test in tests if test in self.items and id(self.items[test].obj) in wanted]
        outcome = in_child(lambda: work(tests, EXAMPLES), out / "log", seconds)
        if outcome == "survived" and given:
            outcome = in_child(lambda: work(given, 10**9), out / "log", seconds)
        return outcome


def collected(tests: list[str] | tuple[str, ...], work: Callable[[Loop], None]) -> int:
    """Collect test files once and hand the session to ``work``; returns pytest's exit status."""
    sys.dont_write_bytecode = True
    options = ["-q", "-s", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
    return int(
        pytest.main([*options, *sorted({test.split("::")[0] for test in tests})], plugins=[Loop(work), Interpreter()])
    )


def in_child(work: Callable[[], int], log: Path, seconds: float) -> str:
    """Fork, do ``work`` with its output in ``log``; returns survived, killed or timed out."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with contextlib.suppress(OSError, AttributeError):  # Linux: killed when its parent ends, by Ctrl-C for instance
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        signal.alarm(int(6 * seconds) + 60)  # a wait is no CPU time
        code = 3
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # workers that it left
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL)
        return "timed out" if late else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


# ----------------------------------------------------------------------------------------------- mutants in their place


def key(code: CodeType) -> tuple[str, int]:
    """Tell functions of a file apart: by qualified name, lambdas by their line too."""
    return code.co_qualname, code.co_firstlineno if code.co_name == "<lambda>" else 0


def codes(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """All code inside a code object."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return {key(one): one for one in inner} | {name: own for one in inner for name, own in codes(one).items()}


def living_functions(path: Path) -> dict[tuple[str, int], list[FunctionType]]:
    """Find the functions of an imported file."""
    found = defaultdict(list)
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename == str(path):
            found[key(one.__code__)].append(one)
    return found


def mutated(source: bytes, mutant: Mutant) -> bytes:
    return replaced(source, mutant.begin, mutant.end, mutant.after)


def try_in_functions(tree: Path, todo: list[Mutant], chart: Map, out: Path, report: Callable[..., None]) -> int:
    """Exchange the code of living functions, one mutant per child of a process that has collected the tests.

    Not reported: a survivor that a process of a test may still meet, and a function that closes over other names than
    before and so does not take the new code.
    """
    path = tree / todo[0].file
    source = path.read_bytes()
    before = codes(compile(source, path, "exec"))

    every = sorted({test for mutant in todo for test in chart.tests(mutant)})

    def work(loop: Loop) -> None:
        functions = living_functions(path)
        if in_child(lambda: loop.run(every, EXAMPLES, out / "first-failure"), out / "log", 10**6) != "survived":
            raise SystemExit(f"without a mutant, too, fails {(out / 'first-failure').read_text(encoding='utf-8')}")
        for mutant in todo:
            tests, after = chart.tests(mutant), codes(compile(mutated(source, mutant), path, "exec"))
            changed = [(one, code) for name, code in after.items() if code != before[name] for one in functions[name]]
            if changed and all(one.__code__.co_freevars == code.co_freevars for one, code in changed):
                outcome = loop.outcome(tests, out, chart.limit(tests), lambda changed=changed: exchange(changed))
                if outcome != "survived" or not chart.starters:
                    report(mutant, outcome)

    return collected(every, work)


def exchange(changed: list[tuple[FunctionType, CodeType]]) -> None:
    for function, code in changed:
        function.__code__ = code


def try_as_file(tree: Path, mutant: Mutant, chart: Map, out: Path) -> str:
    """Write the mutant into the tree, import and run everything anew, put the original back."""
    path, tests = tree / mutant.file, chart.tests(mutant)
    tests += [test for test in chart.starters if test not in tests]
    original, stat = path.read_bytes(), path.stat()

    def work() -> int:
        outcomes: list[str] = []
        collected(tests, lambda loop: outcomes.append(loop.outcome(tests, out, chart.limit(tests))))
        return 0 if outcomes == ["survived"] else 1

    try:
        path.write_bytes(mutated(original, mutant))
        os.utime(path, (stat.st_atime, stat.st_mtime + 10))  # neither Python nor numba may take it for the original
        return in_child(work, out / "log", 3 * chart.limit(tests))
    finally:
        path.write_bytes(original)
        os.utime(path, (stat.st_atime, stat.st_mtime))


def try_all(tree: Path, todo: list[Mutant], chart: Map, out: Path, report: Progress) -> None:
    """Try mutants and report each outcome: those inside functions first, then those that a new import shows."""
    if inside := [mutant for mutant in todo if chart.tests(mutant) and not chart.imported(mutant)]:
        session = in_child(lambda: try_in_functions(tree, inside, chart, out, report), out / "session.log", 10**6)
        if session != "survived":
            raise SystemExit(f"the tests could not be run, see {out / 'session.log'}")
    done = {row["name"] for row in load(out / "results.jsonl").values() if row["run"] == RUN}
    report.bar.n = len({mutant.name for mutant in todo} & done)
    for mutant in todo:
        if mutant.name not in done:
            outcome = try_as_file(tree, mutant, chart, out) if chart.tests(mutant) or chart.starters else "survived"
            report(mutant, outcome if chart.tests(mutant) or outcome != "survived" else "uncovered")


# -------------------------------------------------------------------------------------------------------- command line


def copy_tracked_files(tree: Path) -> None:
    """Bring ``tree`` to the state of the working copy; files that did not change keep their time."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        source, target = ROOT / name, tree / name
        if source.is_file() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    author = ["-c", "user.name=mutation", "-c", "user.email=mutation@localhost"]
    for command in (["init"], ["add", "--all"], [*author, "commit", "--message", "Copy", "--allow-empty"]):
        subprocess.run(["git", *command], cwd=tree, capture_output=True, check=True)  # provenance asks for it


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Read results; the last line of a mutant counts."""
    rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, rows)}


class Progress:
    """A bar on the terminal; called with a mutant and its outcome, it moves on and appends a line to the results.

    Children whose output goes to a log draw on it too: it writes to a copy of the terminal's handle.
    """

    def __init__(self, file: str, total: int, results: Path):
        self.results, self.alive = results, 0
        tqdm.monitor_interval = 0  # no thread: forks would lose it
        self.bar = tqdm(total=total, desc=file, file=os.fdopen(os.dup(2), "w"), unit="mutant")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.n = self.bar.total  # those of the child, too
        self.bar.close()

    def __call__(self, mutant: Mutant, outcome: str) -> None:
        note = self.results.with_name("first-failure")
        by = note.read_text(encoding="utf-8") if note.exists() else ""
        note.unlink(missing_ok=True)
        row = {"name": mutant.name, "outcome": outcome, "by": by, "run": RUN, **asdict(mutant)}
        with self.results.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        self.alive += outcome in ALIVE
        self.bar.set_postfix_str(f"{self.alive} not noticed", refresh=False)
        self.bar.update()


def mapped(tree: Path, file: str, tests: tuple[str, ...], out: Path) -> Map:
    """Trace the tests in a child, or read the map of an earlier run of the same tests on the same code."""
    files = [one for one, own in TARGETS.items() if own == TARGETS.get(file)] or [file]
    told = hashlib.sha256(" ".join(tests).encode())
    for path in [tree / name for name in (*files, *sorted({test.partition("::")[0] for test in tests}))]:
        for one in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            told.update(one.read_bytes())
    path = out / f"map-{told.hexdigest()[:12]}.json"
    if not path.exists():

        def work() -> int:
            path.write_text(json.dumps(asdict(trace(tree, tests, files))), encoding="utf-8")
            return 0

        print(f"tracing {' '.join(tests)}", flush=True)
        if in_child(work, out / "trace.log", 3600) != "survived":
            raise SystemExit(f"the tests could not be traced, see {out / 'trace.log'}")
    return Map(**json.loads(path.read_text(encoding="utf-8")))


def table(tried: dict[str, tuple[int, Counter[str]]]) -> str:
    """Lay out (possible mutants, outcomes) of each file, with a row of sums."""
    rows: list[tuple[Any, ...]] = [("file", "possible", "tried", *OUTCOMES)]
    for file, (possible, counts) in tried.items():
        rows.append((file, possible, counts.total(), *(counts[one] for one in OUTCOMES)))
    rows.append(("all", *(sum(column) for column in zip(*(row[1:] for row in rows[1:]), strict=True))))
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    texts = [[str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join([row[0].strip().ljust(widths[0]), *row[1:]]) for row in texts)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=[*TARGETS], help="of the library (default: all targets)")
    parser.add_argument("--tests", nargs="+", help="folders, files or names of tests instead of the target's own")
    parser.add_argument("--sample", type=int, help="mutants tried per file, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--retry", action="store_true", help="instead: try the known survivors again")
    parser.add_argument("--out", type=Path, default=Path("/tmp/mutants"), help="results and the copy (%(default)s)")
    args = parser.parse_args()
    if unknown := [file for file in args.files if file not in TARGETS and not (args.tests and (ROOT / file).is_file())]:
        parser.error(f"no target: {', '.join(unknown)}; expected some of {', '.join(TARGETS)}, or --tests as well")
    return args


def try_interpreted(args: argparse.Namespace, files: list[str]) -> None:
    """Try the mutants of compiled files in a process of its own, which interprets them and leaves the talking to us."""
    command = [sys.executable, str(Path(__file__).resolve()), *files, "--seed", str(args.seed), "--out", str(args.out)]
    command += ["--sample", str(args.sample)] if args.sample is not None else []
    command += ["--tests", *args.tests] if args.tests else []
    command += ["--retry"] if args.retry else []
    subprocess.run(command, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True)


def chosen(every: list[Mutant], args: argparse.Namespace, known: dict[str, Any]) -> list[Mutant]:
    """Draw the mutants to be shown: every one has its place in the lot, whatever becomes of the others."""
    if args.retry:
        return [one for one in every if one.name in known]
    return sorted(every, key=lambda one: random.Random(f"{args.seed} {one.name}").random())[: args.sample]


def main() -> int:
    """Try mutants; print those that no test noticed, and a table of how many were killed in every file."""
    args = parsed()
    if not INTERPRETED and (compiled := [file for file in args.files if file in COMPILED]):
        try_interpreted(args, compiled)
    tree, results = args.out.resolve() / "tree", args.out.resolve() / "results.jsonl"
    copy_tracked_files(tree)
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "llm")]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    for module in LOADED.split():
        importlib.import_module(module)
    tried: dict[str, tuple[int, Counter[str]]] = {}
    for file in args.files:
        every = mutants(file, (tree / file).read_bytes())
        drawn = chosen(every, args, load(results))
        if (file in COMPILED) == INTERPRETED:
            known = load(results)
            alive = [one for one in drawn if one.name in known and known[one.name]["outcome"] in ALIVE]
            todo = alive if args.retry else [one for one in drawn if one.name not in known]
            if todo:
                chart = mapped(tree, file, tuple(args.tests or TARGETS[file]), results.parent)
                with Progress(file, len(todo), results) as report:
                    try_all(tree, todo, chart, results.parent, report)
        known = load(results)
        outcomes = {one: known[one.name]["outcome"] for one in drawn if one.name in known}
        for one, outcome in outcomes.items():
            if outcome in ALIVE and not INTERPRETED:
                print(f"{outcome} {file}:{one.line} {one.before!r} -> {one.after!r}", flush=True)
        tried[file] = len(every), Counter(outcomes.values())
    if not INTERPRETED:
        print(table(tried))
    return 0


if __name__ == "__main__":
    sys.exit(main())
