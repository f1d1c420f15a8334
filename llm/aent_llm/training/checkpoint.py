"""Which checkpoints of a run are whole, and what ours adds to them.

transformers writes a checkpoint file by file; a kill in between leaves a folder that looks like one. ``seal`` is called
when all files are there, flushes them to disk and writes ``aent.json`` in one rename: the trainer's state, the settings
of the run, and length and CRC-32 of every file and of itself. A folder without it, or whose content is not that any
more, is not used, and the one before it is.

``may_change`` is the one rule for settings on resume: what it names takes effect, everything else is refused by name.

Left out: signatures. CRC-32 finds damage, not forgery.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from aent.files import DRAFT, explain, flush_folder, write_atomically
from aent.runs import differences

__all__ = [
    "SEAL", "SET_BY_TRAINER", "check_settings", "dataset_digest", "explained", "last_complete", "may_change",
    "read_checked", "read_seal", "seal", "sealed", "settings", "to_resume", "unseal", "write_checked",
]  # fmt: skip

SEAL = "aent.json"

# What another value of does not make another run: how long, what is written where, and how it is computed.
CHANGEABLE = (
    "max_steps", "num_train_epochs",
    "output_dir", "run_name", "project", "report_to", "disable_tqdm", "log_*", "logging_*", "num_completions_to_print",
    "trackio_*", "push_to_hub", "hub_*", "save_*", "do_*", "local_rank", "resume_from_checkpoint",
    "name", "paper", "paper.*",
    "entropy_tile_bytes", "entropy_engine", "entropy_diagnostics", "gradient_checkpointing*", "ddp_timeout",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "vllm_server_*", "vllm_group_port", "vllm_gpu_memory_utilization", "sampler_tolerance",
)  # fmt: skip
SET_BY_TRAINER = ("ddp_find_unused_parameters", "liger_kernel_config")  # arguments that TRL's ``__init__`` changes
DIGEST_ROWS = 1000  # rows that are turned into text at a time
CHUNK = 1 << 24  # bytes read at a time
PROBE = 1 << 20  # bytes written to find out why a write failed
WRITING = re.compile(r"inline_container|iostream|PytorchStreamWriter|file write")  # what torch says of a failed write


# ------------------------------------------------------------------------------------------------------------- files


def seal(folder: str | Path, state: dict[str, Any]) -> None:
    """Flush a checkpoint to disk and mark it as whole; ``state`` (JSON-ready) is kept in the mark.

    Raises:
        OSError: a file cannot be read, flushed or written; says which and what to do.
    """
    folder = Path(folder)
    files = {str(path.relative_to(folder)): _measure(path, flush=True) for path in _files(folder)}
    for inner in {path.parent for path in _files(folder)} | {folder, folder.parent}:
        flush_folder(inner)
    write_checked(folder / SEAL, {"state": state, "files": files})


def unseal(folder: str | Path) -> dict[str, Any]:
    """Read every file of a checkpoint, and return the state kept in it if all are as they were sealed.

    Raises:
        ValueError: half-written, damaged or made by another trainer; says what is wrong and what to do.
    """
    folder = Path(folder)
    kept = read_seal(folder)
    for name, sealed_as in kept["files"].items():
        path = folder / name
        try:
            found = _measure(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}). {_advice(folder)}") from None
        if found != sealed_as:
            what = "length" if found["bytes"] != sealed_as["bytes"] else "checksum"
            raise ValueError(f"{path} is damaged: its {what} is not what it was when it was written. {_advice(folder)}")
    return kept["state"]


def read_seal(folder: str | Path) -> dict[str, Any]:
    """Read the mark of a checkpoint, ``{"state": ..., "files": ...}``; its files are not looked at.

    Raises:
        ValueError: there is none, it is damaged, or it is of an older version without checksums.
    """
    folder = Path(folder)
    try:
        return read_checked(folder / SEAL)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {SEAL}: half-written, or not written by AEnt. {_advice(folder)}") from None
    except KeyError:
        raise ValueError(
            f"{folder / SEAL} has no checksum: damaged, or of an older AEnt (provenance.json names its version). "
            f"{_advice(folder)}"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}. {_advice(folder)}") from None


def write_checked(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object and its own CRC-32, in one rename.

    Raises:
        OSError: it cannot be written; says why and what to do.
    """
    content = json.loads(json.dumps(content))  # as it will be read back
    write_atomically(path, json.dumps({**content, "crc32": _crc32(content)}, indent=2) + "\n")


