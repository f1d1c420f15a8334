"""The README keeps its word: commands, paths, links and code; and so do the commands and links of the other pages."""

import doctest
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aent import entropy as entropies
from aent.controllers import Controller, State, controller_from_dict
from aent.entropy import Full, entropy, entropy_gradient
from aent.methods import METHODS
from aent.shaping import Shaping, Tokens, shaping_from_dict
from commands import SMALL_RUN, accept
from commands import run as run_command
from pages import PAGES, ROOT, blocks, commands, leads_somewhere, links, read, section
from paper_figures import registry
from toymdp import compare, suite
from toymdp.training.config import Learner
from toymdp.training.learners import train

README, EXTENDING = read("README.md"), read("docs/extending.md")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PACKAGES = ("aent", "toymdp", "paper_figures", "benchmarks", "experiments", "examples", "llm/aent_llm")


# ----------------------------------------------------------------------------------------------------- command lines

LINES = {line: page for page in reversed(PAGES) for line in commands(read(page))}
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.MULTILINE))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with what commands read of a checkout's root, the examples, and the module of docs/extending.md."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name in ("benchmarks", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    module = blocks("python", section("Your parts by name", read("docs/extending.md")))[0]
    (tmp_path / "my_rules.py").write_text(module, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Trains for two steps when first asked; gives the run directory."""
    folder = tmp_path_factory.mktemp("trained")

    def made() -> Path:
        if not (folder / "run").exists():
            run_command(f"-m aent_llm train --config cpu_aent --output run {SMALL_RUN}".split(), folder)
        return folder / "run"

    return made


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.extra) if "sb3" in line else line for line in LINES]
)
def test_every_command_runs(line: str, root: Path, small_run: Callable[[], Path]) -> None:
    accept(line, root, small_run)


@pytest.mark.parametrize(
    "line",
    [
        "make figurs",
        "pip install -e '.[fligures]'",
        "python -m toymdp lst",
        "python -m toymdp list --tag nothing",
        "python -m toymdp compare --methods fulll",
        "python -m toymdp compare --settings nothing",
        "python -m toymdp verify --sclae smoke",
        "python -m paper_figures --only f99",
        "python -m benchmarks.learner --tokens 3",
        "python -m aent_llm trian",
        "python -m aent_llm train --config nothing",
        "python -m aent_llm train --config cpu_aent --set entropy.suport=full",
        "python -m aent_llm configs nothing > mine.yaml",
        "python -m aent_llm compare runs",
        "python -m experiments.all_methods run --methods nothing",
        "accelerate launch --num_procs 4 -m aent_llm train --config gpu_aent",
        "accelerate launch --num_processes 4 -m aent_llm train --config nothing",
        "trl vllm-serve --model x --tensor-paralel 4",
        "python -m nothing",
        "python examples/nothing.py",
    ],
)
def test_a_wrong_command_is_noticed(line: str, root: Path, small_run: Callable[[], Path]) -> None:
    with pytest.raises((SystemExit, ValueError, AssertionError, OSError)):
        accept(line, root, small_run)


AS_PRINTED = [
    (page, number)
    for page in PAGES
    for number, block in enumerate(blocks("bash", read(page)))
    if re.search("^python ", block, flags=re.MULTILINE)
]
ELSEWHERE = (
    "make",
    "pip",
    "accelerate",
    "trl",
    "git",
    "cd",
    "source",
    "python examples/sb3",
    "python -m experiments.three_way",
)
ELSEWHERE += (
    "python -m experiments.all_methods",
    "python -m benchmarks.head_gpu",
    "python -m paper_figures --only f14",
)
NEEDS_GPU = re.compile(r"train --config (?!cpu_)(?!.*--dry-run)")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), AS_PRINTED)
def test_a_block_of_commands_runs_as_printed(page: str, number: int, root: Path) -> None:
    """From top to bottom, nothing added; without what needs a GPU, an installation or hours."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("TRITON_INTERPRET", None)
    for line in commands(f"```bash\n{blocks('bash', read(page))[number]}```"):
        if not line.startswith(ELSEWHERE) and not NEEDS_GPU.search(line):
            done = subprocess.run(
                line, shell=True, capture_output=True, text=True, cwd=root, env=environment, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"


def test_every_target_is_in_the_readme() -> None:
    named = {word for line in commands(README) if line.startswith("make ") for word in shlex.split(line)[1:]}
    assert {"figures", "test", "notebooks", "docs"} <= TARGETS
    assert TARGETS - named == set()


def test_make_figures_runs_the_figures_at_the_scale_asked_for() -> None:
    """A dry run: what would be executed."""
    done = subprocess.run(
        ["make", "-n", "figures", "SCALE=smoke"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "python -m paper_figures --scale smoke" in done.stdout


def test_make_clean_keeps_what_is_yours(root: Path) -> None:
    shutil.copy(ROOT / "Makefile", root)
    for folder in (".venv", "site", "paper_figures/out", "runs/mine"):
        (root / folder).mkdir(parents=True)
    subprocess.run(["make", "clean"], cwd=root, check=True, capture_output=True)
    assert not any((root / gone).exists() for gone in (".venv", "site", "paper_figures/out"))
    assert (root / "runs" / "mine").is_dir()


@pytest.mark.parametrize(
    ("argv", "printed"),
    [
        (["toymdp", "list"], "smoke-bandit"),
        (["benchmarks.selection", "--rows", "2", "--vocabulary", "500"], "numpy.partition"),
        (["paper_figures", "--help"], "--only"),
        (["aent_llm", "--help"], "calibrate"),
    ],
)
def test_modules_run_as_commands(argv: list[str], printed: str) -> None:
    """The other tests call ``main`` in this process."""
    done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, cwd=ROOT, check=True)
    assert printed in done.stdout


# ----------------------------------------------------------------------------------------------- the tree, links, prose


def tree() -> set[str]:
    """Paths of the annotated tree, relative to the root."""
    (drawing,) = blocks("", section("The tree", README))
    paths, above = set(), []
    for line in drawing.splitlines():
        if found := re.match(r"([│ ]*)[├└]── (\S+)", line):
            above = [*above[: len(found[1]) // 4], found[2]]
            paths.add("/".join(above))
    return paths


def test_every_path_of_the_tree_exists() -> None:
    assert len(tree()) > 50
    assert {path for path in tree() if not (ROOT / path).exists()} == set()


def test_every_file_of_a_package_is_in_the_tree() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    files |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")}
    files |= {path.name for pattern in ("*.md", "*.txt", "*.toml", "Makefile") for path in ROOT.glob(pattern)}
    assert files - tree() == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert [link for link in links(read(page)) if not leads_somewhere(link, page)] == []


def test_a_dead_link_is_noticed() -> None:
    assert len(links(README)) > 8
    assert not leads_somewhere("aent/nothing.py", "README.md")
    assert not leads_somewhere("PAPER.md#nothing", "README.md")
    assert not leads_somewhere("#nothing", "README.md")
    assert not leads_somewhere("PAPER.md", "llm/README.md")


def test_the_figure_is_small_and_described() -> None:
    (image,) = re.findall(r"<img [^>]+>", README)
    source, alt = (re.search(rf'{name}="([^"]+)"', image)[1] for name in ("src", "alt"))  # type: ignore[index]
    assert (ROOT / source).read_bytes().startswith(b"\x89PNG")
    assert (ROOT / source).stat().st_size <= 250_000
    assert len(alt) > 100


def test_the_number_of_figures_is_right() -> None:
    number = len(registry.MODULES)
    words = {16: "Sixteen", 17: "Seventeen", 18: "Eighteen", 19: "Nineteen", 20: "Twenty"}
    assert f"{words.get(number, number)} figures" in README


def test_six_files_to_read() -> None:
    links = re.findall(
        r"^\d\. \[([^]]+)\]\(([^)]+)\)", section("Six files, in reading order", README), flags=re.MULTILINE
    )
    assert len(links) == 6
    assert all(name == target for name, target in links)


@pytest.mark.parametrize("page", PAGES)
def test_no_paths_of_one_machine(page: str) -> None:
    local = r"(?<![\w.:/])(?:/(?:work|tmp|home|root|Users|mnt|opt|scratch|data)/|~/|[A-Z]:\\)"
    assert re.findall(local, read(page)) == []
    assert re.search(local, "see /home/me/x")
    assert not re.search(local, "aent/data/x and https://arxiv.org/home/x")


def test_the_torch_range_is_the_one_of_the_project() -> None:
    (named,) = set(re.findall(r"torch>=[\d.]+,<[\d.]+", README))
    assert f'"{named}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_extras_exist() -> None:
    extras = {one for found in re.findall(r"\.\[([\w,-]+)\]", README) for one in found.split(",")}
    assert {"figures", "dev", "extra"} <= extras
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", text, flags=re.MULTILINE) for extra in extras)


def test_citations_have_a_title_and_an_id() -> None:
    (entries,) = blocks("bibtex", read("docs/citing.md"))
    papers = re.findall(r"@misc\{([\w-]+),(.*?)^\}", entries, flags=re.MULTILINE | re.DOTALL)
    assert len(papers) == entries.count("@")
    for key, body in papers:
        assert re.search(r"title\s+= \{.{20,}\},", body), key
        assert re.search(r"eprint = \{\d{4}\.\d{5}\}, archivePrefix = \{arXiv\}", body), key
        assert body.count("{") == body.count("}"), key
    classes = set(re.findall(r"\b(?:Band|Anchored|BangBang|ProportionalIntegral|Dual)\b", entries))
    assert classes <= set(Controller.registry)
    in_code = set(re.findall(r"\d{4}\.\d{5}", "".join(path.read_text() for path in (ROOT / "aent").glob("*.py"))))
    assert in_code <= set(re.findall(r"\d{4}\.\d{5}", entries))


# ---------------------------------------------------------------------------------------------------- blocks of python


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Execute a block as a script in an empty folder; its rules and methods are forgotten afterwards."""
    before = set(METHODS)
    monkeypatch.setattr(Controller, "registry", Controller.registry.copy())
    monkeypatch.setattr(Shaping, "registry", Shaping.registry.copy())
    monkeypatch.setattr(entropies, "SUPPORTS", entropies.SUPPORTS.copy())
    monkeypatch.chdir(tmp_path)

    def execute(code: str) -> dict[str, Any]:
        (tmp_path / "block.py").write_text(code, encoding="utf-8")
        names = runpy.run_path("block.py")
        assert [path.name for path in tmp_path.iterdir()] == ["block.py"]  # nothing left behind
        return names

    yield execute
    for name in set(METHODS) - before:
        del METHODS[name]


def only_block(title: str, text: str = EXTENDING) -> str:
    """The first block of python under a heading."""
    return blocks("python", section(title, text))[0]


@pytest.mark.parametrize("title", ["An MDP", "An estimator", "A controller"])
def test_adding_takes_under_thirty_lines(title: str) -> None:
    lines = [line for line in only_block(title).splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 30


def test_no_block_is_forgotten() -> None:
    """Every block of python in the two pages is run by one of the tests below."""
    assert len(blocks("python", section("In your own trainer", README))) == 1
    assert len(blocks("python", section("Commands", README))) == 2
    assert len(blocks("python", README)) == 3
    run_below = ["An MDP", "An estimator", "Property-test it", "A controller", "A method"]
    run_by_test_own_parts = ["Your parts by name"]
    assert len(blocks("python", EXTENDING)) == len(run_below + run_by_test_own_parts)


def test_the_trainer_block_moves_the_logits_towards_more_entropy(run: Callable[[str], dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    names = run(only_block("In your own trainer", README))
    logits, state = names["logits"], names["state"]
    assert isinstance(state, State)
    assert state.step == 1
    with torch.no_grad():
        after = names["clamped_entropy"](logits - 1e6 * logits.grad, drop=0.33).mean()
    assert after > names["bonus"] + 0.01


def test_the_gymnasium_block_is_about_the_named_problem(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(blocks("python", section("Commands", README))[0])
    assert names["info"]["optimal_value"] == pytest.approx(1.0)
    assert names["env"].action_space.n == 10_000
    assert names["envs"].num_envs == 256


def test_the_sweep_block_gives_the_numbers_of_a_plain_call(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(blocks("python", section("Commands", README))[1])
    here = compare.compare([names["cell"]], ["none", "full"], compare.Budget(2, 4), n_jobs=1)
    assert here.equals(names["rows"])


def test_the_new_mdp_needs_its_bonus(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(only_block("An MDP"))
    instances = names["instances"]
    assert all(instance.optimum.value == 1.0 for instance in instances)
    bonus = names["history"].value[-1]
    none = train(instances, Learner(1000, 0.03)).value[-1]
    assert (bonus > 0.95).all()
    assert 2 <= (none < 0.45).sum() <= 6  # "about half of the runs stay with the guess"
    env = importlib.import_module("toymdp.envs").TokenEnv(instances[0])
    env.reset(seed=0)
    guess = int(np.flatnonzero(instances[0].mdp.labels[0] == names["GUESS"])[0])
    assert env.step(guess)[1:3] == (pytest.approx(0.4), True)


def test_the_new_setting_is_listed_and_solved() -> None:
    (call,) = re.findall(r"`(_tree\([^`]+\))`", section("An MDP", EXTENDING))
    made = eval(call, {"_tree": suite._tree})
    assert made.name not in suite.SETTINGS
    facts = {key: made.options[key] for key in ("actions", "optimal", "horizon")}
    assert made.name == f"tree-{facts['actions']:.0e}-h{facts['horizon']}-n{facts['optimal']}".replace("e+0", "e")
    assert f'"{made.name}"' in call
    instance = suite._family(made)(np.random.default_rng(0), **made.options)
    assert instance.optimum.log_responses == pytest.approx(facts["horizon"] * np.log(facts["optimal"]))


def test_the_new_estimator_is_right_for_numpy_and_torch(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(only_block("An estimator"))
    rule = names["MinP"](0.05)
    logits = names["logits"]
    kept = np.exp(logits - 2.0) >= 0.05  # by hand: e^-2 = .135 is kept, e^-5 = .007 is not
    assert kept.tolist() == [[True, True, True, False, False]]
    assert entropy(logits, support=rule) == pytest.approx(entropy(logits[:, :3], support=Full()))
    step = 1e-6 * np.eye(5)
    numeric = (entropy(logits + step, support=rule) - entropy(logits - step, support=rule)) / 2e-6
    assert entropy_gradient(logits, support=rule)[0] == pytest.approx(numeric, abs=1e-8)
    history = train([suite.make("smoke-bandit")], Learner(5, 0.1), support=rule)  # "works as it is"
    assert np.isfinite(history.value).all()
    with pytest.raises(ValueError, match=r"e.g. 0.05"):
        names["MinP"](0.0)
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(logits, requires_grad=True)
    value = entropy(tensor, support=rule)
    value.sum().backward()
    assert value.item() == pytest.approx(entropy(logits, support=rule)[0])
    assert tensor.grad.numpy()[0] == pytest.approx(numeric, abs=1e-8)


class FirstTokens:
    """No rule: keeps the first two tokens, whatever their logits."""

    def weights(self, logits: Any) -> Any:
        return np.ones_like(logits) * (np.arange(logits.shape[-1]) < 2)


def test_the_properties_hold_and_notice_a_rule_that_is_none(run: Callable[[str], dict[str, Any]]) -> None:
    min_p = run(only_block("An estimator"))["MinP"](0.05)
    names = run(only_block("Property-test it"))
    tests = {name: test for name, test in names.items() if name.startswith("test_")}

    def failed(rule: Any) -> set[str]:
        found = set()
        for name, test in tests.items():
            test.hypothesis.inner_test.__globals__["rule"] = rule
            try:
                test()
            except AssertionError:
                found.add(name)
        return found

    assert len(tests) == 4
    assert failed(names["rule"]) == failed(min_p) == set()
    assert failed(FirstTokens()) == {"test_the_order_of_tokens_does_not_matter"}


def test_the_new_controller_holds_the_band(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(only_block("A controller"))
    history, rule = names["history"], names["Geometric"](0.01, low=1.0, high=1.5)
    measured = history.support_entropy
    assert (measured[0] > 3.0).all()
    assert ((measured[-10:] > 0.8) & (measured[-10:] < 1.7)).all()
    assert np.mean((measured[-10:] > 1.0) & (measured[-10:] < 1.5)) > 0.5
    assert rule.update(rule.init(), 0.5).coefficient == pytest.approx(0.011)
    assert rule.update(rule.init(), 1.2).coefficient == pytest.approx(0.01)
    assert rule.update(rule.init(), 2.0).coefficient == pytest.approx(0.01 / 1.1)
    assert controller_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    with pytest.raises(ValueError, match="NaN"):  # "validation of measurements comes with the base class"
        rule.update(rule.init(), float("nan"))


def test_adding_a_method_takes_under_forty_lines() -> None:
    lines = [line for line in only_block("A method").splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 40


def test_the_new_method_does_what_it_says_on_numpy_and_torch(run: Callable[[str], dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    names = run(only_block("A method"))
    log_probs = np.log([[0.5, 0.5, 0.9], [0.1, 0.2, 0.9], [0.9, 0.9, 0.9]])
    mask, advantages = np.array([[1.0, 1.0, 0.0]] * 3), np.array([[1.0], [2.0], [-1.0]])
    fields = {"log_probs": log_probs, "old_log_probs": log_probs, "advantages": advantages, "mask": mask}
    others = dict.fromkeys(("entropy", "old_entropy", "support_entropy", "kept", "solved"))
    rule = names["SurprisingOnly"]()
    found = rule(Tokens(**fields, **others), 1.0)
    # by hand: mean surprise of the counted tokens is .69, (2.30 + 1.61) / 2 and .11 nats; the third sample is negative
    assert found.policy.tolist() == [[0, 0, 0], [2, 2, 0], [-1, -1, 0]]
    assert not found.bonus.any()
    assert rule(Tokens(**fields, **others), 0.5).policy[0].tolist() == [1, 1, 0]  # .69 is enough
    tensors = {name: torch.tensor(value) for name, value in fields.items()}
    np.testing.assert_array_equal(rule(Tokens(**tensors, **others), 1.0).policy.numpy(), found.policy)
    history, plain = names["history"], names["plain"]
    assert history.full_entropy[-1].mean() > 1.5 * plain.full_entropy[-1].mean()
    assert shaping_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_a_block_that_fails_is_noticed(run: Callable[[str], dict[str, Any]]) -> None:
    with pytest.raises(ImportError):
        run("from aent.entropy import no_such_rule")


# ---------------------------------------------------------------------------------------------------------- docstrings

MODULES = [
    path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("llm/").replace("/", ".")
    for package in ("aent", "toymdp", "paper_figures", "llm/aent_llm")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module, extraglobs={"np": np})
    lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
    written = sum(">>> " in line and "+SKIP" not in line for line in lines)
    assert (failed, attempted) == (0, written)  # none is passed over, but for one that needs vLLM


def test_there_are_examples_to_run() -> None:
    texts = [Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8") for name in MODULES]
    assert sum(text.count(">>> ") for text in texts) >= 30


def test_a_wrong_example_is_noticed() -> None:
    example = doctest.DocTestParser().get_doctest(">>> np.ones(2).sum()\n3.0", {"np": np}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(example, out=lambda _: None).failed == 1
