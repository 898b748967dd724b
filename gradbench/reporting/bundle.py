"""vega, vega-lite and vega-embed as one script, kept in the user's cache folder, since making it takes over a second.
Imports no JAX, so that the script may be made while JAX is imported."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import cache
from importlib.metadata import version

from gradbench.errors import RunError
from gradbench.files import user_folder, writing

# In a process of its own, since vl_convert lets no other thread of its own run Python meanwhile.
COMMAND = [
    *(sys.executable, "-P", "-c"),
    "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())",
]
_LOCK = threading.Lock()  # who asks for it while it is made gets the one that is kept then


def bundle_of_vega() -> str:
    """The script, with its names as globals, for a script element. Made in each process where the folder is not
    writable."""
    with _LOCK:
        folder = user_folder()
        if folder is None:
            return _made()
        kept = folder / f"vega-{version('vl-convert-python')}.js"
        try:
            if code := kept.read_text(encoding="utf-8"):  # a full disk leaves an empty file
                return code
        except (OSError, UnicodeDecodeError):
            pass
        code = _made()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with writing(kept) as temporary:
                temporary.write_text(code, encoding="utf-8")
        except (OSError, RunError):
            pass  # the next page makes it again
        return code


@cache
def _made() -> str:
    try:
        made = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout.decode()
    except (OSError, TypeError, subprocess.CalledProcessError):  # no Python of its own, or packages that it cannot find
        import vl_convert

        made = vl_convert.javascript_bundle()  # ty: ignore[missing-argument]  # its stub forgets the default
    return made.replace("</script", "<\\/script")
