"""The command, its refusals and the folder it leaves."""

import subprocess
import sys

import pytest

from paper_figures import __main__ as command
from paper_figures import output, registry
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
    assert [record.seed for record in output.records(made)] == [0, 1]
    assert (
        "different runs" in (made / "report.html").read_text()
        or len({r.provenance["date"] for r in output.records(made)}) == 1
    )


def test_a_failing_figure_keeps_the_old_one_and_the_others(made, capsys, monkeypatch):
    spec = registry.load("f6_bias")

    def broken(_):
        raise RuntimeError("no ink")

    old = (made / "f6_bias.json").read_text()
    monkeypatch.setattr(registry, "load", lambda stem: type(spec)(**{**vars(spec), "draw": broken}))
    assert command.main(["--scale", "smoke", "--only", "f6", "--out", str(made)]) == 1
    assert "no ink" in capsys.readouterr().err
    assert (made / "f6_bias.json").read_text() == old
    assert not [path for path in made.iterdir() if path.name.startswith(".new")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "f44"], "did you mean 'f4'?"),
        (["--only", "phase_diagrm"], "did you mean 'phase_diagram'?"),
        (["--only", "f4", "xyz"], "Known: f1"),
        (["--scale", "huge"], "invalid choice: 'huge'"),
        (["--seed", "-3"], "whole number >= 0"),
        (["--jobs", "0"], "whole number >= 1"),
        (["--jobs", "two"], "whole number >= 1"),
    ],
)
def test_refusals_advise(arguments, said, capsys):
    try:
        code = command.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_out_must_be_a_folder(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert command.main(["--only", "f6", "--out", str(tmp_path / "taken")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_missing_matplotlib_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from paper_figures.__main__ import main\n"
        "sys.exit(main(['--only', 'f6']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "paper_figures: matplotlib is missing; pip install 'aent[figures]'\n"


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
