"""A run directory: what was asked (config.json), on what (provenance.json), what came out (metrics.jsonl).

    run = Run.create("runs/first", config, seed=0)      # refuses a directory that already holds something
    run.log(step=1, entropy=0.43)                       # one line, on disk before the call returns
    run = Run.resume("runs/first", config)              # after a kill: same config, run.logged is what is there
    config, provenance, metrics = read_run("runs/first")

A directory appears in one rename, complete, so a process killed at any moment leaves nothing or a run to resume. A
metrics line counts once its newline is written; a torn last line is ignored by readers and cut off by ``resume``.
NaN and infinities are written as Python's json writes them (``NaN``, ``Infinity``), which strict JSON parsers refuse.
provenance.json keeps a copy of the config: an edit of config.json by hand neither passes for the old settings nor is
undone without a word.

A program that goes on with a run holds its lock meanwhile: ``with locked(directory): ...``.

Left out: plots, remote trackers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import aent
from aent.fields import is_whole_number
from aent.files import draft_folder, explain, move_into_place, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Run", "changes", "differences", "locked", "provenance", "read_run"]

_PACKAGES = (
    "numpy", "scipy", "numba", "pandas", "matplotlib", "gymnasium", "joblib", "torch", "transformers", "trl", "vllm",
)  # fmt: skip
_CODE = ("*.py", "*.toml", "*.yaml")  # a results file left in the checkout does not make the code dirty


@dataclass(frozen=True)
class Run:
    """A directory that is being written. Make one with ``create`` or ``resume``.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     run = Run.create(f"{folder}/first", {"learning_rate": 0.1}, seed=0)
        ...     run.log(step=1, entropy=0.43)
        ...     config, origin, metrics = read_run(run.directory)
        >>> config, origin["seed"], metrics
        ({'learning_rate': 0.1}, 0, [{'step': 1, 'entropy': 0.43}])
    """

    directory: Path
    config: dict[str, Any]
    logged: tuple[dict[str, Any], ...] = ()  # the metrics found by ``resume``, oldest first

    @classmethod
    def create(cls, directory: str | Path, config: dict[str, Any], seed: int) -> Run:
        """Start a run in a new (or empty) directory.

        Raises:
            FileExistsError: the directory holds something; the message names both ways out.
            OSError: the directory cannot be made; says why and what to do.
            TypeError: a config that JSON cannot hold.
        """
        directory = Path(directory).resolve()
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise FileExistsError(
                f"{directory} already exists and is not empty; nothing was overwritten. "
                "Go on with Run.resume(directory, config), or choose a new directory"
            )
        config = _as_json(config)
        with draft_folder(directory.parent) as draft:
            _write_json(draft / "config.json", config)
            _write_json(draft / "provenance.json", {**provenance(seed), "config": config, "resumed": []})
            write_atomically(draft / "metrics.jsonl", "")
            move_into_place(draft, directory)
        return cls(directory, config)

    @classmethod
    def resume(
        cls, directory: str | Path, config: dict[str, Any], may_change: Callable[[str], bool] = lambda key: False
    ) -> Run:
        """Go on with a run, whose earlier metrics are in ``logged``; the resumption is added to its provenance.

        What ``may_change`` allows takes the place of the old value in config.json, and provenance names both.

        Raises:
            FileNotFoundError: a file of the run is missing; it is named.
            ValueError: the config differs (the keys are named), or metrics are damaged before the last line.
            OSError: the directory cannot be written; says why and what to do.
        """
        directory, config = Path(directory).resolve(), _as_json(config)
        changed = changes(directory, config, may_change)
        _, origin, logged = read_run(directory)
        path = directory / "metrics.jsonl"
        try:
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        except OSError as error:
            raise explain(error, path) from None
        again = {**provenance(origin.get("seed")), **({"changed": changed} if changed else {})}
        origin |= {"config": config, "resumed": [*origin.get("resumed", []), again]}
        _write_json(directory / "provenance.json", origin)
        _write_json(directory / "config.json", config)
        return cls(directory, config, tuple(logged))

    @classmethod
    def restart(cls, directory: str | Path, config: dict[str, Any], seed: int) -> Run:
        """Start anew in the directory of a run that has logged nothing; files of others there stay.

        Raises:
            FileNotFoundError: not a run directory; the missing file is named.
            ValueError: the run has logged something, or a file is damaged.
            TypeError: a config that JSON cannot hold.
        """
        directory, config = Path(directory).resolve(), _as_json(config)
        if read_run(directory)[2]:
            raise ValueError(f"{directory} holds a run with logged steps; nothing was overwritten")
        _write_json(directory / "config.json", config)
        _write_json(directory / "provenance.json", {**provenance(seed), "config": config, "resumed": []})
        (directory / "metrics.jsonl").write_bytes(b"")  # without a torn line
        return cls(directory, config)

    def log(self, /, **values: Any) -> None:
        """Append one line of numbers and strings, on disk before the call returns.

        Raises:
            OSError: the line cannot be written (a full disk, a removed directory); earlier lines are untouched.
            TypeError: a value that is neither (arrays of one number are accepted when they are 0-d).
        """
        line = json.dumps({key: _scalar(key, value) for key, value in values.items()})
        path = self.directory / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")
        except OSError as error:
            raise explain(error, path) from None


def read_run(directory: str | Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Read (config, provenance, metrics lines) of a run, also of one still running or killed.

    Raises:
        FileNotFoundError: not a run directory, or a file of the run is missing; it is named.
        ValueError: a file is damaged; file and line are named.
    """
    directory, texts = Path(directory), {}
    for name in ("config.json", "provenance.json", "metrics.jsonl"):
        path = directory / name
        if not path.is_file():
            raise FileNotFoundError(_missing(directory, name))
        texts[name] = path.read_bytes()
    config, origin = (_parsed(texts[name], directory / name) for name in ("config.json", "provenance.json"))
    complete = texts["metrics.jsonl"].split(b"\n")[:-1]  # what follows the last newline is torn, or empty
    metrics = [_parsed(line, f"{directory / 'metrics.jsonl'}, line {i}") for i, line in enumerate(complete, 1)]
    kinds = {"resumed": list, "seed": int | None, "config": dict | None}
    if wrong := [key for key, kind in kinds.items() if key in origin and not isinstance(origin[key], kind)]:
        raise ValueError(f"{directory / 'provenance.json'} is damaged: {', '.join(wrong)} of the wrong type")
    return config, origin, metrics


