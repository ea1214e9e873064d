"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: what is abandoned there stays
    fcntl = None  # type: ignore[assignment]

_YOUNG = 60  # seconds in which a file may have been made and not yet locked


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the name `path` when all of it is on the disk.

    Until then it has a temporary name in the same folder, so that the last step is a rename within
    one file system. After an error the old file of that name, if any, is still there. A symbolic
    link goes on pointing to the same file, and the file keeps its permissions: a write-protected
    one stays. What a process that was killed has left of an earlier attempt goes too.
    """
    path = Path(os.path.realpath(os.fsdecode(path)))
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):  # the rename would do away with /dev/null
        what = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(what, "not a regular file", str(path))
    if mode is not None and not os.access(path, os.W_OK):  # nor ask for leave
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        file = open(temporary, "xb")  # noqa: SIM115  closed below, before the rename
    except OSError as error:  # in the name that the caller knows
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with file:
            _lock(file)
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # an interrupt may come after the rename
        raise


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise at once what `atomic_write` will raise later, but for a disk that is full by then."""

    class Enough(Exception):
        pass

    with suppress(Enough), atomic_write(path):
        raise Enough


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or its process dies; False where another process has it."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or the file system has no locks: then nothing is known to be abandoned
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of `path` that no process is writing any more."""
    ours = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.part")
    with suppress(OSError):  # whatever is in the way: they are only in the way
        for entry in os.scandir(path.parent):
            if not ours.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            if time.time() - entry.stat().st_mtime < _YOUNG:
                continue
            with suppress(OSError), open(entry.path, "rb") as file:
                if fcntl is not None and _lock(file):
                    os.unlink(entry.path)
