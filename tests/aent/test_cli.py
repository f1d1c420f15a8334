"""What all command lines do with mistakes: one line, status 2; what is not the user's fault keeps its traceback."""

import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from aent import cli


def ended(capsys, error: BaseException) -> tuple[int, str]:
    def command() -> int:
        raise error

    return cli.run("name", command, extra="figures"), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "a"), "name: [Errno 2] No such file or directory: 'a'\n"),
        (FileNotFoundError(2, "No such file"), "name: the current folder no longer exists; change to another one\n"),
        (OSError("two\n  lines \x1b[31mred"), "name: two lines ?[31mred\n"),
        (MemoryError("1 TB"), "name: not enough memory (1 TB); ask for less at a time\n"),
        (ModuleNotFoundError("needs vLLM: run this", name="vllm"), "name: needs vLLM: run this\n"),
        (ModuleNotFoundError("No module named 'rich'", name="rich.table"), f"name: {cli.missing('rich', 'figures')}\n"),
        (ValueError("x"), "name: x (AENT_DEBUG=1 shows where this was raised)\n"),  # these words are not ours
    ],
)
def test_errors_for_users_are_one_line(capsys, monkeypatch, error, line):
    monkeypatch.delenv("AENT_DEBUG", raising=False)
    assert ended(capsys, error) == (2, line)


def test_words_of_ours_need_no_hint(capsys, monkeypatch):
    monkeypatch.delenv("AENT_DEBUG", raising=False)
    from toymdp.suite import setting

    assert cli.run("name", lambda: setting("x"), extra="figures") == 2  # type: ignore[arg-type,return-value]
    assert capsys.readouterr().err == "name: unknown setting 'x'. `python -m toymdp list` shows all\n"


def test_an_interruption_has_the_status_of_its_signal(capsys):
    assert ended(capsys, KeyboardInterrupt()) == (130, "name: interrupted\n")


@pytest.mark.parametrize("error", [AssertionError, TypeError, RuntimeError, ZeroDivisionError])
def test_faults_of_ours_keep_their_traceback(capsys, error):
    with pytest.raises(error):
        ended(capsys, error())


def test_what_is_no_mistake_of_the_input_has_status_1(capsys, monkeypatch):
    monkeypatch.delenv("AENT_DEBUG", raising=False)
    assert ended(capsys, FloatingPointError("NaN")) == (1, "name: NaN\n")
    assert ended(capsys, cli.BrokenOff("x\ny"))[0] == 1
    status, line = ended(capsys, BrokenExecutor("a very\nlong story"))
    assert status == 1
    assert line.startswith("name: a worker process was killed")
    assert line.count("\n") == 1


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("name", ["--text", "--several", "--path", "place"])
def test_an_empty_value_is_no_value(capsys, name, value):
    parser = cli.Parser(prog="prog")
    parser.add_argument("--text")
    parser.add_argument("--several", nargs="+")
    parser.add_argument("--path", type=Path)
    parser.add_argument("place", nargs="?")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([value] if name == "place" else [name, value])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"prog: argument {name}: expected a value, got {value!r}\n"


def test_debugging_shows_every_traceback(capsys, monkeypatch):
    monkeypatch.setenv("AENT_DEBUG", "1")
    with pytest.raises(OSError, match="why"):
        ended(capsys, OSError("why"))


def test_a_missing_module_of_ours_is_a_fault_of_ours(capsys, monkeypatch):
    monkeypatch.delenv("AENT_DEBUG", raising=False)
    assert "pip install" not in ended(capsys, ModuleNotFoundError("No module named 'aent.x'", name="aent.x"))[1]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--scal", "big"], "prog: unknown arguments: --scal big; did you mean --scale? `prog --help` shows"),
        (
            ["--scale", "ful"],
            "prog: argument --scale: invalid choice: 'ful'; did you mean 'full'? (choose from 'smoke'",
        ),
        (["--number", "0"], "prog: argument --number: expected a whole number from 1 to 9, got '0'"),
        (["--number", "10"], "got '10'"),
        (["--number", "²"], "got '²'"),
        (["--number", "1" * 5000], "got '111"),
        (["--rate", "1e999"], "prog: argument --rate: expected a finite number > 0, got '1e999'"),
        (["--number"], "prog: argument --number: expected one argument"),
        (["a\nb\udcff"], "unknown arguments: a b?;"),
    ],
)
def test_a_parser_answers_in_one_line(capsys, argv, line):
    parser = cli.Parser(prog="prog", allow_abbrev=False)
    parser.add_argument("--scale", choices=("smoke", "full"))
    parser.add_argument("--number", type=cli.whole_number(1, 9))
    parser.add_argument("--rate", type=cli.positive_number)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(argv)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_workers_are_bounded_by_the_machine():
    assert cli.workers("1") == 1
    assert cli.workers("-1") >= 1
    parser = cli.Parser()
    parser.add_argument("--jobs", type=cli.workers)
    for text in ("0", "-2", "1000000", "two"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--jobs", text])


def test_nothing_heavy_is_loaded():
    import subprocess

    code = "import sys, aent.cli; print({'numpy', 'rich', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"
