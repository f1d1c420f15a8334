"""The README keeps its word: commands, paths, links and code; and so does every example in a docstring."""

import ast
import doctest
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aent.controllers import Controller, State, controller_from_dict
from aent.entropy import Full, entropy, entropy_gradient
from aent.shaping import Shaping, Tokens, shaping_from_dict
from aent_llm import __main__ as llm_command
from paper_figures import __main__ as figures_command
from paper_figures import registry
from toymdp import __main__ as toymdp_command
from toymdp import compare, suite
from toymdp.learners import Learner, train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PACKAGES = ("aent", "toymdp", "paper_figures", "examples", "llm/aent_llm")


def blocks(language: str, text: str = README) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """Text under a heading, down to the next one of its level or above."""
    level, text = re.search(rf"^(#+) {re.escape(title)}\n(.*)", README, flags=re.MULTILINE | re.DOTALL).groups()  # type: ignore[union-attr]
    outside = re.split(rf"^#{{1,{len(level)}}} ", text, flags=re.MULTILINE)  # python blocks have no such lines
    return outside[0]


def command_lines() -> list[str]:
    """Lines of the shell blocks, without comments."""
    lines = (line.split("  #")[0].split("   #")[0].strip() for block in blocks("bash") for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def commands_in_text() -> list[str]:
    """``make ...`` and ``python ...`` in backticks."""
    return re.findall(r"`((?:make|python) [^`]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL))


# ------------------------------------------------------------------------------------------------------------ make

TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.MULTILINE))
MAKE_LINES = sorted({line for line in [*command_lines(), *commands_in_text()] if line.startswith("make ")})


@pytest.mark.parametrize("line", MAKE_LINES)
def test_make_knows_what_is_named(line: str) -> None:
    goals = [word for word in shlex.split(line)[1:] if "=" not in word]
    settings = [word.partition("=")[0] for word in shlex.split(line)[1:] if "=" in word]
    assert goals
    assert set(goals) <= TARGETS
    assert all(re.search(rf"^{name} \?= ", MAKEFILE, flags=re.MULTILINE) for name in settings)


