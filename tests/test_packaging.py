"""What is built and what is pinned: every package in the wheel, every requirement in ``constraints.txt``."""

import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import aent

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGES = {"aent": "aent", "toymdp": "toymdp", "paper_figures": "paper_figures", "aent_llm": "llm/aent_llm"}


def requirements() -> list[Requirement]:
    """Direct requirements of the distribution and all its extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return [one for one in map(Requirement, lines) if one.name != "aent"]


def pins(text: str) -> dict[str, Version]:
    """name -> version of every ``name==version`` line; any other line is an error."""
    found = {}
    for line in (line.split("#")[0].strip() for line in text.splitlines()):
        if line:
            one = Requirement(line)
            (specifier,) = one.specifier
            assert specifier.operator == "==", f"{line}: a constraint pins one version"
            assert "*" not in specifier.version, f"{line}: a constraint pins one version"
            found[canonical(one.name)] = Version(specifier.version)
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def unpinned(constraints: str) -> list[str]:
    """Requirements that the constraints leave open or contradict; torch may be left to its range (README)."""
    pinned = pins(constraints)
    return [
        str(one)
        for one in requirements()
        if (canonical(one.name) in pinned or one.name != "torch")
        and (canonical(one.name) not in pinned or pinned[canonical(one.name)] not in one.specifier)
    ]


def test_constraints_pin_every_requirement_within_its_range() -> None:
    assert unpinned((ROOT / "constraints.txt").read_text(encoding="utf-8")) == []


def test_a_missing_or_contradicting_pin_is_noticed() -> None:
    kept = [
        f"{one.name}=={min(part.version for part in one.specifier)}"
        for one in requirements()
        if one.name not in ("numpy", "ruff", "stable-baselines3", "torch")
    ]
    found = unpinned("\n".join([*kept, "numpy==1.0  # below the range", "stable-baselines3==3.0", "torch==1.0"]))
    assert {Requirement(one).name for one in found} == {"numpy", "ruff", "stable-baselines3", "torch"}
    with pytest.raises(AssertionError, match="pins one version"):
        pins("numpy>=2")


def test_every_requirement_has_a_lower_bound() -> None:
    assert [str(one) for one in requirements() if not any(part.operator == ">=" for part in one.specifier)] == []


def test_every_folder_of_a_package_is_one_and_is_included() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    for place in PACKAGES.values():
        for folder in {path.parent for path in (ROOT / place).rglob("*.py")}:
            assert (folder / "__init__.py").is_file()
            name = folder.relative_to(ROOT).as_posix().removeprefix("llm/").replace("/", ".")
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_nothing_else_is_included() -> None:
    """Importable top-level folders that a pattern would sweep into the wheel."""
    find = PYPROJECT["tool"]["setuptools"]["packages"]["find"]
    patterns, places = find["include"], [ROOT / where for where in find["where"]]
    others = [path.name for place in places for path in place.iterdir() if (path / "__init__.py").is_file()]
    swept = {name for name in others if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    assert swept == set(PACKAGES)


def test_version_python_and_licence_agree() -> None:
    assert aent.__version__ == PROJECT["version"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert all((ROOT / file).is_file() for file in [*PROJECT["license-files"], PROJECT["readme"]])
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ what is built

CHECKER = Path(sys.executable).with_name("basedpyright")
NOT_SHIPPED = "paper_figures/records/default/"  # verdicts that only README and tests read


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, because building writes into its folder."""
    folder = tmp_path_factory.mktemp("built") / "source"
    ignore = shutil.ignore_patterns("__pycache__", "out", "*.egg-info", ".*")
    for name in ("aent", "toymdp", "paper_figures", "llm", "tests", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def sdist(source: Path) -> Path:
    code = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = source.parent.glob("aent-*.tar.gz")
    return built


@pytest.fixture(scope="session")
def wheel(sdist: Path) -> Path:
    """The wheel that the sdist makes, without the network; the slow test makes it straight from the checkout."""
    return build_wheel(sdist, "--no-index", "--no-build-isolation")


def build_wheel(place: Path, *options: str) -> Path:
    """The wheel of a folder or an sdist, beside it."""
    pip("wheel", "--no-deps", *options, "-w", str(place.parent), str(place))
    (built,) = place.parent.glob("aent-*.whl")
    return built


def pip(command: str, *arguments: str, python: Path | None = None) -> None:
    """Run pip, for another interpreter if one is given."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    words += ["--python", str(python)] if python else []
    subprocess.run([*words, command, "--quiet", *arguments], check=True)


def contents(archive: Path) -> set[str]:
    """Files of a wheel but for its metadata."""
    with zipfile.ZipFile(archive) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def files(source: Path) -> set[str]:
    """What a wheel of the packages in ``source`` has to hold: every file but for the verdicts."""
    every = {
        f"{name}/{path.relative_to(source / place).as_posix()}"
        for name, place in PACKAGES.items()
        for path in (source / place).rglob("*")
        if path.is_file()
    }
    return {name for name in every if not name.startswith(NOT_SHIPPED)}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path, source: Path) -> None:
    assert contents(wheel) == files(source)
    assert {f"{name}/py.typed" for name in PACKAGES} <= contents(wheel)
    assert {"aent_llm/configs/cpu_aent.yaml", "aent_llm/configs/accelerate/fsdp2.yaml"} <= contents(wheel)
    assert {"paper_figures/records/llm_tiny.jsonl", "paper_figures/records/llm_methods.jsonl"} <= contents(wheel)


def test_the_sdist_holds_what_the_wheel_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        tops = {name.split("/")[1] for name in file.getnames() if "/" in name}
    assert tops - {"PKG-INFO", "setup.cfg", "aent.egg-info"} == {
        "aent", "toymdp", "paper_figures", "llm", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------- what an installed copy does


class Installed:
    """An environment outside the checkout: the wheel, and links to what its extras require in this environment."""

    def __init__(self, folder: Path, wheel: Path, extras: set[str]):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        self.folder = folder / "elsewhere"
        self.folder.mkdir()
        self.python = folder / "venv" / "bin" / "python"
        pip("install", "--no-index", "--no-deps", "--no-compile", str(wheel), python=self.python)
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment["PATH"] = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        self.site_packages = Path(self.run("-c", "import aent; print(aent.__path__[0])").stdout.strip()).parent
        (metadata,) = self.site_packages.glob("aent-*.dist-info")
        for path in required_files(metadata, extras):
            (self.site_packages / path.name).symlink_to(path)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run its interpreter in an empty folder of its own."""
        return self.call(str(self.python), *words)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program there."""
        options = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True, "check": False}
        return subprocess.run(words, **options)  # type: ignore[call-overload]


def required_files(aent_metadata: Path, extras: set[str]) -> set[Path]:
    """What lies at the top of site-packages here for the requirements of ``aent[extras]``, and for theirs."""
    waiting, seen, found = [("aent", frozenset(extras))], set(), set()
    while waiting:
        if (wanted := waiting.pop()) in seen:
            continue
        seen.add(wanted)
        name, chosen = wanted
        if name == "aent":
            distribution = importlib.metadata.Distribution.at(aent_metadata)  # the wheel's, not that of the checkout
        else:
            distribution = importlib.metadata.distribution(name)
            tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
            found |= {Path(str(distribution.locate_file(top))) for top in tops}
        waiting += [
            (one.name, frozenset(one.extras))
            for one in map(Requirement, distribution.requires or [])
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in chosen or {""})
        ]
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("whole"), wheel, {"figures", "llm"})


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Without any extra."""
    return Installed(tmp_path_factory.mktemp("bare"), wheel, set())


def test_the_installed_packages_are_those_of_the_wheel_and_typed(installed: Installed) -> None:
    code = (
        f"import importlib, importlib.resources as files; names = {list(PACKAGES)}; "
        "[print(importlib.import_module(name).__file__, (files.files(name) / 'py.typed').is_file()) for name in names]"
    )
    done = installed.run("-c", code)
    places = [installed.site_packages / name / "__init__.py" for name in PACKAGES]
    assert done.stdout.splitlines() == [f"{place} True" for place in places], done.stderr
    assert not installed.site_packages.is_relative_to(ROOT)


def test_the_type_checker_finds_nothing() -> None:
    """What ``make types`` runs; here it shares the cores with the other tests."""
    done = subprocess.run([CHECKER], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_type_checker_sees_the_types(installed: Installed) -> None:
    """It refuses a package without py.typed, and counts what is annotated."""
    done = installed.call(str(CHECKER), "--verifytypes", "aent", "--ignoreexternal")
    assert str(installed.site_packages / "aent" / "py.typed") in done.stdout, done.stdout + done.stderr
    assert "Type completeness score: 100%" in done.stdout


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("aent_llm train --config cpu_aent --dry-run", "'experiment': 'cpu_aent'"),
        ("paper_figures --only f1 f10 --scale smoke --jobs 1", "f10_llm_collapse"),
        ("toymdp verify --scale smoke", "50 of 50 as claimed"),
    ],
)
def test_commands_run_outside_the_checkout(command: str, printed: str, installed: Installed) -> None:
    done = installed.run("-m", *command.split())
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "toymdp list",
        "toymdp verify --scale smoke",
        "toymdp compare --scale smoke",
        "paper_figures --only f1",
        "aent_llm train --dry-run",
        "aent_llm eval --list",
        "aent_llm calibrate --model tiny",
        "aent_llm compare runs",
    ],
)
def test_without_extras_each_command_says_what_to_install(command: str, bare: Installed) -> None:
    done = bare.run("-m", *command.split())
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_extras_the_library_works_and_configs_are_listed(bare: Installed) -> None:
    code = "import numpy as np; from aent.entropy import clamped_entropy; print(clamped_entropy(np.zeros(8), drop=0.5))"
    assert float(bare.run("-c", code).stdout) == pytest.approx(np.log(4))
    assert "qwen_math_aent" in bare.run("-m", "aent_llm", "configs").stdout


@pytest.mark.slow
def test_a_fresh_environment_from_the_index(source: Path, tmp_path: Path) -> None:
    """As users install it: built in isolation, requirements from the index, at the versions of the constraints."""
    built = build_wheel(shutil.copytree(source, tmp_path / "source"))
    assert contents(built) == files(source)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip("install", "-c", str(ROOT / "constraints.txt"), f"aent[figures,llm] @ {built.as_uri()}", python=python)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in ("aent_llm train --config cpu_aent --dry-run", "paper_figures --only f1 --scale smoke --jobs 1"):
        subprocess.run([str(python), "-m", *command.split()], cwd=tmp_path, env=environment, check=True)
