"""Who may import whom, read off the source of every file, and what an import really loads.

    paper_figures -> toymdp -> aent <- aent_llm

Each package may import itself, the packages below it, the standard library and what ``pyproject.toml`` declares for it;
nothing else, also not inside a function. Exceptions, inside functions: the two benchmarks measure torch as a peer, and
a rule or a reward may be any class or callable that the user names.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LAZY = {
    "aent/bench.py": {"torch"}, "toymdp/bench.py": {"torch"}, "aent/registry.py": {"<decided at run time>"},
    "llm/aent_llm/rewards.py": {"<decided at run time>"},
}  # fmt: skip
MATPLOTLIB = {"matplotlib", "cycler", "PIL"}  # colour cycles cannot be set without its own cycler; Pillow comes with it
# ruamel.yaml's package; vLLM is one of two extras, imported inside functions; the next two come with datasets, one with
# transformers, sympy with math-verify, Triton with CUDA builds of torch, so that only kernels.py may need it at all
LLM = {"ruamel", "vllm", "numpy", "pyarrow", "huggingface_hub", "safetensors", "sympy", "triton"}
FOLDERS = {"aent_llm": "llm/aent_llm"}  # packages that are not at the root of the checkout


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


def forbidden(source: str, file: str) -> list[str]:
    """What the file at ``file`` (relative to the root) imports and must not, as ``line: module``."""
    package = file.removeprefix("llm/").partition("/")[0]
    found = []
    for module, line, lazy in imports(ast.parse(source), package):
        top = module.split(".")[0]
        fine = top in sys.stdlib_module_names or top in ALLOWED[package]
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
    assert len(files(package)) > 3
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
        ("aent/entropy.py", "def f():\n    from paper_figures import style", ["2: paper_figures"]),
        ("aent/bench.py", "import torch", ["1: torch"]),  # the peer must be lazy
        ("aent/bench.py", "def f():\n    import transformers", ["2: transformers"]),
        ("aent/runs.py", "def f():\n    import torch", ["2: torch"]),  # and only in the benchmarks
        ("toymdp/learners.py", "if True:\n    from aent_llm.trainer import Trainer", ["2: aent_llm.trainer"]),
        ("toymdp/learners.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", ["3: torch"]),
        ("toymdp/mdp.py", "class A:\n    def f(self):\n        import matplotlib.pyplot", ["3: matplotlib.pyplot"]),
        ("toymdp/mdp.py", "import importlib\nimportlib.import_module('torch.nn')", ["2: torch.nn"]),
        ("toymdp/mdp.py", "import_module(name)", ["1: <decided at run time>"]),
        ("paper_figures/style.py", "t = __import__('torch')", ["1: torch"]),
        ("llm/aent_llm/trainer.py", "from toymdp import suite", ["1: toymdp"]),
        ("llm/aent_llm/compare.py", "def f():\n    import paper_figures", ["2: paper_figures"]),
        ("paper_figures/style.py", "x = lambda: import_module(f'aent_llm.{stem}')", ["1: aent_llm."]),
    ],
)
def test_a_forbidden_import_is_noticed(file: str, source: str, found: list[str]) -> None:
    assert forbidden(source, file) == found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("aent/entropy.py", "import math, numpy as np\nfrom array_api_compat import array_namespace"),
        ("aent/bench.py", "def f():\n    try:\n        import torch\n    except ImportError:\n        pass"),
        ("toymdp/mdp.py", "from . import kernels\nfrom aent.entropy import Full"),
        ("llm/aent_llm/train.py", "import ruamel.yaml, torch\nfrom aent.runs import Run\nfrom trl import GRPOTrainer"),
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


# ------------------------------------------------------------------------------------------------ what is really loaded


def loaded(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_aent_loads_nothing_heavy() -> None:
    heavy = {"torch", "scipy", "numba", "gymnasium", "matplotlib", "pandas", "joblib", "toymdp"}
    assert not loaded("import aent") & {*heavy, "numpy"}
    assert not loaded("import aent.entropy, aent.controllers, aent.runs, aent.bench") & heavy


def test_nothing_loads_torch() -> None:
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for package in sorted(set(ALLOWED) - {"aent_llm"})
        for path in files(package)
        if path.name != "__init__.py"
    ]
    assert {"aent.entropy", "toymdp.learners", "toymdp.bench", "paper_figures.registry"} <= set(modules)
    assert "torch" not in loaded(f"import aent, toymdp, paper_figures, {', '.join(modules)}")


def test_the_llm_commands_load_torch_only_when_they_run() -> None:
    """``--help`` and a mistake in the arguments must answer at once."""
    assert not loaded("import aent_llm, aent_llm.__main__, aent_llm.checkpoint") & {"torch", "transformers", "trl"}


def test_a_heavy_import_would_be_seen() -> None:
    assert "scipy" in loaded("import toymdp.families")
