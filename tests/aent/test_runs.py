"""Run directories: never overwritten, readable at any moment, resumable after a kill."""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aent import runs
from aent.runs import Run, changes, differences, locked, provenance, read_run

CONFIG = {"method": "clamped", "drop": 0.33, "band": {"low": 0.15, "high": 0.24}, "seeds": [0, 1]}


def test_a_run_is_read_back_as_it_was_logged(tmp_path):
    run = Run.create(tmp_path / "new" / "run", CONFIG, seed=3)
    run.log(step=1, entropy=0.1 + 0.2, note='with "quotes", ü and\na newline')
    run.log(step=np.int64(2), entropy=np.float32(0.1), array=np.array(1.5), done=np.bool_(True))
    config, origin, metrics = read_run(tmp_path / "new" / "run")
    assert config == CONFIG
    assert origin["seed"] == 3
    assert metrics == [
        {"step": 1, "entropy": 0.1 + 0.2, "note": 'with "quotes", ü and\na newline'},
        {"step": 2, "entropy": float(np.float32(0.1)), "array": 1.5, "done": True},
    ]
    assert sorted(os.listdir(run.directory)) == ["config.json", "metrics.jsonl", "provenance.json"]
    assert os.listdir(tmp_path / "new") == ["run"]  # no draft left behind


LINE = st.dictionaries(st.text() | st.just("self"), st.floats() | st.integers() | st.text() | st.booleans(), max_size=4)


@settings(max_examples=12)
@given(st.lists(LINE, min_size=5, max_size=25))
def test_every_number_and_string_survives_exactly(tmp_path_factory, lines):
    lines.append({"nan": math.nan, "inf": math.inf, "minus": -math.inf, "zero": -0.0, "tiny": 5e-324})
    run = Run.create(tmp_path_factory.mktemp("run"), {}, seed=0)
    for line in lines:
        run.log(**line)
    assert repr(read_run(run.directory)[2]) == repr(lines)  # repr: NaN equals NaN, 1 is not 1.0 or True


def test_lines_are_on_disk_when_log_returns(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG, seed=0)
    for step in range(3):
        run.log(step=step)
        assert len(read_run(tmp_path / "run")[2]) == step + 1


def test_an_existing_run_is_refused_with_both_ways_out_and_left_alone(tmp_path):
    Run.create(tmp_path / "run", CONFIG, seed=0).log(step=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(FileExistsError, match=r"Run\.resume.*new directory"):
        Run.create(tmp_path / "run", CONFIG, seed=0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="nothing was overwritten"):
        Run.create(tmp_path / "file", CONFIG, seed=0)
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", CONFIG, seed=0)


@pytest.mark.parametrize("torn", [b"", b"{", b'{"step": 3, "no', b'{"step": 3}', b'{"note": "\xc3'])
def test_a_torn_last_line_is_ignored_and_cut_off_on_resume(tmp_path, torn):
    Run.create(tmp_path / "run", CONFIG, seed=0).log(step=1)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert read_run(tmp_path / "run")[2] == [{"step": 1}]
    run = Run.resume(tmp_path / "run", CONFIG)
    assert run.logged == ({"step": 1},)
    run.log(step=2)
    assert read_run(tmp_path / "run")[2] == [{"step": 1}, {"step": 2}]


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path):
    Run.create(tmp_path / "run", CONFIG, seed=0).log(step=1)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_run(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object"):
        read_run(tmp_path / "run")


def test_resuming_with_another_config_names_the_keys_that_differ(tmp_path):
    config = {**CONFIG, "limit": math.nan, "sizes": (1, 2), "array": np.array([1.0, math.nan])}
    Run.create(tmp_path / "run", config, seed=0)
    Run.resume(tmp_path / "run", config)  # tuples, arrays and NaN equal what JSON made of them
    changed = {**config, "band": {"low": 0.2, "high": 0.24}, "extra": 1}
    del changed["drop"]
    with pytest.raises(ValueError, match="another config") as caught:
        Run.resume(tmp_path / "run", changed)
    named = re.findall(r"([\w.]+): saved", str(caught.value))
    assert named == ["band.low", "drop", "extra"]
    assert "saved 0.15, given 0.2" in str(caught.value)
    assert len(read_run(tmp_path / "run")[1]["resumed"]) == 1  # the refused one left no trace


@pytest.mark.parametrize("name", ["config.json", "provenance.json", "metrics.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    Run.create(tmp_path / "run", CONFIG, seed=0)
    (tmp_path / "run" / name).unlink()
    for call in (lambda: read_run(tmp_path / "run"), lambda: Run.resume(tmp_path / "run", CONFIG)):
        with pytest.raises(FileNotFoundError, match=name):
            call()


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, np.zeros(2), 1j, pytest.param(object(), id="object")], ids=repr)
def test_only_numbers_and_strings_are_logged(tmp_path, value):
    run = Run.create(tmp_path / "run", CONFIG, seed=0)
    with pytest.raises(TypeError, match=r"loss=.*log numbers and strings"):
        run.log(step=1, loss=value)
    assert read_run(tmp_path / "run")[2] == []  # nothing half written


def test_a_config_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="config holds a object"):
        Run.create(tmp_path / "run", {"model": object()}, seed=0)
    assert not os.listdir(tmp_path)


