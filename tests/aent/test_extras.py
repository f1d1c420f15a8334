"""The line that installs an extra works where it is printed: checked with the real metadata and a real pip."""

import importlib.metadata
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from aent import extras
from aent.extras import install_line, missing

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def test_in_a_checkout_the_line_installs_the_checkout_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert install_line("figures") == "pip install -e '.[figures]'"
    monkeypatch.chdir(tmp_path)
    assert shlex.split(install_line("llm")) == ["pip", "install", "-e", f"{ROOT}[llm]"]
    assert missing("matplotlib.figure", "figures") == f"matplotlib is not installed; run: {install_line('figures')}"


@pytest.mark.parametrize("extra", ["figures", "llm", "vllm"])
def test_of_a_wheel_the_line_names_every_requirement_and_no_project_called_aent(tmp_path, monkeypatch, extra):
    metadata = tmp_path / "aent-0.1.0.dist-info"
    metadata.mkdir()
    lines = [f'Requires-Dist: {line}; extra == "{name}"' for name, inside in EXTRAS.items() for line in inside]
    lines = [line.replace("'; extra", "' and extra") for line in lines]  # a marker of its own
    text = "\n".join(["Metadata-Version: 2.4", "Name: aent", "Version: 0.1.0", *lines, ""])
    (metadata / "METADATA").write_text(text, encoding="utf-8")
    monkeypatch.setattr(extras, "ROOT", tmp_path)  # no pyproject.toml there
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.metadata.distribution("aent").version == "0.1.0"
    words = shlex.split(install_line(extra))
    assert words[:2] == ["pip", "install"]
    found = {Requirement(word).name for word in words[2:]}
    assert found == {Requirement(one).name for one in inside(extra)}
    assert "aent" not in found


def inside(extra: str) -> list[str]:
    """Requirements of an extra, those of the extras in it included."""
    found = []
    for line in EXTRAS[extra]:
        one = Requirement(line)
        found += [line] if one.name != "aent" else [more for name in one.extras for more in inside(name)]
    return found


def test_another_project_around_a_copy_is_not_taken_for_the_checkout(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert not extras._is_checkout(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project\n")
    assert not extras._is_checkout(tmp_path)
    assert extras._is_checkout(ROOT)


@pytest.mark.parametrize(
    ("argv", "extra"),
    [
        (["toymdp", "list"], "figures"),
        (["toymdp", "verify"], "figures"),
        (["toymdp", "compare"], "figures"),
        (["paper_figures"], "figures"),
        (["aent_llm", "train"], "llm"),
        (["aent_llm", "calibrate", "--model", "tiny"], "llm"),
        (["aent_llm", "compare", "x"], "llm"),
    ],
    ids=" ".join,
)
def test_on_a_plain_install_every_command_says_in_one_line_what_to_install(argv, extra, tmp_path):
    """The interpreter sees the base requirements and nothing else of what is installed here."""
    for name in ("numpy", "numpy.libs", "array_api_compat", "jaxtyping", "wadler_lindig"):
        (place,) = {Path(folder) for folder in sys.path if (Path(folder) / name).is_dir()}
        (tmp_path / name).symlink_to(place / name)
    path = f"{tmp_path}:{ROOT}:{ROOT / 'llm'}"
    done = subprocess.run(
        [sys.executable, "-S", "-m", *argv], cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"is not installed; run: pip install -e '{ROOT}[{extra}]'" in done.stderr
