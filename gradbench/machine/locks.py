"""Files that one process at a time holds, until it closes them or ends, however it ends."""

from __future__ import annotations

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