def changes(
    directory: str | Path, config: dict[str, Any], may_change: Callable[[str], bool] = lambda key: False
) -> list[str]:
    """List what ``config`` changes in the run as it was last started: one ``key: saved ..., given ...`` per leaf.

    Args:
        directory: of the run; its provenance.json holds the settings that it was started with.
        config: the settings to go on with.
        may_change: whether the setting under a dotted key may become another within one run.

    Raises:
        FileNotFoundError, ValueError: as ``read_run``.
        ValueError: a setting differs that may not, or differs in config.json alone; all of them are named.
    """
    edited, origin, _ = read_run(directory)
    started = origin.get("config") or edited  # runs of older versions have no copy
    found = differences(started, _as_json(config))
    if refused := [text for key, text in found.items() if not may_change(key)]:
        raise ValueError(
            f"{directory} was started with another config: {'; '.join(refused)}. "
            "Resume with the saved settings, or choose a new directory"
        )
    undone = differences(started, edited)
    if refused := [text for key, text in undone.items() if not (key in found or may_change(key))]:
        raise ValueError(
            f"{Path(directory) / 'config.json'} was edited after the run began, to no effect: {'; '.join(refused)}. "
            "Put it back"
        )
    return list(found.values())


def differences(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, str]:
    """Compare two trees of settings: dotted key -> ``key: saved ..., given ...`` of each leaf that differs.

    NaN equals NaN.

    Examples:
        >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
        {'a.c': 'a.c: saved 2, given 3'}
    """
    old, new = dict(_leaves(saved)), dict(_leaves(given))

    def shown(leaves: dict[str, Any], key: str) -> str:
        return repr(leaves[key]) if key in leaves else "nothing"

    return {
        key: f"{key}: saved {shown(old, key)}, given {shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or (old[key] != new[key] and json.dumps(old[key]) != json.dumps(new[key]))
    }


