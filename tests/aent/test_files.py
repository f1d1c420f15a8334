"""Files appear whole or not at all, links are not followed, and a place that takes none is named with advice."""

import errno
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aent import files
from aent.files import check_writable, draft_folder, move_into_place, remove_stale_drafts, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("content", ["first\nü\n", b"\x00\xff\r\n", ""])
def test_what_is_written_is_what_is_read_and_nothing_else_is_there(tmp_path, content):
    write_atomically(tmp_path / "a", "old")
    write_atomically(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["a"]


def test_the_mode_is_that_of_an_ordinary_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "a", "x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("linked", [True, False])
def test_who_comes_second_is_refused_and_keeps_his_content(tmp_path, monkeypatch, linked):
    if not linked:  # a file system without hard links answers so

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "a", "first", replace=False)
    assert names(tmp_path) == ["a"]
    with pytest.raises(FileExistsError, match="was not overwritten") as caught:
        write_atomically(tmp_path / "a", "second", replace=False)
    assert (tmp_path / "a").read_text() == "first"
    (draft,) = (tmp_path / name for name in names(tmp_path) if name != "a")
    assert draft.read_text() == "second"
    assert str(draft) in str(caught.value)


def test_a_link_in_the_way_is_replaced_and_what_it_points_to_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    (tmp_path / f".a.{os.getpid()}").symlink_to(tmp_path / "precious")  # the draft of earlier versions
    write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_text() == "new"


def test_even_a_guessed_draft_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_draft_name", lambda: ".guessed")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / ".guessed").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", "new")
    (tmp_path / ".guessed").unlink()
    (tmp_path / ".guessed").symlink_to(tmp_path / "folder")
    with pytest.raises(FileExistsError), draft_folder(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    assert names(tmp_path / "folder") == []


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("no/such/a", "was its folder removed?"),
        ("file/a", "part of the path is a file"),
        ("folder", "it is a folder"),
        ("x" * 300, "choose a shorter name"),
    ],
)
def test_a_place_that_takes_no_file_is_named_with_advice(tmp_path, place, advice):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="cannot write") as caught:
        write_atomically(tmp_path / place, "x")
    assert str(tmp_path / place) in str(caught.value)
    assert advice in str(caught.value)
    assert names(tmp_path) == ["file", "folder"]


def test_a_write_that_breaks_off_leaves_the_old_file_and_says_so_in_a_sentence(tmp_path):
    """A limit on file sizes stops a write in the middle, as a full disk does."""
    code = (
        "import resource\n"
        "from aent.files import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomically('a', 'x' * 5000)\nexcept OSError as error:\n    print(error.errno, error)"
    )
    (tmp_path / "a").write_text("old")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{errno.EFBIG} cannot write a: File too large; ")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_draft_folder_is_renamed_or_gone(tmp_path):
    with draft_folder(tmp_path / "new") as draft:
        (draft / "a").write_text("")
        move_into_place(draft, tmp_path / "new" / "whole")
    assert names(tmp_path / "new") == ["whole"]
    with pytest.raises(RuntimeError), draft_folder(tmp_path / "new"):
        raise RuntimeError
    assert names(tmp_path / "new") == ["whole"]


def test_drafts_of_dead_processes_are_removed_and_those_at_work_are_kept(tmp_path):
    host = files.platform.node()
    stale, alive, elsewhere, old, foreign = (
        tmp_path / name
        for name in (
            f".draft-{host}-{dead_process()}-0a",
            f".draft-{host}-{os.getpid()}-0b",
            ".draft-other-host-1-0c",
            ".draft-other-host-2-0d",
            "mine",
        )
    )
    for folder in (stale, alive, elsewhere, old, foreign):
        folder.mkdir()
        (folder / "file").write_text("")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    (tmp_path / f".draft-{host}-{dead_process()}-0e").symlink_to(foreign)
    with draft_folder(tmp_path) as own:
        remove_stale_drafts(tmp_path)
        assert {path.name for path in (alive, elsewhere, foreign, own)} == set(names(tmp_path))
    assert names(foreign) == ["file"]  # the link went, not what it pointed to


