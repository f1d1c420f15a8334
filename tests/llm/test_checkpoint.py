"""Checkpoints that are not whole are told from whole ones, whatever happened to them; settings change by one rule."""

import json
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from aent_llm.training import checkpoint
from aent_llm.training.checkpoint import (
    SEAL,
    check_settings,
    dataset_digest,
    explained,
    last_complete,
    may_change,
    read_checked,
    seal,
    to_resume,
    unseal,
    write_checked,
)

FILES = {"model.safetensors": b"x" * 100, "sub/optimizer.pt": b"y" * 50, "rng_state.pth": b"z" * 9}


def written(run, step, *, sealed=True):
    folder = run / f"checkpoint-{step}"
    (folder / "sub").mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    if sealed:
        seal(folder, {"step": step})
    return folder


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = [zeros, truncate, empty, flip, Path.unlink]


def test_the_state_comes_back(tmp_path) -> None:
    assert unseal(written(tmp_path, 5)) == {"step": 5}


def test_the_newest_whole_one_is_used_by_number_not_by_name(tmp_path) -> None:
    for step in (5, 10, 100):
        written(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-100", [])


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", [*FILES, SEAL])
def test_a_damaged_one_is_passed_over_and_named(tmp_path, name, damage) -> None:
    """Also where the length stays: without checksums every ``zeros`` and ``flip`` passed for whole."""
    good, bad = written(tmp_path, 9), written(tmp_path, 10)
    damage(bad / name)
    found, reasons = last_complete(tmp_path)
    assert found == good
    assert len(reasons) == 1
    assert str(bad) in reasons[0]
    assert name in reasons[0]
    with pytest.raises(ValueError, match="Resume from an earlier checkpoint"):
        unseal(bad)


@pytest.mark.parametrize(
    "text",
    ["[]", "1", '"x"', "null", "{}", '{"crc32": 5}', '{"crc32": "0", "files": [], "state": 0}', "[" * 100_000, "\xff"],
    ids=lambda text: text[:12],
)
def test_a_seal_of_another_form_is_no_seal(tmp_path, text) -> None:
    good, bad = written(tmp_path, 9), written(tmp_path, 10)
    (bad / SEAL).write_bytes(text.encode("latin-1"))
    found, (reason,) = last_complete(tmp_path)
    assert found == good
    assert str(bad / SEAL) in reason


def test_every_changed_digit_of_a_seal_is_noticed(tmp_path) -> None:
    """A coefficient of 0.1 that reads 0.9 is as wrong as a weight, and still JSON."""
    folder = written(tmp_path, 1)
    seal(folder, {"coefficient": 0.125})
    text = (folder / SEAL).read_text()
    for digit in re.finditer(r"\d", text):
        other = str((int(digit.group()) + 1) % 10)
        (folder / SEAL).write_text(text[: digit.start()] + other + text[digit.end() :])
        with pytest.raises(ValueError, match=r"damaged|checksum"):
            unseal(folder)


def test_a_seal_of_an_older_version_is_told_in_one_line(tmp_path) -> None:
    folder = written(tmp_path, 1)
    sizes = {name: len(content) for name, content in FILES.items()}
    (folder / SEAL).write_text(json.dumps({"state": {"controller": {}}, "files": sizes}))
    with pytest.raises(ValueError, match="older AEnt") as caught:
        unseal(folder)
    assert "\n" not in str(caught.value)


def test_without_a_whole_one_a_run_starts_anew_only_if_there_never_was_one(tmp_path) -> None:
    assert to_resume(tmp_path / "absent") == (None, [])
    written(tmp_path, 3, sealed=False)  # killed while writing its first
    found, (reason,) = to_resume(tmp_path)
    assert found is None
    assert "half-written" in reason
    flip(written(tmp_path, 6) / "rng_state.pth")
    with pytest.raises(ValueError, match=r"no checkpoint of .* can be used: .*checkpoint-6.*rng_state.*checkpoint-3"):
        to_resume(tmp_path)


def test_sealing_again_forgets_the_old_content(tmp_path) -> None:
    folder = written(tmp_path, 1)
    (folder / "model.safetensors").write_bytes(b"longer" * 100)
    seal(folder, {"step": 2})
    assert unseal(folder) == {"step": 2}


def test_checked_json_is_read_back_or_refused(tmp_path) -> None:
    content = {"mean": 0.1 + 0.2, "none": None, "list": [1, "ü"], "nan": float("inf")}
    write_checked(tmp_path / "a.json", content)
    assert read_checked(tmp_path / "a.json") == content
    for damage in DAMAGES[:-1]:
        write_checked(tmp_path / "a.json", content)
        damage(tmp_path / "a.json")
        with pytest.raises((ValueError, KeyError)):
            read_checked(tmp_path / "a.json")


# ---------------------------------------------------------------------------------------------------------- settings

SAVED = {"max_steps": 4, "seed": 3, "entropy_support": {"type": "TopK", "k": 9}, "ranks": 2, "save_only_model": False}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed: saved 3, given 4"),
        ({"ranks": 1}, "ranks: saved 2, given 1"),
        ({"entropy_support": {"type": "TopK", "k": 61}}, "entropy_support.k: saved 9, given 61"),
        (
            {"entropy_support": {"type": "Full"}},
            "entropy_support.k: saved 9, given nothing; entropy_support.type: saved 'TopK', given 'Full'",
        ),
        ({"seed": 4, "ranks": 1, "max_steps": 9}, "ranks: saved 2, given 1; seed: saved 3, given 4"),
    ],
)
def test_a_setting_that_makes_another_run_is_refused_by_name(change, named) -> None:
    with pytest.raises(ValueError, match="was written with other settings") as caught:
        check_settings("run/checkpoint-4", SAVED, {**SAVED, **change})
    assert f"({named})" in str(caught.value)