@contextlib.contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Hold the lock of a run directory; a second holder is refused and told who the first one is.

    The lock is the system's (``flock`` on ``.lock`` in the directory): a killed process holds none, whatever file it
    left. Where the system has no such locks there is none, and a warning says so.

    Raises:
        BlockingIOError: another process (or another place in this one) holds it; names its process id.
        FileNotFoundError: there is no such directory.
        OSError: the lock file cannot be made; says why and what to do.
    """
    path = Path(directory) / ".lock"
    if not path.parent.is_dir():
        raise FileNotFoundError(_missing(path.parent, "config.json"))
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise explain(error, path) from None
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(
                f"{directory} is in use by {file.read().strip() or 'another process'}; two writers would mix their "
                "results. Wait until it ends, stop it, or choose another directory"
            ) from None
        except OSError as error:  # Windows; some network file systems
            warnings.warn(f"{directory} is not locked ({error}): start no second process on it", stacklevel=3)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def provenance(seed: int | None = None) -> dict[str, Any]:
    """What a number depends on besides its config: code, versions, machine, seed, command line, UTC date.

    ``commit`` is that of the checkout this package is imported from, None for an installed copy; ``dirty`` says that
    code there differs from it. Packages that are not installed are absent from ``versions``. Never imports torch.

    Raises:
        TypeError: a seed that is no whole number.
    """
    if not (seed is None or is_whole_number(seed)):
        raise TypeError(f"seed={seed!r}: expected a whole number or None")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
        "seed": None if seed is None else int(seed),
        **_code_state(),
        "versions": {"python": platform.python_version(), "aent": aent.__version__, **dict(_installed())},
        "platform": platform.platform(),
        "cpu": _first_field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [
            _first_field(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        ],
    }


# -------------------------------------------------------------------------------------------------------- internals


def _code_state() -> dict[str, Any]:
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # e.g. a virtual environment inside a checkout
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--", *(f":(top){pattern}" for pattern in _CODE))
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def _installed() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _first_field(path: str | Path, name: str) -> str | None:
    """Value of the first ``name: value`` line of a file under /proc; None where there is none."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """The config as it will be read back: tuples are lists, numpy numbers and arrays are plain."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"config holds a {type(value).__name__} ({value!r}); expected numbers, strings, lists, dicts")

    if not isinstance(config, dict):
        raise TypeError(f"expected a config of names and values (a dict), got a {type(config).__name__}: {config!r}")
    return json.loads(json.dumps(config, default=plain))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _lock(file: Any) -> None:
    if fcntl is None:
        raise OSError("this system has no flock")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _missing(directory: Path, name: str) -> str:
    """Say what a missing file means: no run at all, or one that lost a part of itself."""
    path = directory / name
    if name == "config.json":
        return f"{path} is missing: {directory} is not a run directory (made by Run.create)"
    empty = "an empty file" if name == "metrics.jsonl" else "a file with {}"
    return (
        f"{path} is missing, though {directory} holds a run: was it deleted? Put it back from a copy; without one, "
        f"{empty} in its place lets the run go on, and what it held stays lost"
    )


def _parsed(text: bytes, where: object) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged, not JSON: {error}. Put it back from a copy, or mend it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _scalar(key: str, value: Any) -> Any:
    plain = value.item() if getattr(value, "ndim", None) == 0 else value  # numpy scalars, 0-d arrays and tensors
    if not isinstance(plain, int | float | str):
        raise TypeError(f"{key}={value!r}: log numbers and strings; reduce arrays first, e.g. float(x.mean())")
    return plain
