"""The command line as a user meets it: output, exit status, advice; and the example script."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from aent.extras import install_line
from aent.methods import METHODS
from aent.runs import Run, read_run
from toymdp import compare, suite
from toymdp.__main__ import main

ROOT = Path(__file__).parents[2]


def check(name: str, *, holds: bool, control: bool = False) -> SimpleNamespace:
    """Stands for ``toymdp.theory.propositions.Check``."""
    return SimpleNamespace(
        name=name,
        statement=f"[{name}] lhs <= rhs",
        lhs=1.0,
        rhs=2.0,
        margin=1.0,
        holds=holds,
        negative_control=control,
        passed=holds != control,
    )


def refused(capsys, *argv: str) -> str:
    """The one line that a command ends with which cannot be carried out."""
    try:
        status = main(argv)
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


# ---------------------------------------------------------------------------------------------------------------- list


def test_list_names_every_setting_with_its_exact_optimum(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in suite.SETTINGS:
        (line,) = [line for line in lines if f" {name} " in line]
        facts = suite.describe(name)
        assert f"{facts['actions']:,}" in line
        assert f" {facts['optimal_value']:.4g} " in line
        assert f" {facts['log_optimal_responses']:.3f} " in line


def test_tags_narrow_the_list(capsys):
    assert main(["list", "--tag", "fig1", "--tag", "lumped"]) == 0
    out = capsys.readouterr().out
    assert out.count("lumped-fig1-1e5-n") == 4
    assert "smoke-" not in out


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["list", "--tag", "fgi1"], "did you mean 'fig1'"),
        (["list", "--tag", "fig1", "--tag", "uniform"], "no setting has all of the tags fig1, uniform; give fewer"),
        (["list", "--tga", "smoke"], "did you mean --tag?"),
        (["verify", "--sede", "3"], "did you mean --seed?"),
        (["verify", "--scale", "big"], "choose from 'smoke', 'default', 'full'"),
        (["verify", "--seed", "-3"], "whole number >= 0, got '-3'"),
        (["verify", "--seed", "x"], "whole number >= 0, got 'x'"),
        (["lst"], "choose from 'list', 'verify', 'compare'"),
        ([], "list,verify,compare"),
    ],
)
def test_a_bad_command_line_gets_status_2_and_advice(capsys, argv, advice):
    assert advice in refused(capsys, *argv)


COMPARE = ["compare", "--scale", "smoke"]


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["--settings", "smoke-bandt"], "did you mean 'smoke-bandit'"),
        (["--settings", "[red]\nx"], "unknown setting '[red]\\nx'"),
        (["--settings", "smoke-bandit", "toymdp/smoke-bandit-v1"], "smoke-bandit is given twice"),
        (["--settings", "smoke-bandit", "smoke-lumped"], "give --gradient exact --parametrisation tabular"),
        (["--settings", "smoke-lumped", "--gradient", "exact", "--parametrisation", "loglinear"], "tabular"),
        (["--settings"], "expected at least one argument"),
        (["--methods", "ful"], "did you mean 'full'?"),
        (["--methods", "none", "none"], "none is given twice"),
        (["--methods", "none", "--methods", "ful"], "did you mean 'full'?"),
        (["--methods", "ful", "--methods", "none"], "did you mean 'full'?"),
        (["--methods", "all", "none"], "'all' stands alone"),
        (["--methods", "clip-cov", "--gradient", "exact"], "use --gradient sampled"),
        (["--scale", "ful"], "did you mean 'full'?"),
        (["--optimiser", "adm"], "did you mean 'adam'?"),
        (["--stps", "4"], "did you mean --steps?"),
        (["--steps", "0"], "a whole number from 1"),
        (["--steps", "-5"], "got '-5'"),
        (["--steps", "1e3"], "got '1e3'"),
        (["--steps", "nan"], "got 'nan'"),
        (["--steps", "9" * 30], "from 1 to 1000000000"),
        (["--updates", "0"], "a whole number from 1"),
        (["--updates", "2", "--gradient", "exact"], "use 'sampled'"),
        (["--jobs", "0"], "-1 for one per core"),
        (["--jobs", "-2"], "-1 for one per core"),
        (["--jobs", "100000"], "-1 for one per core"),
        (["--rates", "nan"], "finite number > 0, got 'nan'"),
        (["--rates", "inf"], "finite number > 0, got 'inf'"),
        (["--rates", "0"], "finite number > 0, got '0'"),
        (["--rates", "-.1"], "finite number > 0, got '-.1'"),
        (["--rates", "0.1", "1e-1"], "0.1 is given twice"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "new"], "new holds no run"),
        (["--resume", "--out", "file"], "file holds no run"),
        (["--out", "file"], "file is a file; nothing was overwritten. --out names a run directory"),
        (["file"], "unknown arguments: file; file is a file, and this command takes flags only, such as --out;"),
        (["--resume", "."], "unknown arguments: .; . is a folder, and this command takes flags only, such as --out;"),
        (["none"], "none is no flag, and this command takes flags only"),
        (["--out", "."], "nothing was overwritten. Go on with it by --resume"),
        (["--out", "file/new"], "part of the path is a file"),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "/proc/new/run"], "cannot write /proc"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_before_anything_is_computed_or_written(
    tmp_path, monkeypatch, capsys, argv, advice
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("toymdp.compare.tune_and_test", lambda *_: pytest.fail("something was computed"))
    Path("file").write_text("mine")
    assert advice in refused(capsys, *COMPARE, *argv)
    assert os.listdir() == ["file"]
    assert Path("file").read_text() == "mine"


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """The run directory of a small comparison."""
    folder = tmp_path_factory.mktemp("comparison") / "run"
    assert main([*SMALL, "--out", str(folder)]) == 0
    return folder


def test_a_comparison_goes_on_with_its_own_settings(kept, tmp_path, capsys):
    """No flag is typed again; one that says something else is refused by its name."""
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: len(lines) // 2 + 1]))
    again = ["compare", "--out", str(folder), "--resume"]
    assert "learner.steps: saved 4, given 5." in refused(capsys, *again, "--steps", "5")
    assert "methods: saved ['none', 'full'], given ['none']." in refused(capsys, *again, "--methods", "none")
    assert "learner.optimiser: saved 'adam', given 'sgd'." in refused(capsys, *again, "--optimiser", "sgd")
    told = refused(capsys, *again, "--scale", "default")
    assert "budget.test_seeds: saved 4, given 20" in told
    assert "settings: saved ['smoke-bandit'], given ['bandit-1e4-n1', 'bandit-1e4-n15']" in told
    assert main([*again, "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "(smoke scale)" in out
    assert "smoke scale tries the command (4 seeds, 4 updates) and judges no method" in out
    rows = [read_run(one)[2] for one in (kept, folder)]
    assert all(row in rows[1] for row in rows[0])
    assert read_run(folder)[0] == read_run(kept)[0]


def test_only_a_comparison_goes_on(tmp_path, capsys):
    Run.create(tmp_path / "run", {"learner": {"steps": 3}, "train": {}}, seed=0)
    told = refused(capsys, "compare", "--out", str(tmp_path / "run"), "--resume")
    assert "run holds no comparison but another kind of run" in told
    (tmp_path / "run" / "config.json").rename(tmp_path / "file")
    told = refused(capsys, "compare", "--out", str(tmp_path / "file"), "--resume")
    assert f"file holds no run, it is a file; give the run directory, perhaps {tmp_path}" in told


SMALL = [*COMPARE, "--settings", "smoke-bandit", "--methods", "none", "full", "--steps", "4", "--jobs", "1"]
LINE_2 = r"metrics\.jsonl, line 2 is damaged"


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("metrics.jsonl", '"final"', '"finale"', LINE_2 + r" \(final missing"),
        ("metrics.jsonl", '"cell": "smoke-bandit"', '"cell": 3', LINE_2 + r" \(cell missing or of the wrong type"),
        ("metrics.jsonl", '"rate": ', '"rate": "x", "y": ', LINE_2 + r" \(rate missing or of the wrong type"),
        ("metrics.jsonl", "{", "[", LINE_2 + ", not JSON"),
        ("metrics.jsonl", "{", "\xff", LINE_2 + ", not JSON"),
        ("metrics.jsonl", "{", "[" * 100_000, LINE_2 + ", not JSON"),
        ("config.json", "{", "", r"config\.json is damaged, not JSON"),
        ("config.json", '"steps": 4', '"steps": 5', r"config\.json was edited .*learner\.steps: saved 4, given 5"),
        ("provenance.json", '"resumed": []', '"resumed": 3', r"provenance\.json is damaged"),
        ("provenance.json", '"seed": 0', '"seed": "0"', r"provenance\.json is damaged"),
    ],
)
def test_a_damaged_file_of_a_comparison_is_named(kept, tmp_path, capsys, name, old, new, told):
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    text = (folder / name).read_bytes()
    lines = text.splitlines(keepends=True) if name == "metrics.jsonl" else [b"", text]
    damaged = lines[1].replace(old.encode(), new.encode("latin-1"), 1)
    assert damaged != lines[1]
    (folder / name).write_bytes(b"".join([lines[0], damaged, *lines[2:]]))
    before = (folder / name).read_bytes()
    assert re.search(told, refused(capsys, *SMALL, "--out", str(folder), "--resume"))
    assert (folder / name).read_bytes() == before


def test_a_comparison_that_a_full_disk_stopped_goes_on_where_it_was(kept, tmp_path):
    """A limit on file sizes is met in the middle of the second pair, as the end of a disk would be."""
    size = (kept / "metrics.jsonl").stat().st_size
    code = (
        "import resource, sys\nfrom toymdp.__main__ import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size * 3 // 4},) * 2)\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *SMALL, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert re.search(r"cannot write .*metrics\.jsonl: File too large; raise the limit", last)
    assert "Traceback" not in done.stderr
    assert 32 < len((tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()) < 64
    assert main([*SMALL, "--out", str(tmp_path / "run"), "--resume"]) == 0
    rows = [read_run(folder)[2] for folder in (kept, tmp_path / "run")]
    assert all(line in rows[1] for line in rows[0])


def test_ctrl_c_says_what_is_kept_of_a_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    real, first = compare.tune_and_test, METHODS["none"].label

    def stops(cell, method, budget):
        if method.label != first:
            raise KeyboardInterrupt
        return real(cell, method, budget)

    monkeypatch.setattr(compare, "tune_and_test", stops)
    assert main([*SMALL, "--out", "run"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"toymdp: stopped by Ctrl-C; 1 of 2 pairs are kept in {tmp_path / 'run'}: go on with --resume"


@pytest.mark.parametrize("out", [[], ["--out", "run"]], ids=["kept nowhere", "kept"])
def test_a_killed_worker_ends_a_comparison_in_one_line(tmp_path, monkeypatch, capsys, out):
    """As the system kills one where memory runs out: the second pair, once the first is there."""
    monkeypatch.chdir(tmp_path)
    real, first, lines = compare.tune_and_test, METHODS["none"].label, tmp_path / "run" / "metrics.jsonl"

    def dies(cell, method, budget):
        if method.label == first:
            return real(cell, method, budget)
        while out and not lines.read_bytes():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGKILL)

    monkeypatch.setattr(compare, "tune_and_test", dies)
    argv = [*SMALL[:-2], "--jobs", "2", *out]
    assert main(argv) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("toymdp: a worker process was killed, as the system does when memory runs out; ")
    kept = f"1 of 2 pairs are kept in {tmp_path / 'run'}: go on with --resume" if out else "without a run directory"
    assert kept in last
    if out:
        monkeypatch.setattr(compare, "tune_and_test", real)
        assert main([*argv, "--resume"]) == 0


@pytest.mark.parametrize("argv", [[], ["list"], ["verify"], ["compare"]])
def test_help_explains(capsys, argv):
    assert main([*argv, "--help"]) == 0
    assert len(capsys.readouterr().out) > 200


# ------------------------------------------------------------------------------------------------------------- verify


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([check("P1", holds=True), check("P1 broken", holds=False, control=True)], 0),
        ([check("P1", holds=True), check("P2", holds=False)], 1),
        ([check("P1", holds=True), check("P1 broken", holds=True, control=True)], 1),
    ],
)
def test_verify_fails_when_a_claim_fails_or_a_negative_control_does_not(monkeypatch, capsys, checks, status):
    asked = {}

    def verify(**options):
        asked.update(options)
        return checks

    monkeypatch.setattr("toymdp.theory.propositions.verify", verify)
    assert main(["verify", "--scale", "smoke", "--seed", "7"]) == status
    assert asked == {"scale": "smoke", "seed": 7, "progress": True}
    out = capsys.readouterr().out
    assert all(f"[{one.name}]" in out for one in checks)  # statements with brackets are not eaten as markup
    assert f"{2 - status} of 2 as claimed" in out
    assert ("not: " in out) == bool(status)


# ------------------------------------------------------------------------------------------------------------ compare


def test_compare_gets_its_own_arguments_and_its_status_is_passed_on(monkeypatch):
    seen = []
    monkeypatch.setattr("toymdp.compare.add_arguments", lambda parser: parser.add_argument("--budget", type=int))
    monkeypatch.setattr("toymdp.compare.main", lambda args: seen.append(args.budget) or 5)
    assert main(["compare", "--budget", "3"]) == 5
    assert seen == [3]


@pytest.fixture(scope="module")
def compared():
    """Output of a comparison of everything, in a pipe as wide as a screen and in one of 80 columns."""

    def compare(columns: str) -> str:
        small = ["--steps", "20", "--settings", "smoke-bandit", "--jobs", "1", "--updates", "2"]
        return subprocess.run(
            [sys.executable, "-m", "toymdp", "compare", "--methods", "all", "--scale", "smoke", *small],
            capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "COLUMNS": columns},
        ).stdout  # fmt: skip

    return cache(compare)


def test_compare_all_prints_a_line_for_every_method(compared):
    from aent.methods import METHODS

    rows = [line.split("│") for line in compared("200").splitlines() if line.startswith("│")]
    assert [row[2].strip() for row in rows] == [method.label for method in METHODS.values()]
    assert {row[1].strip() for row in rows} == {"smoke-bandit"}
    finals = [float(row[3].split()[0]) for row in rows]
    assert all(0 <= final <= 1 for final in finals)
    assert len(set(finals)) > 5  # not one number for all
    (none,) = [row for row in rows if row[2].strip() == "no bonus"]
    assert none[7].strip() == "0.50"  # P(none beats none)


def test_names_are_whole_in_a_pipe_too(compared):
    assert "…" not in compared("")


def test_list_does_not_load_what_only_compare_and_verify_need():
    code = (
        "import sys; from toymdp.__main__ import main; main(['list', '--tag', 'smoke'])\n"
        "heavy = ('toymdp.compare', 'toymdp.theory.propositions', 'numba', 'pandas', 'torch')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.splitlines()[-1] == "[]"


def test_a_missing_package_is_named_with_the_pip_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    assert f"toymdp: rich is not installed; run: {install_line('figures')}\n" == refused(capsys, "list")


@pytest.mark.parametrize(
    "environment",
    [
        {"COLUMNS": "1"},
        {"COLUMNS": "0"},
        {"COLUMNS": "wide"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TERM": "dumb", "NO_COLOR": "1"},
        {"HOME": ""},
    ],
    ids=str,
)
def test_no_environment_ends_in_a_traceback(environment, tmp_path):
    for argv in (["list", "--tag", "smoke"], ["list", "--tag", "öäü"]):
        done = subprocess.run(
            [sys.executable, "-m", "toymdp", *argv], capture_output=True, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        assert done.returncode == (0 if "smoke" in argv else 2), done.stderr
        assert done.stderr.count(b"\n") == (0 if "smoke" in argv else 1)


def test_no_place_for_compiled_code_is_a_warning(tmp_path):
    """Numba keeps compiled code beside the source or in the user's cache; here a file is in the way of both."""
    for name in ("aent", "toymdp"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    in_the_way = tmp_path / "toymdp" / "training" / "__pycache__"
    in_the_way.write_text("")
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), str(in_the_way))
    code = "import toymdp.training.kernels as k; print(k.OPTIONS['cache'], k.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path), **places},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"False {tmp_path}/toymdp/training/kernels.py\n"
    assert "NUMBA_CACHE_DIR names one" in done.stderr


@pytest.mark.parametrize(("redirected", "status"), [("| true", 141), (">&-", 0), ("2>&-", 0)])
def test_a_closed_stream_ends_without_a_traceback(redirected, status, tmp_path):
    script = f"set -o pipefail; {sys.executable} -m toymdp list --tag smoke {redirected}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False, cwd=tmp_path, env=environment)
    assert done.stderr == b""
    assert done.returncode in (0, 1, status)  # rich may notice first that nobody reads


# ------------------------------------------------------------------------------------------------------------ example


@pytest.mark.extra
@pytest.mark.parametrize(("env_id", "steps", "enough"), [("smoke-bandit", 4096, 0.9), ("smoke-slip", 6144, 0.5)])
def test_stable_baselines3_ppo_learns_unchanged(env_id, steps, enough):
    """Over three times the value it starts with, and past the share of the optimum that no decoy reaches (0.5)."""
    pytest.importorskip("stable_baselines3")
    train = runpy.run_path(str(ROOT / "examples" / "sb3_ppo.py"))["train"]
    before, after, best = train(f"toymdp/{env_id}-v1", steps)
    assert after > 3 * before
    assert after <= best + 1e-6
    assert after > enough * best
