"""A folder that appears whole or not at all, whatever interrupts the writing of it."""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrjax.errors import ArtefactError, message

try:
    import fcntl
except ImportError:  # not on Windows: leftovers are then left alone
    fcntl = None

WRITING = ".writing-"  # infix of a folder that is being written
FORMER = ".former-"  # infix of an old folder moved aside for the moment of a swap


@contextmanager
def new_folder(
    target: Path,
    *,
    overwrite: bool = False,
    replaceable: Callable[[Path], bool] = lambda folder: False,
    error: type[Exception] = ArtefactError,
) -> Iterator[Path]:
    """Yields an empty folder beside `target` that becomes `target` when the block ends well.

    Until the last rename nothing at `target` changes; an exception or a kill inside the block
    leaves it as it was. With `overwrite` the old folder and the new one trade names in one step and
    the old one is deleted afterwards; only an empty folder or one that `replaceable` accepts is
    overwritten.

    Raises:
        error: the target exists and may not be replaced, or the disk refused.
    """
    target = Path(os.path.abspath(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
        _refuse(target, overwrite, replaceable, error)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}{WRITING}", dir=target.parent))
    except OSError as cause:
        raise error(_disk(target, cause)) from cause
    lock = _lock(draft)
    try:
        yield draft
        os.chmod(draft, 0o777 & ~_umask())
        sync(draft)
        _refuse(target, overwrite, replaceable, error)
        _put(draft, target)
        _sync_one(target.parent)
    except OSError as cause:
        raise error(_disk(target, cause)) from cause
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(draft, ignore_errors=True)


def interrupted(target: Path) -> tuple[Path, ...]:
    """The folders that interrupted writes of `target` left beside it."""
    target = Path(os.path.abspath(target))
    if not target.parent.is_dir():
        return ()
    starts = tuple(f".{target.name}{infix}" for infix in (WRITING, FORMER))
    with suppress(OSError):
        return tuple(sorted(p for p in target.parent.iterdir() if p.name.startswith(starts)))
    return ()


def sync(folder: Path) -> None:
    """Forces every file and folder under `folder`, and `folder` itself, onto the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(root, name))
        _sync_one(Path(root))


def exchange(a: Path, b: Path) -> bool:
    """Lets two folders trade names in one step; False where the system has no such step."""
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    old, new = os.fsencode(a), os.fsencode(b)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return libc.renameat2(here, old, here, new, swap) == 0
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return libc.renamex_np(old, new, 2) == 0  # RENAME_SWAP
    return False


def _put(draft: Path, target: Path) -> None:
    if not target.exists():
        os.rename(draft, target)
    elif not exchange(draft, target):
        former = target.parent / draft.name.replace(WRITING, FORMER)
        os.rename(target, former)
        try:
            os.rename(draft, target)
        except OSError:
            os.rename(former, target)
            raise
        _sync_one(target.parent)
        shutil.rmtree(former, ignore_errors=True)


def _clean(target: Path) -> None:
    """Puts back a folder that a kill left moved aside, and deletes drafts that nobody writes."""
    for left in interrupted(target):
        if FORMER in left.name and not target.exists():
            os.rename(left, target)
            continue
        lock = _lock(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _refuse(target, overwrite, replaceable, error) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise error(
            message(
                path=str(target),
                got="something that is there already",
                expected="a name that is free",
                todo="Choose another folder, or allow overwriting.",
            )
        )
    if (
        target.is_symlink()
        or not target.is_dir()
        or (any(target.iterdir()) and not replaceable(target))
    ):
        raise error(
            message(
                path=str(target),
                got="something that lrjax did not write",
                expected="a folder of the same kind, or an empty one, to overwrite",
                todo="Choose another folder; nothing was changed.",
            )
        )


def _disk(target: Path, cause: OSError) -> str:
    return message(
        path=cause.filename or str(target),
        got=cause.strerror or str(cause),
        expected="a place that can be written",
        todo="Check the folder, its permissions and the free space; nothing was changed.",
    )


def _lock(folder: Path) -> int | None:
    """An open lock that dies with the process; None where it is held elsewhere or not to be had."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _sync_one(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
