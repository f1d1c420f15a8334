"""Running the command lines of the pages: each as it stands, plus flags that make it short where it would take long.

A line runs in this process, in a folder that holds the examples and one finished run of two steps under every name that
the line reads. What only a GPU or several machines can do stops at ``--dry-run``, or takes the
same way at a small size on the CPU.
"""

from __future__ import annotations

import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path

import pytest

from pages import ROOT
from paper_figures import registry

SMALL_RUN = "--set train.max_steps=2 --set train.save_steps=1 --set train.per_device_train_batch_size=16"
SMALL_RUN += " --set evaluation.data.count=4 --set evaluation.samples=2"

ADDED = {  # start of a command -> what is added; the longest start that fits counts
    "python -m toymdp list": "",
    "python -m toymdp verify": "--scale smoke",
    "python -m toymdp compare": "--scale smoke --steps 3 --jobs 1",
    "python -m benchmarks.learner": "--actions 100 --runs 2 --steps 3",
    "python -m benchmarks.selection": "--rows 2 --vocabulary 500",
    "python -m paper_figures": "--scale smoke --only f1 --jobs 1",
    "python -m aent_llm train": "--dry-run",
    "python -m aent_llm train --config cpu_": SMALL_RUN,
    "python -m aent_llm eval": "--limit 4 --samples 2 --max-tokens 4 --bootstrap 20",
    "python -m aent_llm calibrate": "--data tiny --prompts 4 --samples 2 --max-tokens 4 --reward none",
    "python -m aent_llm compare": "",
    "python -m aent_llm configs": "",
    "python -m benchmarks.head": "--vocab 50 --tokens 8 --hidden 4 --rounds 1",
    "python -m benchmarks.head_gpu": "--device cpu --vocab 100 --tokens 8 --hidden 8 --rounds 1",
    "python -m benchmarks.step": "--random-model --vocabulary 100 --hidden 64 --layers 1 --completions 8 "
    "--tokens 8 --rounds 1 --device cpu",
    "python -m benchmarks.kernel_code": "--help",  # half a minute of compiling; as printed in `make test-slow`
    "python -m experiments.three_way sweep": "--dry-run",
    "python -m experiments.all_methods run": "--dry-run",
    "python examples/": "--steps 2",
    "python examples/sb3_ppo.py": "--steps 600",
}
REFUSED = {  # these go on from hours of runs: here they must say what is missing
    "python -m experiments.three_way compare": "run the sweep first",
    "python -m experiments.three_way record": "no finished run",
    "python -m experiments.all_methods record": "no finished run",
}
DONE: set[tuple[str, ...]] = set()  # several lines become one when they are shortened
PLACEHOLDERS = {"MODEL": "tiny", "FILE": "gpu_aent", "$NODE": "0", "$HEAD": "host", "$SERVER": "host"}


def longest_start(line: str, table: dict[str, str]) -> str | None:
    """The entry of a table for a command line."""
    fitting = [start for start in table if (line + " ").startswith(start + " " * (not start.endswith(("/", "_"))))]
    return table[max(fitting, key=len)] if fitting else None


def alternatives(line: str) -> list[str]:
    """``python -m toymdp list | verify`` names two commands."""
    first, *others = line.split(" | ")
    return [first, *(first.rsplit(" ", 1)[0] + " " + other for other in others)]


def accept(line: str, root: Path, small_run: Callable[[], Path]) -> None:
    """Run one command line of a page.

    Raises:
        AssertionError, SystemExit, ValueError, OSError, ImportError, CalledProcessError: it does not work as printed.
    """
    kind = line.split(maxsplit=1)[0]
    if kind == "make":
        accept_make(line, root, small_run)
    elif kind == "pip":
        accept_pip(line)
    elif kind == "accelerate":
        accept_launch(line, root, small_run)
    elif kind == "trl":
        accept_server(line)
    else:
        several = alternatives(line)
        for one in several:
            accept_python(one + " --help" * (len(several) > 1), root, small_run)


