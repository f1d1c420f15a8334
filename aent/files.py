"""Files and folders that appear whole or not at all, and one sentence where they cannot.

    write_atomically("run/summary.json", text)          # a reader sees the old content or the new, never half of it
    with draft_folder("cache") as draft: ...            # fill it, then ``move_into_place(draft, "cache/model")``

A draft lies beside its destination, because a rename works within one file system only, under a random name that is
made with O_EXCL: what others put there, a symbolic link for instance, is neither followed nor overwritten. Its name
holds host and process, so that the next writer can remove what a killed one left.

Left out: locks (two writers of one file: the last one wins, unless ``replace=False``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "check_writable", "draft_folder", "explain", "flush_folder", "move_into_place", "remove_stale_drafts",
    "write_atomically",
]  # fmt: skip

DRAFT = ".draft-"
STALE_SECONDS = 24 * 3600.0  # a draft of another machine is taken for abandoned when it is older
ADVICE = {
    errno.ENOSPC: "free some space there, or choose another place",
    errno.EDQUOT: "free some of your quota there, or choose another place",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another place",
    errno.EACCES: "choose a place where you may write",
    errno.EPERM: "choose a place where you may write",
    errno.EROFS: "choose a place that is not read-only",
    errno.ENOENT: "was its folder removed? Make it again, or choose another place",
    errno.ENOTDIR: "part of the path is a file; choose another place",
    errno.EEXIST: "part of the path is a file; choose another place",
    errno.EISDIR: "it is a folder; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomically(path: str | os.PathLike[str], content: str | bytes, *, replace: bool = True) -> None:
    """Write a file in one rename, flushed to disk; text is encoded as UTF-8.

    Args:
        path: the file; its folder must exist. A symbolic link is replaced, not followed.
        content: all of it.
        replace: whether an existing file gives way. If False, whoever comes first is kept, also among processes.

    Raises:
        FileExistsError: ``replace=False`` and the file exists; names where the content was left instead.
        OSError: it cannot be written; says where and what to do. The old content is still there.
    """
    path = Path(path)
    draft = path.with_name(_draft_name())
    try:
        with draft.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            move_into_place(draft, path)
        else:
            _move_to_free_name(draft, path)
            flush_folder(path.parent)
    except FileExistsError:
        raise FileExistsError(f"{path} exists and was not overwritten; what was to be in it is in {draft}") from None
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError):
            raise explain(error, path) from None
        raise


@contextlib.contextmanager
def draft_folder(parent: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder to be filled and moved into place; what is still there at the end of the block is removed.

    Folders and files that killed processes left in ``parent`` under such names are removed first.

    Raises:
        OSError: the folder cannot be made; says where and what to do.
    """
    parent = Path(parent)
    draft = parent / _draft_name()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
    except OSError as error:
        raise explain(error, parent) from None
    remove_stale_drafts(parent)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def move_into_place(draft: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a finished draft, a file or a folder, its name in one rename, and flush that to disk.

    A file that is there gives way; a folder only if it is empty.

    Raises:
        OSError: it cannot be renamed, for instance because a folder is there; says where and what to do.
    """
    target = Path(target)
    try:
        Path(draft).replace(target)
    except OSError as error:
        raise explain(error, target) from None
    flush_folder(target.parent)


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Make the renames in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder if it is missing, and try whether a file can be written there.

    Raises:
        OSError: it cannot; says where and what to do.
    """
    probe = Path(folder) / _draft_name()
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise explain(error, folder) from None


def remove_stale_drafts(folder: str | os.PathLike[str], prefix: str = DRAFT) -> None:
    """Remove the drafts that no process will finish: of a dead one on this machine, or older than a day."""
    for draft in Path(folder).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another process removed it, or it belongs to another user
            if _is_abandoned(draft):
                shutil.rmtree(draft) if draft.is_dir() and not draft.is_symlink() else draft.unlink()


def explain(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """Return the same kind of error, whose text is a sentence that names the path and what to do."""
    if error.strerror is None and str(error).startswith("cannot write"):  # explained already
        return error
    advice = ADVICE.get(error.errno or 0, "choose another place")
    reason = error.strerror or str(error) or type(error).__name__
    told = type(error)(f"cannot write {os.fspath(path)}: {reason}; {advice}")
    told.errno = error.errno
    return told


# -------------------------------------------------------------------------------------------------------- internals


def _draft_name() -> str:
    return f"{DRAFT}{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"


def _move_to_free_name(draft: Path, path: Path) -> None:
    """Rename where nothing is: a rename would replace what came meanwhile, a second link does not."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: whoever makes the empty file first may fill it
        path.open("xb").close()
        draft.replace(path)
    else:
        draft.unlink()


def _is_abandoned(draft: Path) -> bool:
    if time.time() - draft.lstat().st_mtime > STALE_SECONDS:
        return True
    host, _, rest = draft.name.removeprefix(DRAFT).rpartition("-")[0].rpartition("-")
    return host == platform.node() and rest.isdigit() and not _is_alive(int(rest))


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere os.kill ends the process that it asks about
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # alive, but another user's
        return True
    return True