def test_check_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file.*; part of the path is a file"):
        check_writable(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write /proc/here: "):
        check_writable("/proc/here")


def test_a_folder_that_is_there_already_is_writable_too(tmp_path):
    check_writable(tmp_path)
    check_writable(str(tmp_path))
    assert names(tmp_path) == []


def test_content_and_name_are_flushed_to_disk_in_this_order(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def note(handle: int) -> None:
        found = os.fstat(handle)
        flushed.append("folder" if stat.S_ISDIR(found.st_mode) else (found.st_size, names(tmp_path) == ["a"]))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    write_atomically(str(tmp_path / "a"), "x" * 100)
    assert flushed == [(100, False), "folder"]  # all bytes, still under the draft's name


def test_what_cannot_be_encoded_is_an_error_and_leaves_no_draft(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a", "\ud800")
    assert names(tmp_path) == []


def test_an_error_is_explained_once_with_the_best_reason_there_is():
    full = files.explain(OSError(errno.ENOSPC, "No space left on device"), "here")
    assert str(full) == "cannot write here: No space left on device; free some space there, or choose another place"
    assert files.explain(full, "elsewhere") is full
    assert full.errno == errno.ENOSPC
    assert str(files.explain(OSError("boom"), "here")) == "cannot write here: boom; choose another place"
    assert str(files.explain(TimeoutError(), "here")) == "cannot write here: TimeoutError; choose another place"


@pytest.mark.parametrize(("age", "kept"), [(24 * 3600 - 60, True), (24 * 3600 + 10, False)])
def test_a_draft_of_another_machine_is_abandoned_after_a_day(tmp_path, age, kept):
    draft = tmp_path / ".draft-other-host-1-0c"
    draft.mkdir()
    then = time.time() - age
    os.utime(draft, (then, then))
    with draft_folder(tmp_path) as own:
        assert draft.exists() == kept
        assert own.exists()


def test_a_process_that_may_not_be_asked_is_taken_for_alive(monkeypatch):
    def refuse(*_: object) -> None:  # of another user; root may ask about all
        raise PermissionError(errno.EPERM, "Operation not permitted")

    gone = dead_process()
    assert not files._is_alive(gone)
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        assert files._is_alive(gone)
    monkeypatch.setattr(os, "name", "nt")  # there, the question would end the process
    assert files._is_alive(gone)


def test_a_finished_draft_takes_the_place_of_a_file_or_an_empty_folder_and_of_nothing_else(tmp_path):
    for name in ("file", "draft"):
        (tmp_path / name).write_text(name)
    move_into_place(tmp_path / "draft", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "draft"
    for name in ("run", "empty", "full"):
        (tmp_path / name).mkdir()
    for name in ("run", "full"):
        (tmp_path / name / "a").write_text(name)
    move_into_place(tmp_path / "run", tmp_path / "empty")
    assert (tmp_path / "empty" / "a").read_text() == "run"
    with pytest.raises(OSError, match=r"cannot write .*full: ") as caught:
        move_into_place(tmp_path / "empty", tmp_path / "full")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    assert (tmp_path / "full" / "a").read_text() == "full"
    assert names(tmp_path) == ["empty", "file", "full"]


def test_the_rename_itself_is_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "flush_folder", flushed.append)
    (tmp_path / "draft").mkdir()
    move_into_place(tmp_path / "draft", tmp_path / "whole")
    files.write_atomically(tmp_path / "a", "x")
    files.write_atomically(tmp_path / "b", "x", replace=False)
    assert flushed == [tmp_path] * 3


def renames(source: str) -> list[str]:
    """What a source does to files by name that only ``aent.files`` should: rename, link, temporary file, flush."""
    told = re.compile(r"os\.(?:rename|replace|link)\b|\.rename\(|\bmkstemp\b|os\.fsync\b")
    return told.findall(source)


def test_nobody_else_renames_files():
    root, found = Path(files.__file__).parent.parent, {}
    for package in ("aent", "toymdp", "paper_figures", "llm/aent_llm", "experiments"):
        for path in sorted((root / package).rglob("*.py")):
            if used := renames(path.read_text(encoding="utf-8")):
                found[path.relative_to(root).as_posix()] = used
    assert set(found.pop("aent/files.py")) == {"os.link", "os.fsync"}
    assert found.pop("llm/aent_llm/training/checkpoint.py") == ["os.fsync"]  # of what transformers wrote
    assert found == {}
    assert renames("os.replace(a, b)\nPath(a).rename(b)") == ["os.replace", ".rename("]
