"""The board: one offline page of many records, of any machines."""

from __future__ import annotations

import html
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template

from gradbench.errors import GradbenchError
from gradbench.paths import user_path
from gradbench.record.store import Run
from gradbench.reporting.board import charts
from gradbench.reporting.board.data import board_data
from gradbench.reporting.bundle import bundle_of_vega
from gradbench.reporting.charts import spec
from gradbench.reporting.page import WEB, check_replaceable, check_writable, page_json, write_file

LOG = logging.getLogger(__name__)
HERE = Path(__file__).parent


def write_board(runs: Sequence[Run], out: str | Path) -> Path:
    """Write one self-contained HTML file that ranks the optimizers of these records, and return its path.

    A page that is there is replaced, with a GradbenchWarning where it is of other records; no other file is. Raises
    GradbenchError where there is no record, where two of them do not compare (it names them), where a verification is
    damaged, or where `out` cannot be written.
    """
    if not runs:
        raise GradbenchError("board: no record given")
    out = user_path(out)
    ids = ", ".join(run.id for run in runs)
    check_replaceable(out, ids, "board")
    check_writable(out)
    with ThreadPoolExecutor(1) as pool:
        bundle = pool.submit(bundle_of_vega)
        LOG.info("ranking")
        data = board_data(runs)
    made = {"profile": charts.profile(), "tuning": charts.tuning(), "time": charts.time(), "sweep": charts.sweep()}
    data["charts"] = {name: spec(chart) for name, chart in made.items()}
    template = Template((HERE / "board.html").read_text(encoding="utf-8"))
    scripts = [WEB / "common.js", HERE / "board.js"]
    page = template.substitute(
        style=(WEB / "style.css").read_text(encoding="utf-8"),
        records=html.escape(ids),
        data=page_json(data),
        bundle=bundle.result(),
        script="".join(path.read_text(encoding="utf-8") for path in scripts),
    )
    write_file(out, page.encode())
    return out