def test_every_target_is_in_the_readme() -> None:
    named = {word for line in MAKE_LINES for word in shlex.split(line)[1:]}
    assert {"figures", "test"} <= TARGETS
    assert TARGETS - named == set()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_figures_runs_the_figures_at_the_scale_asked_for() -> None:
    """A dry run: what would be executed."""
    done = subprocess.run(
        ["make", "-n", "figures", "SCALE=smoke"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "python -m paper_figures --scale smoke" in done.stdout


# ------------------------------------------------------------------------------------------------ python command lines

PYTHON_LINES = sorted({line for line in [*command_lines(), *commands_in_text()] if line.startswith("python ")})


def accept(line: str) -> None:
    """Parse a command line as its command would, and look up the names that it gives; raises if it would be refused."""
    words = shlex.split(line)[1:]
    if words[0] == "-m":
        {
            "toymdp": _accept_toymdp,
            "paper_figures": _accept_figures,
            "toymdp.bench": _accept_flags,
            "aent.bench": _accept_flags,
            "aent_llm": _accept_llm,
            "aent_llm.bench": _accept_flags,
            "aent_llm.bench_step": _accept_flags,
            "aent_llm.bench_gpu": _accept_flags,
            "aent_llm.kernel_code": _accept_flags,
            "aent_llm.study": _accept_flags,
            "aent_llm.leaderboard": _accept_flags,
        }[words[1]](words[1], words[2:])
    else:
        assert (ROOT / words[0]).is_file(), words[0]
        _accept_flags(words[0], words[1:])


def _accept_toymdp(_: str, words: list[str]) -> None:
    words = [word for word in words if word != "|"]  # "list | verify | compare" names three commands
    if words == ["list", "verify", "compare"]:
        for word in words:
            _accept_toymdp(_, [word])
        return
    options = toymdp_command._parser(with_compare=words[0] == "compare").parse_args(words)
    if words[0] == "list":
        assert suite.select(*options.tag)
    if words[0] == "compare":
        assert options.methods == ["all"] or set(options.methods) <= set(compare.METHODS)
        assert all(suite.setting(name) for name in options.settings or ())


def _accept_figures(_: str, words: list[str]) -> None:
    registry.resolve(figures_command._parser().parse_args(words).only)


def _accept_llm(_: str, words: list[str]) -> None:
    if "|" in words:  # "train | eval | calibrate | compare" names four commands
        assert set(words) - {"|"} == set(llm_command.COMMANDS)
        return
    module = importlib.import_module("aent_llm." + llm_command.COMMANDS[words[0]][0])
    options = module._parser().parse_args(words[1:])
    if words[0] == "train":
        assert (ROOT / options.config).is_file(), options.config


def _accept_flags(module: str, words: list[str]) -> None:
    """Scripts that build their parser inside ``main``: the flags are read off their source, values are not checked."""
    place = "llm/" * module.startswith("aent_llm")
    file = ROOT / (module if module.endswith(".py") else place + module.replace(".", "/") + ".py")
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    names = [call.args[0].value for call in calls if getattr(call.func, "attr", "") == "add_argument"]  # type: ignore[attr-defined]
    unknown = [word for word in words if word.startswith("-") and word not in names]
    assert not unknown, f"{file.name} has no {unknown}"


@pytest.mark.parametrize("line", PYTHON_LINES)
def test_python_commands_are_accepted(line: str) -> None:
    accept(line)


@pytest.mark.parametrize(
    "line",
    [
        "python -m toymdp lst",
        "python -m toymdp list --tag nothing",
        "python -m toymdp compare --methods fulll",
        "python -m toymdp compare --settings nothing",
        "python -m toymdp verify --sclae smoke",
        "python -m paper_figures --only f99",
        "python -m paper_figures --scale big",
        "python -m toymdp.bench --tokens 3",
        "python -m aent_llm trian",
        "python -m aent_llm train --config llm/configs/nothing.yaml",
        "python -m aent_llm compare --baselin x",
        "python -m nothing",
        "python examples/nothing.py",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((SystemExit, ValueError, AssertionError, KeyError)):
        accept(line)


@pytest.mark.parametrize(
    "argv",
    [
        ["list"],
        ["compare", "--scale", "smoke", "--methods", "none", "full", "keep100", "--steps", "3", "--jobs", "1"],
    ],
)
def test_toymdp_commands_run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert toymdp_command.main(argv) == 0
    assert capsys.readouterr().out.count("\n") > 5


def test_a_figure_is_made(tmp_path: Path) -> None:
    assert figures_command.main(["--scale", "smoke", "--only", "f1", "--out", str(tmp_path), "--jobs", "1"]) == 0
    assert {"report.html", "f1_one_step.png", "f1_one_step.csv"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("argv", "printed"),
    [
        (["toymdp", "verify", "--scale", "smoke"], "as claimed"),
        (["aent.bench", "--rows", "2", "--vocabulary", "500"], "numpy.partition"),
    ],
)
def test_modules_run_as_commands(argv: list[str], printed: str) -> None:
    done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, cwd=ROOT, check=True)
    assert printed in done.stdout


# ----------------------------------------------------------------------------------------------- the tree, links, prose


def tree() -> set[str]:
    """Paths of the annotated tree, relative to the root."""
    (drawing,) = blocks("", section("The tree"))
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


def test_links_lead_somewhere() -> None:
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not link.startswith("https://")]
    assert len(links) > 8
    assert [link for link in links if not _leads_somewhere(link)] == []
    assert not _leads_somewhere("aent/nothing.py")
    assert not _leads_somewhere("PAPER.md#nothing")
    assert not _leads_somewhere("#nothing")


def _leads_somewhere(link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = ROOT / path if path else ROOT / "README.md"
    if not anchor or not target.is_file():
        return target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_figure_is_small_and_described() -> None:
    (image,) = re.findall(r"<img [^>]+>", README)
    source, alt = (re.search(rf'{name}="([^"]+)"', image)[1] for name in ("src", "alt"))  # type: ignore[index]
    assert (ROOT / source).read_bytes().startswith(b"\x89PNG")
    assert (ROOT / source).stat().st_size <= 250_000
    assert len(alt) > 100


def test_the_number_of_figures_is_right() -> None:
    words = ("Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve", "Thirteen", "Fourteen", "Fifteen", "Sixteen")
    assert f"{words[len(registry.MODULES) - 7]} figures" in README


def test_six_files_to_read() -> None:
    links = re.findall(r"^\d\. \[([^]]+)\]\(([^)]+)\)", section("Six files, in reading order"), flags=re.MULTILINE)
    assert len(links) == 6
    assert all(name == target for name, target in links)


@pytest.mark.parametrize("page", ["README.md", "PAPER.md"])
def test_no_paths_of_one_machine(page: str) -> None:
    local = r"(?<![\w.:/])(?:/(?:work|tmp|home|root|Users|mnt|opt|scratch|data)/|~/|[A-Z]:\\)"
    assert re.findall(local, (ROOT / page).read_text(encoding="utf-8")) == []
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
    (entries,) = blocks("bibtex")
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
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Execute a block as a script in an empty folder; its controllers are forgotten afterwards."""
    monkeypatch.setattr(Controller, "registry", dict(Controller.registry))
    monkeypatch.setattr(Shaping, "registry", dict(Shaping.registry))
    monkeypatch.chdir(tmp_path)

    def execute(code: str) -> dict[str, Any]:
        (tmp_path / "block.py").write_text(code, encoding="utf-8")
        names = runpy.run_path("block.py")
        assert [path.name for path in tmp_path.iterdir()] == ["block.py"]  # nothing left behind
        return names

    return execute


def only_block(title: str) -> str:
    (code,) = blocks("python", section(title))
    return code


@pytest.mark.parametrize("title", ["an MDP", "an estimator", "a controller"])
def test_adding_takes_under_thirty_lines(title: str) -> None:
    lines = [line for line in only_block(title).splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 30


def test_no_block_is_forgotten() -> None:
    """Every block of python in the README is run by one of the tests below."""
    run_below = ["In your own trainer", "an MDP", "an estimator", "a controller", "a method"]
    assert len(blocks("python")) == len(run_below) + len(blocks("python", section("Commands")))
    assert len(blocks("python", section("Commands"))) == 2


def test_the_trainer_block_moves_the_logits_towards_more_entropy(run: Callable[[str], dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    names = run(only_block("In your own trainer"))
    logits, state = names["logits"], names["state"]
    assert isinstance(state, State)
    assert state.step == 1
    with torch.no_grad():
        after = names["clamped_entropy"](logits - 1e6 * logits.grad, drop=0.33).mean()
    assert after > names["bonus"] + 0.01


def test_the_gymnasium_block_is_about_the_named_problem(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(blocks("python", section("Commands"))[0])
    assert names["info"]["optimal_value"] == pytest.approx(1.0)
    assert names["env"].action_space.n == 10_000
    assert names["envs"].num_envs == 256


def test_the_sweep_block_gives_the_numbers_of_a_plain_call(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(blocks("python", section("Commands"))[1])
    here = compare.compare([names["cell"]], ["none", "full"], compare.Budget(2, 4), n_jobs=1)
    assert here.equals(names["rows"])


def test_the_new_mdp_needs_its_bonus(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(only_block("an MDP"))
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
    (call,) = re.findall(r"`(_tree\([^`]+\))`", section("an MDP"))
    made = eval(call, {"_tree": suite._tree})
    assert made.name not in suite.SETTINGS
    facts = {key: made.options[key] for key in ("actions", "optimal", "horizon")}
    assert made.name == f"tree-{facts['actions']:.0e}-h{facts['horizon']}-n{facts['optimal']}".replace("e+0", "e")
    assert f'"{made.name}"' in call
    instance = suite._family(made)(np.random.default_rng(0), **made.options)
    assert instance.optimum.log_responses == pytest.approx(facts["horizon"] * np.log(facts["optimal"]))


def test_the_new_estimator_is_right_for_numpy_and_torch(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(only_block("an estimator"))
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


def test_the_new_controller_holds_the_band(run: Callable[[str], dict[str, Any]]) -> None:
    names = run(only_block("a controller"))
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
    lines = [line for line in only_block("a method").splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 40


def test_the_new_method_does_what_it_says_on_numpy_and_torch(run: Callable[[str], dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    names = run(only_block("a method"))
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
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for package in ("aent", "toymdp", "paper_figures")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module, extraglobs={"np": np})
    written = Path(str(module.__file__)).read_text(encoding="utf-8").count(">>> ")
    assert (failed, attempted) == (0, written)  # none is passed over


def test_there_are_examples_to_run() -> None:
    texts = [(ROOT / (name.replace(".", "/") + ".py")).read_text(encoding="utf-8") for name in MODULES]
    assert sum(text.count(">>> ") for text in texts) >= 3


def test_a_wrong_example_is_noticed() -> None:
    example = doctest.DocTestParser().get_doctest(">>> np.ones(2).sum()\n3.0", {"np": np}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(example, out=lambda _: None).failed == 1
