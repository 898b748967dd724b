"""The views of a record: the page, the figures, the board."""

from __future__ import annotations

from gradbench.errors import GradbenchError, nearest

FORMATS = ("svg", "png", "pdf")


def check_figure_format(fmt: str) -> None:
    """GradbenchError, which names the nearest format, unless `fmt` is one for figures."""
    if fmt not in FORMATS:
        raise GradbenchError(f"--format: no {fmt!r}{nearest(fmt, FORMATS)} (figures are {', '.join(FORMATS)})")