def accept_python(line: str, root: Path, small_run: Callable[[], Path]) -> None:
    """``python -m MODULE ...`` or ``python FILE ...``, run in this process in ``root``; ``> FILE`` there too."""
    if line.startswith("python -m pytest"):  # this very suite, or a folder of it
        assert all((ROOT / word).exists() for word in line.split()[3:] if word.startswith("tests/"))
        return
    if refusal := longest_start(line, REFUSED):
        said = io.StringIO()
        with redirect_stderr(said), pytest.raises(SystemExit):
            run(shlex.split(line)[1:], root)
        assert refusal in said.getvalue()
        return
    if "paper_figures" in line:  # each figure has its own tests
        registry.resolve(re.findall(r"\bf\d+\b", line))
        line = re.sub(r" --only( f\d+)+", "", line)
    line, _, target = line.partition(" > ")
    added = longest_start(line, ADDED)
    assert added is not None, f"say in tests/commands.py how to run: {line}"
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
    words = [re.sub(r"\$[A-Z]+", lambda found: PLACEHOLDERS[found[0]], word) for word in words]
    for option, word in pairwise(words):
        read = word.startswith("runs/") and (option not in ("--out", "--output") or "--resume" in words)
        if read and not (root / word).exists():
            shutil.copytree(small_run(), root / "/".join(word.split("/")[:2]), dirs_exist_ok=True)
    words += [] if added in line else shlex.split(added)
    if any("my_rules" in word for word in words):  # its classes would stay in the registries of this process
        subprocess.run([sys.executable, *words], cwd=root, check=True)
    elif tuple(words) not in DONE:
        with (root / target).open("w") if target else nullcontext() as file, redirect_stdout(file or sys.stdout):
            run(words, root)
        DONE.add(tuple(words))


def run(words: list[str], root: Path) -> None:
    """Run a module or a file with arguments as ``python`` would; any status but 0 is an error."""
    is_module = words[0] == "-m"
    named, arguments = words[is_module], words[is_module + 1 :]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package")
        patch.chdir(root)
        patch.setattr(sys, "argv", [named, *arguments])
        try:
            (runpy.run_module if is_module else runpy.run_path)(named, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


def accept_make(line: str, root: Path, small_run: Callable[[], Path]) -> None:
    """What ``make`` would run, line by line; set-up is left out, and what is being run right now."""
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, root)
    (root / ".venv").mkdir(exist_ok=True)
    done = subprocess.run([*shlex.split(line), "--dry-run"], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    recipe = [one.strip().replace(".venv/bin/", "") for one in done.stdout.splitlines() if ".venv/bin/" in one]
    for one in recipe:
        if one.startswith("python -m") and not one.startswith("python -m pip"):
            accept_python(one, root, small_run)


def accept_pip(line: str) -> None:
    """Its extras exist, and so does its constraints file; CI installs one of them for real."""
    for extra in re.findall(r"\.\[([\w,-]+)\]", line):
        declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(re.search(rf"^{one} = \[", declared, flags=re.MULTILINE) for one in extra.split(",")), line
    files = re.findall(r"-c (\S+)", line)
    assert all((ROOT / file).is_file() for file in files)


def accept_launch(line: str, root: Path, small_run: Callable[[], Path]) -> None:
    """``accelerate launch``: its flags by its own parser; what it launches as a dry run for so many processes."""
    from accelerate.commands.launch import launch_command_parser

    flags, _, command = line.removeprefix("accelerate launch ").partition(" -m ")
    words = [re.sub(r"\$[A-Z]+", lambda found: PLACEHOLDERS[found[0]], word) for word in shlex.split(flags)]
    options = launch_command_parser().parse_args([*words, "-m", "aent_llm"])
    accept_python(f"python -m {command} --dry-run --processes {options.num_processes}", root, small_run)


def accept_server(line: str) -> None:
    """``trl vllm-serve``: its flags by its own parser."""
    from trl.scripts.vllm_serve import make_parser

    words = shlex.split(line)
    assert words[1] == "vllm-serve"
    if words[2:]:
        make_parser().parse_args_and_config(words[2:])
