"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str | Path) -> Path:
    """A path with a user's home for its ~. Where there is no such user it stays as it is, as in a shell, and is not
    found; Path.expanduser would raise."""
    return Path(os.path.expanduser(text))