def test_other_settings_take_effect_and_unknown_ones_are_not_compared() -> None:
    check_settings("run/checkpoint-4", SAVED, {**SAVED, "max_steps": 9, "of_a_newer_trl": 1})
    with pytest.raises(ValueError, match="weights only"):
        check_settings("run/checkpoint-4", {**SAVED, "save_only_model": True}, SAVED)


def test_the_one_rule_for_settings_on_resume() -> None:
    """Names as in a settings file and as in the arguments; what decides the numbers may not change."""
    free = ["max_steps", "num_train_epochs", "logging_steps", "save_steps", "save_total_limit", "report_to"]
    fixed = ["seed", "learning_rate", "temperature", "beta", "optim", "per_device_train_batch_size", "num_generations"]
    for prefix in ("", "train."):
        assert all(may_change(prefix + name) for name in free)
        assert not any(may_change(prefix + name) for name in fixed)
    assert all(may_change(name) for name in ("entropy.tile_bytes", "entropy_tile_bytes", "entropy.engine", "paper.x"))
    for name in ("entropy.controller", "entropy.support.k", "entropy.method", "model.source", "data.source", "rewards"):
        assert not may_change(name)


def test_the_digest_of_problems_is_that_of_their_content(tmp_path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"{i}?"}], "answer": str(i)} for i in range(2500)]
    kept = Dataset.from_list(rows)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = Dataset.from_json(str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert dataset_digest(kept) == dataset_digest(read)
    assert dataset_digest(kept).startswith("2500 rows")
    changed = [*rows[:2400], {**rows[2400], "answer": "x"}, *rows[2401:]]
    others = [Dataset.from_list(changed), Dataset.from_list(rows[:-1]), Dataset.from_list(rows[::-1])]
    assert len({dataset_digest(one) for one in (kept, *others)}) == 4
    assert dataset_digest(kept.to_iterable_dataset()) is None


# ------------------------------------------------------------------------------------------------------------ writing


def write_by_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, path)


def write_by_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(10_000)}, str(path))


def write_by_python(path: Path) -> None:
    path.write_bytes(bytes(40_000))


@pytest.mark.parametrize("write", [write_by_torch, write_by_safetensors, write_by_python])
def test_a_write_that_fails_names_place_cause_and_what_is_left(tmp_path, write) -> None:
    """A limit on the size of files fails a write in the middle, as a full disk does."""
    good, bad = written(tmp_path, 1), tmp_path / "checkpoint-2"
    bad.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError, match="cannot write") as caught, explained(bad, discard=True):
            write(bad / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = str(caught.value)
    assert said.startswith(f"cannot write {bad}: File too large; raise the limit")
    assert f"The last complete checkpoint is {good}" in said
    assert not bad.exists()


def test_other_errors_pass_unchanged_and_nothing_is_removed(tmp_path) -> None:
    folder = written(tmp_path, 1)
    with pytest.raises(RuntimeError, match="out of memory"), explained(folder, discard=True):
        raise RuntimeError("CUDA out of memory")
    assert unseal(folder) == {"step": 1}
    shutil.rmtree(folder)
    for discard in (False, True):  # nothing is left to be removed
        with (
            pytest.raises(FileNotFoundError, match=r"cannot write .*was its folder removed\?.*"),
            explained(folder, discard=discard),
        ):
            (folder / "file").write_text("")
    assert checkpoint.sealed(tmp_path) == []
