"""The command, its refusals and the folder it leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from joblib import Parallel, delayed

from aent.extras import missing
from paper_figures import __main__ as command
from paper_figures import output, records, registry
from paper_figures.scale import Scale
from paper_figures.verdicts import Verdict


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the two quickest figures, made through the command."""
    folder = tmp_path_factory.mktemp("figures") / "out"
    assert command.main(["--scale", "smoke", "--only", "f6", "one_step", "--out", str(folder), "--jobs", "1"]) == 0
    return folder


def test_figures_are_replaced_whole_and_named_apart(made, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert command.main(["--scale", "smoke", "--only", "f6", "--out", str(made), "--seed", "1"]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert set(after) == set(before)  # no leftovers of the swap
    assert after["f6_bias.png"] > before["f6_bias.png"]
    assert after["f1_one_step.png"] == before["f1_one_step.png"]
    assert "1 replaced an earlier version" in capsys.readouterr().out
    assert [record.seed for record in output.records(made)[0]] == [0, 1]
    assert (
        "different runs" in (made / "report.html").read_text()
        or len({r.provenance["date"] for r in output.records(made)[0]}) == 1
    )


def test_a_failing_figure_keeps_the_old_one_and_the_others(made, capsys, monkeypatch):
    spec = registry.load("f6_bias")

    def broken(_):
        raise RuntimeError("no ink")

    old = (made / "f6_bias.json").read_text()
    monkeypatch.setattr(registry, "load", lambda stem: type(spec)(**{**vars(spec), "draw": broken}))
    assert command.main(["--scale", "smoke", "--only", "f6", "--out", str(made)]) == 1
    out, err = capsys.readouterr()
    assert "no ink" in err
    assert "Open" not in out
    assert f"1 failed, what else there is lies in {made}" in out.replace("\n", "")
    assert (made / "f6_bias.json").read_text() == old
    assert not [path for path in made.iterdir() if path.name.startswith(".new")]


def test_a_killed_worker_costs_its_figure_and_is_told_in_one_line(made, capfd, monkeypatch):
    spec = registry.load("f6_bias")

    def killed(*_):
        Parallel(n_jobs=2)(delayed(signal.raise_signal)(signal.SIGKILL) for _ in range(2))

    monkeypatch.delenv("AENT_DEBUG", raising=False)
    monkeypatch.setattr(registry, "load", lambda stem: type(spec)(**{**vars(spec), "compute": killed}))
    assert command.main(["--scale", "smoke", "--only", "f6", "--out", str(made), "--jobs", "2"]) == 1
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("paper_figures: f6_bias failed: a worker process was killed, as the system")
    assert "fewer --jobs" in err
    assert f"1 failed, what else there is lies in {made}" in out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "f44"], "did you mean 'f4'?"),
        (["--only", "phase_diagrm"], "did you mean 'phase_diagram'?"),
        (["--only", "f4", "xyz"], "Known: f1"),
        (["--only", "f4", "--only", "xyz"], "unknown figure 'xyz'"),
        (["--only", "f1\n\x1b[31m"], "unknown figure 'f1\\n"),
        (["--only"], "expected at least one argument"),
        (["--olny", "f4"], "did you mean --only?"),
        (["--scale", "huge"], "invalid choice: 'huge'"),
        (["--scale", "ful"], "did you mean 'full'?"),
        (["--seed", "-3"], "whole number >= 0"),
        (["--seed", "²"], "whole number >= 0"),
        (["--seed", "nan"], "whole number >= 0"),
        (["--jobs", "0"], "whole number from 1"),
        (["--jobs", "two"], "whole number from 1"),
        (["--jobs", "1000000"], "whole number from 1"),
        (["--out", ""], "expected a value, got ''"),
        (["--out", "taken"], "--out taken is a file; name a folder"),
        (["--out", "taken/below"], "cannot write taken/below: "),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "/proc/figures"], "cannot write /proc/figures: "),
    ],
)
def test_refusals_advise_in_one_line_before_any_work(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_one", lambda *_: pytest.fail("a figure was computed"))
    (tmp_path / "taken").write_text("mine")
    try:
        code = command.main(["--scale", "smoke", *arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("text", [None, "", "[1]\n", "{", '{"arm": "x", "seed": "0"}\n', "\xff", "[" * 100_000])
def test_a_record_of_ones_own_that_is_damaged_is_refused_before_any_work(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_one", lambda *_: pytest.fail("a figure was computed"))
    monkeypatch.setenv(records.VARIABLE, str(tmp_path / "mine.jsonl"))
    if text is not None:
        (tmp_path / "mine.jsonl").write_text(text, encoding="latin-1")
    assert command.main(["--only", "f10", "--scale", "smoke", "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "mine.jsonl" in err
    assert not (tmp_path / "out").exists()


def test_missing_matplotlib_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from paper_figures.__main__ import main\n"
        "sys.exit(main(['--only', 'f6']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"paper_figures: {missing('matplotlib', 'figures')}\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_text("{}"),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: changed(path, stem="f6_bias"),
        lambda path: changed(path, status="maybe"),
        lambda path: changed(path, seed="0"),
        lambda path: changed(path, seconds=None),
        lambda path: changed(path, rows=True),
        lambda path: changed(path, table=[["a"], [1]]),
        lambda path: changed(path, provenance={}),
        lambda path: changed(path, more=1),
        lambda path: path.with_suffix(".png").unlink(),
        lambda path: path.with_suffix(".png").write_bytes(path.with_suffix(".png").read_bytes()[:2000]),
        lambda path: path.with_suffix(".png").write_bytes(b""),
        lambda path: path.with_suffix(".csv").unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_figure_in_the_folder_costs_only_itself(made, tmp_path, capsys, damage):
    folder = tmp_path / "out"
    shutil.copytree(made, folder)
    (folder / "report.html").unlink()
    damage(folder / "f1_one_step.json")
    assert command._write_page(folder) == folder / "report.html"
    err = capsys.readouterr().err
    assert err.startswith("paper_figures: left out of the report: f1_one_step")
    assert err.count("\n") == 1
    text = (folder / "report.html").read_text()
    assert "id='f6_bias'" in text
    assert "id='f1_one_step'" not in text
    assert "<li>f1_one_step" in text  # the page says what it lacks


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_that_takes_no_more_costs_no_figure(tmp_path):
    """The last file of F1 finds the disk of ``--out`` full, and only that; no disk can be filled in a test."""
    code = (
        "import sys\nfrom paper_figures import output\nfrom paper_figures.__main__ import main\n"
        "import errno, pathlib\nfolder = pathlib.Path(sys.argv[-1])\nplain = output.write_atomically\n"
        "def full(path, content):\n"
        "    if folder in path.parents and 'f1_' in path.name:\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    plain(path, content)\n"
        "output.write_atomically = full\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--scale", "smoke", "--only", "f1", "f6", "--jobs", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"paper_figures: f1_one_step failed: cannot write .*out: No space left on device; free some", line)
    rescue = Path(line.rpartition("The figure is in ")[2])
    assert {"f1_one_step.csv", "f1_one_step.json", "f1_one_step.png"} <= {path.name for path in rescue.iterdir()}
    assert "Open" not in done.stdout
    assert "1 failed" in done.stdout
    assert "id='f6_bias'" in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_removed_while_running_is_made_again(made, tmp_path, capsys, monkeypatch):
    folder, real = tmp_path / "out", command._one

    def removing(*arguments):
        shutil.rmtree(folder)
        return real(*arguments)

    monkeypatch.setattr(command, "_one", removing)
    assert command.main(["--scale", "smoke", "--only", "f6", "--out", str(folder), "--jobs", "1"]) == 0
    assert (folder / "f6_bias.png").is_file()
    assert f"Open {folder / 'report.html'}" in capsys.readouterr().out


def test_brackets_in_the_folder_are_printed_as_they_are(tmp_path, capsys):
    folder = tmp_path / "[INST] :smile: $x$"
    assert command.main(["--scale", "smoke", "--only", "f6", "--out", str(folder), "--jobs", "1"]) == 0
    assert f"Open {folder / 'report.html'}" in capsys.readouterr().out


def test_light_imports():
    code = (
        "import sys, paper_figures.__main__\n"
        "from paper_figures import registry\n"
        "assert 'matplotlib' not in sys.modules and 'numpy' not in sys.modules\n"
        "[registry.load(stem) for stem in registry.MODULES]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registry_order_and_names():
    assert registry.resolve(None) == list(registry.MODULES)
    assert registry.resolve(["f8", "f1_one_step"]) == ["f1_one_step", "f8_clamp_bite"]
    numbers = [int(stem.split("_")[0][1:]) for stem in registry.MODULES]
    assert numbers == list(range(1, len(numbers) + 1))


def test_scale_and_verdict_refuse_nonsense():
    assert Scale("smoke").pick(smoke=1, default=2, full=3) == 1
    with pytest.raises(ValueError, match="smoke, default, full"):
        Scale("tiny")
    with pytest.raises(ValueError, match="holds only if"):
        Verdict("maybe", "")


def test_the_commit_says_whether_the_code_was_changed():
    assert output.commit({"commit": "0123456789abcdef", "dirty": False}) == "0123456789"
    assert output.commit({"commit": "0123456789abcdef", "dirty": True}) == "0123456789+changes"
    assert output.commit({"commit": None, "dirty": None}) == "unknown"