def test_a_killed_process_leaves_a_run_that_resumes(tmp_path):
    program = (
        "from aent.runs import Run\n"
        f"run = Run.create({str(tmp_path / 'run')!r}, {CONFIG!r}, seed=5)\n"
        "step = 0\n"
        "while True:\n    run.log(step=step, padding='x' * 10_000)\n    step += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 30
    while not (metrics.exists() and metrics.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = Run.resume(tmp_path / "run", CONFIG)
    assert [line["step"] for line in run.logged] == list(range(len(run.logged)))
    assert len(run.logged) >= 19
    run.log(step=len(run.logged))
    origin, lines = read_run(tmp_path / "run")[1:]
    assert len(lines) == len(run.logged) + 1
    assert origin["seed"] == origin["resumed"][0]["seed"] == 5


def test_provenance_says_what_a_number_depends_on():
    found = provenance(seed=4)
    assert json.loads(json.dumps(found)) == found
    assert found["seed"] == 4
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cores"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    assert provenance()["seed"] is None
    assert {"commit", "dirty", "command", "platform", "cpu", "gpus"} <= found.keys()
    assert (found["commit"] is None) == (found["dirty"] is None)
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40,64}", found["commit"])


def test_provenance_works_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["commit"] is None
    assert provenance()["dirty"] is None


CHECKOUT = """
import json, subprocess
from pathlib import Path
from aent.runs import provenance

def git(*arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()

def state():
    found = provenance()
    return found["commit"], found["dirty"]

said = [state()]
git("init", "-q"), git("add", "."), git("commit", "-q", "-m", "one")
said += [state(), git("rev-parse", "HEAD")]
Path("results.json").write_text("{}")
said += [state()]
Path("scripts/own.py").write_text("1")
said += [state()]
git("rm", "-q", "-r", "--cached", "aent"), git("commit", "-q", "-m", "two")
print(json.dumps([*said, state()]))
"""


def test_provenance_knows_its_checkout_and_whether_code_in_it_has_changed(tmp_path):
    shutil.copytree(Path(runs.__file__).parent, tmp_path / "aent", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "own.py").write_text("0")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", CHECKOUT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    nowhere, clean, commit, results, edited, beside = json.loads(done.stdout)
    assert re.fullmatch("[0-9a-f]{40,64}", commit)
    assert (clean, results, edited) == ([commit, False], [commit, False], [commit, True])
    assert nowhere == beside == [None, None]  # no checkout, and one that does not hold this package


def test_the_first_line_of_a_name_under_proc_counts(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Fast: 2 GHz\nmodel name\t: Another\n")
    assert runs._first_field(path, "model name") == "Fast: 2 GHz"
    assert runs._first_field(path, "Model") is runs._first_field(tmp_path / "none", "Model") is None


def test_a_directory_that_appears_meanwhile_is_named_and_left_alone(tmp_path, monkeypatch):
    def meanwhile(seed):
        (tmp_path / "run" / "theirs").mkdir(parents=True)
        return provenance(seed)

    monkeypatch.setattr(runs, "provenance", meanwhile)
    with pytest.raises(OSError, match=r"cannot write .*run: Directory not empty; choose another place"):
        Run.create(tmp_path / "run", CONFIG, seed=0)
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["theirs"]


def test_metrics_that_became_read_only_are_named_on_resume(tmp_path, monkeypatch):
    Run.create(tmp_path / "run", CONFIG, seed=0)
    real = Path.open

    def read_only(self, mode="r", *options, **more):  # root may write everywhere else
        if "+" in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(self, mode, *options, **more)

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl: Read-only file system; choose"):
        Run.resume(tmp_path / "run", CONFIG)


@pytest.mark.parametrize("wrong", [{"resumed": {}}, {"seed": "3"}, {"config": [1]}], ids=str)
def test_provenance_of_the_wrong_types_is_damaged(tmp_path, wrong):
    Run.create(tmp_path / "run", CONFIG, seed=0)
    path = tmp_path / "run" / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(ValueError, match=rf"provenance\.json is damaged: {next(iter(wrong))} of the wrong type"):
        read_run(tmp_path / "run")


def test_a_run_that_has_logged_nothing_is_started_anew_and_others_are_not(tmp_path):
    Run.create(tmp_path / "run", CONFIG, seed=0)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"torn')
    (tmp_path / "run" / "theirs").write_text("stays")
    run = Run.restart(tmp_path / "run", {**CONFIG, "drop": 0.5}, seed=7)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == b""
    run.log(step=1)
    config, origin, lines = read_run(tmp_path / "run")
    assert config == origin["config"] == run.config == {**CONFIG, "drop": 0.5}
    assert (origin["seed"], origin["resumed"], lines) == (7, [], [{"step": 1}])
    assert (tmp_path / "run" / "theirs").read_text() == "stays"
    with pytest.raises(ValueError, match="holds a run with logged steps; nothing was overwritten"):
        Run.restart(tmp_path / "run", CONFIG, seed=0)
    assert read_run(tmp_path / "run") == (config, origin, lines)


def test_a_link_where_a_draft_was_expected_is_not_followed(tmp_path):
    """Earlier versions named drafts ``.NAME.PID``, and wrote through whatever stood there."""
    (tmp_path / "victim").mkdir()
    (tmp_path / f".run.{os.getpid()}").symlink_to(tmp_path / "victim")
    Run.create(tmp_path / "run", CONFIG, seed=0)
    assert os.listdir(tmp_path / "victim") == []
    assert not (tmp_path / "run").is_symlink()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / f".provenance.json.{os.getpid()}").symlink_to(tmp_path / "precious")
    Run.resume(tmp_path / "run", CONFIG)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_place_that_takes_no_run_and_a_run_that_was_removed_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file.*; part of the path is a file"):
        Run.create(tmp_path / "file" / "run", CONFIG, seed=0)
    run = Run.create(tmp_path / "run", CONFIG, seed=0)
    shutil.rmtree(run.directory)
    with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl: .*was its folder removed\?"):
        run.log(step=1)


# ---------------------------------------------------------------------------------------------------- settings, locks


def test_what_may_change_takes_effect_and_is_recorded_and_the_rest_is_refused(tmp_path):
    Run.create(tmp_path / "run", {"steps": 5, "rate": 0.1, "name": "a"}, seed=0)

    def free(key):
        return key in ("steps", "name")

    with pytest.raises(ValueError, match=r"another config: rate: saved 0\.1, given 0\.2\. "):
        Run.resume(tmp_path / "run", {"steps": 9, "rate": 0.2}, free)
    assert read_run(tmp_path / "run")[0]["steps"] == 5  # the refused one left no trace
    Run.resume(tmp_path / "run", {"steps": 9, "rate": 0.1}, free)
    config, origin, _ = read_run(tmp_path / "run")
    assert config == origin["config"] == {"steps": 9, "rate": 0.1}
    assert origin["resumed"][-1]["changed"] == ["name: saved 'a', given nothing", "steps: saved 5, given 9"]
    assert changes(tmp_path / "run", {"steps": 9, "rate": 0.1}) == []
    with pytest.raises(ValueError, match=r"another config: steps: saved 9, given 10\. "):
        changes(tmp_path / "run", {"steps": 10, "rate": 0.1})  # nothing may change unless it is said


def test_an_edit_of_config_json_neither_passes_for_the_old_settings_nor_is_undone_without_a_word(tmp_path):
    Run.create(tmp_path / "run", CONFIG, seed=0)
    edited = {**CONFIG, "drop": 0.5}
    (tmp_path / "run" / "config.json").write_text(json.dumps(edited))
    with pytest.raises(ValueError, match=r"drop: saved 0\.33, given 0\.5"):
        Run.resume(tmp_path / "run", edited)
    with pytest.raises(ValueError, match=r"config\.json was edited .*drop: saved 0\.33, given 0\.5\. Put it back"):
        Run.resume(tmp_path / "run", CONFIG)
    Run.resume(tmp_path / "run", CONFIG, lambda key: key == "drop")  # nothing to lose: either value could be given
    assert read_run(tmp_path / "run")[0] == CONFIG


def test_differences_name_leaves_and_take_nan_for_equal():
    saved = {"a": {"b": 1, "c": [1, math.nan], "e": {}}, "d": None, "f": True}
    assert differences(saved, json.loads(json.dumps(saved))) == {}
    found = differences(saved, {"a": {"b": 2, "c": [1, 2]}, "d": None, "f": 1, "g": "x"})
    assert found == {
        "a.b": "a.b: saved 1, given 2",
        "a.c": "a.c: saved [1, nan], given [1, 2]",
        "a.e": "a.e: saved {}, given nothing",
        "g": "g: saved nothing, given 'x'",
    }


def test_a_locked_run_tells_who_holds_it_and_is_free_afterwards(tmp_path):
    Run.create(tmp_path / "run", CONFIG, seed=0)
    for _ in range(2):
        with locked(tmp_path / "run"):
            with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} on "), locked(tmp_path / "run"):
                pytest.fail("two at a time")
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} "), locked(tmp_path / "run"):
                pytest.fail("the refused one took the name out")
    with pytest.raises(FileNotFoundError, match="not a run directory"), locked(tmp_path / "absent"):
        pytest.fail("no directory")


