"""Who may import whom, read off the source of every file, and what an import really loads.

    paper_figures -> toymdp -> aent <- aent_llm          benchmarks, experiments -> all of them

Inside a package with rooms, a room may import itself and the rooms before it in ``ROOMS``, and no modules import each
other in a circle; imports inside functions and for type checkers count too.

Each package may import itself, the packages below it, the standard library and what ``pyproject.toml`` declares for it;
nothing else, also not inside a function. Exception, inside functions: a rule or a reward may be any class or callable
that the user names.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LAZY = {
    "aent/registry.py": {"<decided at run time>"},
    "aent/stats.py": {"scipy"},  # of Student's distribution alone; whoever calls it declares scipy
}
MATPLOTLIB = {"matplotlib", "cycler", "PIL"}  # colour cycles cannot be set without its own cycler; Pillow comes with it
OWN = {"aent/plots.py": MATPLOTLIB}  # what a single file may import at its top: nothing else in aent imports plots
# ruamel.yaml's package; vLLM is one of two extras, imported inside functions; the next two come with datasets, one with
# transformers, sympy with math-verify, Triton with CUDA builds of torch, so that only kernels.py may need it at all
LLM = {"ruamel", "vllm", "numpy", "pyarrow", "huggingface_hub", "safetensors", "sympy", "triton"}
FOLDERS = {"aent_llm": "llm/aent_llm"}  # packages that are not at the root of the checkout
ROOMS = {  # from the ground up: rooms and single files; one may import those in lines above its own
    "toymdp": [
        {"mdp"},
        {"families"},
        {"suite"},
        {"theory", "training", "envs"},
        {"compare"},
        {"__main__"},
    ],
    "aent_llm": [{"schema", "config_files", "head"}, {"data"}, {"measure"}, {"training"}, {"__main__"}],
}  # fmt: skip


def declared(*extras: str) -> set[str]:
    """Import names of the requirements of the distribution and of some of its extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    names = {re.split(r"[^\w.-]", line)[0].replace("-", "_") for line in lines}
    return names - {"aent"}  # an extra that names another one


ALLOWED = {
    "aent": {"aent"} | declared(),
    "toymdp": {"toymdp", "aent"} | declared("toymdp"),
    "paper_figures": {"paper_figures", "toymdp", "aent"} | declared("toymdp", "figures") | MATPLOTLIB,
    "aent_llm": {"aent_llm", "aent"} | declared("llm") | LLM,
}
EVERYTHING = set().union(*ALLOWED.values())
ALLOWED |= {"benchmarks": EVERYTHING | {"benchmarks"}, "experiments": EVERYTHING | {"experiments"}}
INSTALLED = ["aent", "toymdp", "paper_figures", "aent_llm"]


def forbidden(source: str, file: str) -> list[str]:
    """What the file at ``file`` (relative to the root) imports and must not, as ``line: module``."""
    package = file.removeprefix("llm/").partition("/")[0]
    found = []
    for module, line, lazy in imports(ast.parse(source), package):
        top = module.split(".")[0]
        fine = top in sys.stdlib_module_names or top in ALLOWED[package] | OWN.get(file, set())
        if not fine and not (lazy and top in LAZY.get(file, set())):
            found.append(f"{line}: {module}")
    return found