def read_checked(path: Path) -> dict[str, Any]:
    """Read what ``write_checked`` wrote.

    Raises:
        OSError: it cannot be read. KeyError: it has no checksum. ValueError: it is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
        crc32 = content.pop("crc32")
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: not the JSON that AEnt writes") from None
    if crc32 != _crc32(content):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content")
    return content


def sealed(run: str | Path) -> list[Path]:
    """List the checkpoints of a run that were once whole, newest first; they may be damaged since."""
    return [folder for folder in _newest_first(run) if (folder / SEAL).exists()]


def last_complete(run: str | Path) -> tuple[Path | None, list[str]]:
    """Find the newest whole checkpoint of a run (None if there is none), and why newer ones were passed over."""
    passed_over = []
    for folder in _newest_first(run):
        try:
            unseal(folder)
        except ValueError as error:
            passed_over.append(str(error))
        else:
            return folder, passed_over
    return None, passed_over


def to_resume(run: str | Path) -> tuple[Path | None, list[str]]:
    """Find the checkpoint to go on from, as ``last_complete``; None only if none was ever whole.

    Raises:
        ValueError: there were whole ones and all are damaged: starting anew would go over them without a word.
    """
    found, passed_over = last_complete(run)
    if found is None and sealed(run):
        raise ValueError(
            f"no checkpoint of {run} can be used: {'; '.join(passed_over)}. To start from the first step all the same, "
            "choose a new directory"
        )
    return found, passed_over


@contextlib.contextmanager
def explained(folder: str | Path, *, discard: bool = False) -> Iterator[None]:
    """Turn whatever a library raises where it cannot write into one sentence; ``discard``: and remove what was written.

    Raises:
        OSError: says which folder, why, what to do and which checkpoint is the last whole one.
    """
    folder = Path(folder)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not WRITING.search(str(error)):
            raise
        told = explain(_system_error(error, folder), folder)
        if discard:
            shutil.rmtree(folder, ignore_errors=True)
        last, _ = last_complete(folder.parent)
        raise type(told)(
            f"{told}. The last complete checkpoint is {last or 'none'}: once there is room, --resume goes on from it"
        ) from error


# ---------------------------------------------------------------------------------------------------------- settings


def settings(args: Any, *, rewards: list[str], dataset: Any) -> dict[str, Any]:
    """Collect what a run depends on: all arguments, number of ranks, names of the rewards, digest of the problems."""
    return {
        **json.loads(json.dumps(args.to_dict(), default=str)),
        "ranks": args.world_size,
        "rewards": list(rewards),
        "dataset": dataset_digest(dataset),
    }


def check_settings(folder: str | Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse settings under which a checkpoint would not go on as the same run.

    A setting that only one of two versions of the libraries knows is not compared.

    Raises:
        ValueError: names each such setting with its saved and its present value; fewer steps are asked for than were
            trained; or weights only were saved.
    """
    if saved.get("save_only_model"):
        raise ValueError(
            f"{folder} has weights only (save_only_model: true), neither optimiser nor random states: it cannot be "
            f"resumed. Start a new run from its weights (model.source={folder})"
        )
    shared = saved.keys() & given.keys()
    found = differences({key: saved[key] for key in shared}, {key: given[key] for key in shared})
    if refused := [text for key, text in found.items() if not may_change(key)]:
        raise ValueError(
            f"{folder} was written with other settings ({'; '.join(refused)}): its state does not carry over. Resume "
            "with the saved ones, or start a new run"
        )
    if 0 < given.get("max_steps", 0) < _step(Path(folder)):
        raise ValueError(
            f"max_steps: saved {saved.get('max_steps')}, given {given['max_steps']}, but {folder} is at step "
            f"{_step(Path(folder))} already. Give more, or start a new run"
        )


def may_change(key: str) -> bool:
    """Whether the setting of this name may become another when a run goes on: ``train.max_steps`` or ``max_steps``."""
    name = key.removeprefix("train.").replace("entropy.", "entropy_", 1)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in CHANGEABLE)


def dataset_digest(dataset: Any) -> str | None:
    """Number and CRC-32 of the rows, the same wherever they are read from; None for a stream.

    What JSON cannot hold (an image) counts by its type.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        return None
    crc32 = 0
    for start in range(0, len(dataset), DIGEST_ROWS):
        rows = dataset[start : start + DIGEST_ROWS]
        text = json.dumps(rows, sort_keys=True, default=lambda value: type(value).__name__)
        crc32 = zlib.crc32(text.encode(), crc32)
    return f"{len(dataset)} rows, {crc32:08x}"


# --------------------------------------------------------------------------------------------------------- internals


def _advice(folder: Path) -> str:
    return f"Resume from an earlier checkpoint of {folder.parent}, or start a new run from its weights"


def _newest_first(run: str | Path) -> list[Path]:
    folders = [folder for folder in Path(run).glob("checkpoint-*") if folder.is_dir() and _step(folder) >= 0]
    return sorted(folders, key=_step, reverse=True)


def _step(folder: Path) -> int:
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found.group(1)) if found else -1


def _files(folder: Path) -> list[Path]:
    """All files but the seal itself and its drafts."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return sorted(path for path in found if not path.name.startswith(DRAFT))


def _measure(path: Path, *, flush: bool = False) -> dict[str, Any]:
    """Length and CRC-32 of a file, which is flushed to disk if asked for."""
    size = crc32 = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, crc32 = size + len(chunk), zlib.crc32(chunk, crc32)
        if flush:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise explain(error, path) from None
    return {"bytes": size, "crc32": f"{crc32:08x}"}


def _crc32(kept: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


def _system_error(error: Exception, folder: Path) -> OSError:
    """What the system said: given, in the text of a library's error, or found by writing once more."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    if number:
        return OSError(int(number.group(1)), os.strerror(int(number.group(1))))
    try:
        write_atomically(folder / ".probe", bytes(PROBE))
        (folder / ".probe").unlink()
    except OSError as found:
        return OSError(found.errno, os.strerror(found.errno or 0))
    return OSError(0, str(error).partition("\n")[0])