def test_a_killed_process_leaves_no_lock_though_its_file_is_there(tmp_path):
    Run.create(tmp_path / "run", CONFIG, seed=0)
    program = (
        "import time\nfrom aent.runs import locked\n"
        f"with locked({str(tmp_path / 'run')!r}):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError, match=f"process {process.pid} on "), locked(tmp_path / "run"):
        pytest.fail("two at a time")
    process.kill()
    process.wait()
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {process.pid} ")
    with locked(tmp_path / "run"):
        pass


def test_without_locks_of_the_system_a_warning_says_so(tmp_path, monkeypatch):
    Run.create(tmp_path / "run", CONFIG, seed=0)
    monkeypatch.setattr(runs, "fcntl", None)
    with pytest.warns(UserWarning, match="is not locked") as warned, locked(tmp_path / "run"):
        pass
    assert warned[0].filename == __file__  # it points at the ``with`` above


@pytest.mark.parametrize("name", ["provenance.json", "metrics.jsonl"])
def test_a_run_that_lost_a_file_says_how_to_go_on_without_it(tmp_path, name):
    Run.create(tmp_path / "run", CONFIG, seed=0).log(step=1)
    (tmp_path / "run" / name).unlink()
    with pytest.raises(FileNotFoundError, match="was it deleted") as caught:
        Run.resume(tmp_path / "run", CONFIG)
    (tmp_path / "run" / name).write_text("{}" if "{}" in str(caught.value) else "")
    assert Run.resume(tmp_path / "run", CONFIG).config == CONFIG