def imports(tree: ast.AST, package: str, lazy: bool = False) -> list[tuple[str, int, bool]]:
    """(module, line, inside a function) of every import, ``import_module`` and ``__import__`` included."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((package if node.level else node.module or "", node.lineno, lazy))
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            found.append((_literal_start(node.args[0]), node.lineno, lazy))
        found += imports(node, package, inside)
    return found


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _literal_start(argument: ast.expr) -> str:
    """The module that a string or the fixed start of an f-string names; a name only known at run time has none."""
    part = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
    return str(part.value) if isinstance(part, ast.Constant) else "<decided at run time>"


def files(package: str) -> list[Path]:
    return sorted((ROOT / FOLDERS.get(package, package)).rglob("*.py"))


@pytest.mark.parametrize("package", ALLOWED)
def test_every_file_keeps_to_its_layer(package: str) -> None:
    assert len(files(package)) >= 3
    broken = {}
    for path in files(package):
        file = path.relative_to(ROOT).as_posix()
        if wrong := forbidden(path.read_text(encoding="utf-8"), file):
            broken[file] = wrong
    assert broken == {}


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("aent/entropy.py", "import torch", ["1: torch"]),
        ("aent/entropy.py", "import toymdp.mdp", ["1: toymdp.mdp"]),
        ("aent/entropy.py", "from scipy import special", ["1: scipy"]),
        ("aent/stats.py", "from scipy import special", ["1: scipy"]),
        ("aent/runs.py", "import matplotlib", ["1: matplotlib"]),
        ("aent/entropy.py", "def f():\n    from paper_figures import style", ["2: paper_figures"]),
        ("aent/runs.py", "def f():\n    import torch", ["2: torch"]),
        ("aent/runs.py", "from benchmarks import selection", ["1: benchmarks"]),
        ("toymdp/mdp.py", "def f():\n    import benchmarks.learner", ["2: benchmarks.learner"]),
        (
            "toymdp/training/learners.py",
            "if True:\n    from aent_llm.training.trainer import Trainer",
            ["2: aent_llm.training.trainer"],
        ),
        (
            "toymdp/training/learners.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
            ["3: torch"],
        ),
        ("toymdp/mdp.py", "class A:\n    def f(self):\n        import matplotlib.pyplot", ["3: matplotlib.pyplot"]),
        ("toymdp/mdp.py", "import importlib\nimportlib.import_module('torch.nn')", ["2: torch.nn"]),
        ("toymdp/mdp.py", "import_module(name)", ["1: <decided at run time>"]),
        ("paper_figures/style.py", "t = __import__('torch')", ["1: torch"]),
        ("llm/aent_llm/training/trainer.py", "from toymdp import suite", ["1: toymdp"]),
        ("llm/aent_llm/measure/compare.py", "def f():\n    import paper_figures", ["2: paper_figures"]),
        ("paper_figures/style.py", "x = lambda: import_module(f'aent_llm.{stem}')", ["1: aent_llm."]),
    ],
)
def test_a_forbidden_import_is_noticed(file: str, source: str, found: list[str]) -> None:
    assert forbidden(source, file) == found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("aent/entropy.py", "import math, numpy as np\nfrom array_api_compat import array_namespace"),
        ("benchmarks/selection.py", "import torch"),
        ("toymdp/mdp.py", "from . import kernels\nfrom aent.entropy import Full"),
        (
            "llm/aent_llm/training/train.py",
            "import ruamel.yaml, torch\nfrom aent.runs import Run\nfrom trl import GRPOTrainer",
        ),
        ("paper_figures/registry.py", "import importlib\nimportlib.import_module(f'paper_figures.{stem}')"),
    ],
)
def test_an_allowed_import_is_not(file: str, source: str) -> None:
    assert forbidden(source, file) == []


def test_the_layers_below_know_nothing_of_those_above() -> None:
    assert not ALLOWED["aent"] & {"toymdp", "paper_figures", "aent_llm", "torch", "scipy", "gymnasium"}
    assert not ALLOWED["toymdp"] & {"paper_figures", "aent_llm", "torch", "matplotlib"}
    assert not ALLOWED["paper_figures"] & {"aent_llm", "torch"}
    assert not ALLOWED["aent_llm"] & {"toymdp", "paper_figures", "numba", "gymnasium"}


# ------------------------------------------------------------------------------------------------ inside the packages


def module_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """The modules that each module imports, of those given by dotted name; a name of a package is the module itself."""
    graph = {}
    for module, source in sources.items():
        named = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: say the whole name of what is imported"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= (inner & set(sources)) or {str(node.module)}
        graph[module] = named & set(sources) - {module}
    return graph


def upward(graph: dict[str, set[str]], rooms: dict[str, list[set[str]]]) -> list[str]:
    """Arrows from a room to one that is not below it."""
    floors = {(package, room): at for package, own in rooms.items() for at, names in enumerate(own) for room in names}
    found = []
    for module, targets in graph.items():
        for target in targets:
            here, there = tuple(module.split(".")[:2]), tuple(target.split(".")[:2])
            if here != there and here[0] == there[0] in rooms and len(here) == len(there) == 2:
                found += [f"{module} -> {target}"] * (floors[here] <= floors[there])
    return sorted(found)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    places = {path.relative_to(ROOT).as_posix(): path for package in ALLOWED for path in files(package)}
    dotted = {re.sub(r"^llm/|(/__init__)?\.py$", "", file).replace("/", "."): path for file, path in places.items()}
    return module_graph({module: path.read_text(encoding="utf-8") for module, path in dotted.items()})


def test_no_modules_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 80
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_only_what_draws_imports_the_figure_kit(graph: dict[str, set[str]]) -> None:
    """``aent`` needs numpy alone: whoever imports ``aent.plots`` has matplotlib among its own requirements."""
    users = {module for module, targets in graph.items() if "aent.plots" in targets}
    assert {"paper_figures.style", "aent_llm.measure.curves"} <= users
    assert not [module for module in users if module.split(".")[0] in ("aent", "toymdp")]


def test_no_room_imports_one_above_it(graph: dict[str, set[str]]) -> None:
    assert upward(graph, ROOMS) == []


def test_a_circle_and_an_arrow_upward_are_noticed() -> None:
    sources = {
        "toymdp.mdp": "def f():\n    from toymdp.training import loop",
        "toymdp.training": "",
        "toymdp.training.loop": "if TYPE_CHECKING:\n    from toymdp.mdp import TokenMDP",
    }
    graph = module_graph(sources)
    assert upward(graph, ROOMS) == ["toymdp.mdp -> toymdp.training.loop"]
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


# ------------------------------------------------------------------------------------------------ what is really loaded


def loaded(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_aent_loads_nothing_heavy() -> None:
    heavy = {"torch", "scipy", "numba", "gymnasium", "matplotlib", "pandas", "joblib", "toymdp"}
    assert not loaded("import aent") & {*heavy, "numpy"}
    assert not loaded("import aent.entropy, aent.controllers, aent.runs") & heavy


def test_nothing_loads_torch() -> None:
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for package in ("aent", "toymdp", "paper_figures")
        for path in files(package)
        if path.name != "__init__.py"
    ]
    assert {"aent.entropy", "toymdp.training.learners", "toymdp.training.timing", "paper_figures.registry"} <= set(
        modules
    )
    assert "torch" not in loaded(f"import aent, toymdp, paper_figures, {', '.join(modules)}")


def test_the_llm_commands_load_torch_only_when_they_run() -> None:
    """``--help`` and a mistake in the arguments must answer at once."""
    assert not loaded("import aent_llm, aent_llm.__main__, aent_llm.training.checkpoint") & {
        "torch",
        "transformers",
        "trl",
    }


def test_a_heavy_import_would_be_seen() -> None:
    assert "scipy" in loaded("import toymdp.families")
