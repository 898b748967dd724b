"""What is kept between processes in the user's cache folder: compiled programs above all."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path

import jax

from gradbench.files import user_folder
from gradbench.machine.devices import cpu_model
from gradbench.machine.internals import has_accelerators, hide_errors_of_loading, setting

KEEP_BYTES = 256 * 2**20  # a default run leaves a few MB


def cache_folder() -> Path | None:
    """Where `gradbench run` keeps what it compiles; None where it does not.

    The user's own settings win (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE). A home may be shared by
    machines: a folder for each CPU model and its instruction sets.
    """
    if not setting("jax_enable_compilation_cache"):
        return None
    if chosen := setting("jax_compilation_cache_dir"):
        return Path(chosen)
    if _logs_errors() and has_accelerators():  # whose errors are not to be hidden
        return None
    folder = user_folder()
    return folder and folder / hashlib.sha256(_machine().encode()).hexdigest()[:12]


def _logs_errors() -> bool:
    """Whether XLA logs an error for each CPU program that it loads, though nothing is wrong."""
    return jax.__version_info__ < (0, 12)


def _machine() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return cpu_model()
    return cpu_model() + str(re.findall(r"^(?:flags|Features)\s*:.*$", text, re.MULTILINE)[:1])


def use_cache() -> None:
    """Let JAX keep what it compiles, if it has a folder it can write to. For the command line: a library leaves its
    caller's JAX alone. Call before anything is compiled."""
    folder = cache_folder()
    if folder is None or setting("jax_compilation_cache_dir"):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trim(folder, KEEP_BYTES)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    if _logs_errors():
        hide_errors_of_loading()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A damaged or unwritable entry costs a compilation, which JAX does by itself.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def trim(folder: Path, keep_bytes: int) -> None:
    """Delete the oldest files beyond `keep_bytes`, and empty ones, which a full disk leaves."""
    files = sorted(((file.stat(), file) for file in folder.iterdir() if file.is_file()), key=lambda f: -f[0].st_mtime)
    total = 0
    for stat, file in files:
        total += stat.st_size
        if total > keep_bytes or not stat.st_size:
            file.unlink(missing_ok=True)
