"""Files and folders that one process at a time holds, until it closes them or ends, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class NoLocks(Exception):
    """This system or file system has no locks; its text is the reason it gives."""


def hold(file: IO[Any]) -> bool:
    """Take an open file for this process, without waiting; whether it could.

    False is only ever for another process that holds it. Raises NoLocks where there are none: a network file system
    without a lock service (ENOLCK), one that does not know them (ENOSYS, EOPNOTSUPP), Windows.
    """
    if fcntl is None:
        raise NoLocks("this system has no flock")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocks(error.strerror or str(error)) from error
    return True


def held(path: Path) -> bool:
    """Whether a process holds this file, which `hold` was given; True as well where that cannot be told."""
    if fcntl is None:
        return True
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # of a file open to be read, NFS takes no other
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Wait until nobody else is in here with this folder. Where there are no locks (see `hold`), nobody waits.

    Raises OSError for a folder that cannot be opened.
    """
    if fcntl is None:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
