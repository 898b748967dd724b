"""vega, vega-lite and vega-embed as one script, kept in the user's cache folder, since making it takes a second."""

from __future__ import annotations

from importlib.metadata import version

from gradbench.errors import RunError
from gradbench.files import writing
from gradbench.machine.cache import user_folder


def bundle_of_vega() -> str:
    """The script, with its names as globals, for a script element. Made each time where the folder is not writable."""
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


def _made() -> str:
    import vl_convert

    code = vl_convert.javascript_bundle()  # ty: ignore[missing-argument]  # its stub forgets the default
    return code.replace("</script", "<\\/script")
