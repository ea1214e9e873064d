"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the name `path` when all of it is on the disk.

    Until then it has a temporary name in the same folder, so that the last step is a rename within
    one file system. After an error the old file of that name, if any, is still there. A symbolic
    link goes on pointing to the same file, and the file keeps its permissions.
    """
    path = Path(os.path.realpath(os.fsdecode(path)))
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):  # the rename would do away with /dev/null
        what = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(what, "not a regular file", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        file = open(temporary, "xb")  # noqa: SIM115  closed below, before the rename
    except OSError as error:  # in the name that the caller knows
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with file:
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # an interrupt may come after the rename
        raise
