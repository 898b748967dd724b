"""The page in a browser: what a click changes, and what a link opens."""

import html
import json
import math
import os
import re
import shutil
import subprocess

import pytest
from synthetic import make_run
from test_report import diverging

from gradbench.reporting.page import write_report

CHROMIUM = shutil.which("chromium")


PROBE = """<script>
const faults = []; const before = console.error;
console.error = (...words) => { faults.push(words.join(" ")); before(...words); };
window.onerror = (text) => { faults.push(text); };
const said = () => document.getElementById("detail").textContent;
const front = () => views.convergence.data("front").map((row) => row.learning_rate)[0];
const pause = (ms) => new Promise((next) => setTimeout(next, ms));
async function until(test) { for (let i = 0; i < 200 && !test(); i++) await pause(25); }
async function probe() {
  await until(() => document.body.dataset.ready);
  const note = () => find("landscape-note").textContent;
  const path = () => [views.landscape.data("front").map((row) => row.learning_rate)[0], note()];
  const result = { ready_ms: performance.now(), before: [said(), front(), path()] };
  const marks = [...document.querySelectorAll("#sensitivity .mark-symbol path")];
  const mark = marks.find((m) => m.__data__.datum.index === 0 && m.__data__.datum.optimizer === "sgd");
  const box = mark.getBoundingClientRect();
  const where = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
  for (const kind of ["mousedown", "mouseup", "click"]) mark.dispatchEvent(new MouseEvent(kind, where));
  await until(() => said() !== result.before[0]);
  await pause(100);
  result.clicked = [said(), front(), path()];
  const slider = document.getElementById("rate");
  slider.value = 2; slider.dispatchEvent(new Event("input"));
  await pause(100);
  result.slid = [said(), front(), path()];
  const scale = document.getElementById("scale");
  scale.value = "linear"; scale.dispatchEvent(new Event("change"));
  await pause(300);
  result.hash = location.hash;
  history.back();
  await until(() => scale.value === "log");
  await pause(300);
  result.back = [scale.value, said()];
  const words = [...document.querySelectorAll("main td, main p, main text")].map((e) => e.textContent);
  result.nulls = words.filter((text) => /\bnull\b/.test(text));
  result.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  result.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  result.faults = faults;
  const made = document.createElement("pre"); made.id = "result"; made.textContent = JSON.stringify(result);
  document.body.append(made);
}
probe();
</script>"""


def in_chromium(path, width, fragment=""):
    """What the page's own script left in the element with the id result."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    flags += [f"--user-data-dir={path.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    flags += [f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom", path.as_uri() + fragment]
    page = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=90)
    found = re.search(r'<pre id="result">(.*?)</pre>', page.stdout)
    assert found, page.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.skipif("CI" in os.environ, reason="the browser test is for a person's machine, not CI")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_chromium_a_click_on_a_learning_rate_changes_the_linked_views(width, tmp_path):
    path = write_report([make_run(optimizers=["sgd"], decay=diverging)], tmp_path / "page.html")
    before, _, after = path.read_text().rpartition("</body>")
    path.write_text(before + PROBE + "</body>" + after)
    result = in_chromium(path, width)
    assert result["faults"] == []
    assert result["requests"] == []
    assert result["wide"] <= 0  # nothing sticks out at the side
    assert result["nulls"] == []
    assert result["hash"] == "#problem=quadratic_bowl&optimizer=sgd&lr=1&loss=linear&time=steps"
    assert result["back"] == ["log", result["slid"][0]]
    assert "learning rate 0.1: converged" in result["before"][0]
    assert "learning rate 0.01: slow" in result["clicked"][0]
    assert "learning rate 1: diverged" in result["slid"][0]
    assert "diverges at step 7" in result["slid"][0]
    assert [result[key][1] for key in ("before", "clicked", "slid")] == [0.1, 0.01, 1.0]
    assert [result[key][2][0] for key in ("before", "clicked", "slid")] == [0.1, 0.01, 1.0]
    assert all("the path of this learning rate" in result[key][2][1] for key in ("before", "clicked", "slid"))
    assert math.isfinite(result["ready_ms"])


LINKED = """<script>
(async () => {
  for (let i = 0; i < 200 && !document.body.dataset.ready; i++) await new Promise((next) => setTimeout(next, 25));
  const made = document.createElement("pre"); made.id = "result";
  made.textContent = JSON.stringify([find("detail").textContent, find("scale").value, find("time").value]);
  document.body.append(made);
})();
</script>"""


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.skipif("CI" in os.environ, reason="the browser test is for a person's machine, not CI")
@pytest.mark.parametrize(
    ("fragment", "starts", "axes"),
    [
        ("", "quadratic_bowl, adam, learning rate 1: ", ["log", "steps"]),
        (
            "#optimizer=sgd&lr=0.011&loss=linear&time=seconds",
            "quadratic_bowl, sgd, learning rate 0.01: ",
            ["linear", "seconds"],
        ),
        ("#problem=none", "quadratic_bowl, adam, learning rate 1: ", ["log", "steps"]),
    ],
)
def test_in_chromium_a_link_opens_its_view_and_the_winner_without_one(fragment, starts, axes, tmp_path):
    path = write_report([make_run(decay=diverging)], tmp_path / "page.html")
    before, _, after = path.read_text().rpartition("</body>")
    path.write_text(before + LINKED + "</body>" + after)
    detail, *rest = in_chromium(path, 1280, fragment)
    assert detail.startswith(starts)
    assert rest == axes
