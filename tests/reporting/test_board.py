"""The board: what the page holds, what it refuses, and what it says of who verified a record."""

import dataclasses
import json
import os
import re

import pytest
from synthetic import make_run
from tampering import change_info, close
from test_report_in_chromium import CHROMIUM, in_chromium

import gradbench
from gradbench.archive.verified import NAME, keep, standing_verification
from gradbench.archive.verify import verify_run
from gradbench.cli.main import invoke
from gradbench.errors import GradbenchError, RecordError
from gradbench.reporting.board import write_board
from gradbench.reporting.board.data import board_data

SPEED = {"sgd": 1.0, "momentum": 2.0, "adam": 4.0}


def make(optimizers=("sgd", "adam"), **settings):
    speed = lambda optimizer, rate, **_: rate * SPEED.get(optimizer, 3.0)  # noqa: E731
    return make_run([0.05, 0.1], optimizers=optimizers, decay=speed, seeds=4, **settings)


def page_of(path):
    text = path.read_text()
    return text, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def test_the_page_has_every_optimizer_and_problem_and_needs_no_network(tmp_path):
    text, page = page_of(write_board([make(problems=["quadratic_bowl", "rosenbrock"])], tmp_path / "board.html"))
    assert [row["name"] for row in page["optimizers"]] == ["adam", "sgd"]
    assert {(cell["name"], cell["problem"]) for cell in page["cells"]} == {
        (name, problem) for name in ("adam", "sgd") for problem in ("quadratic_bowl", "rosenbrock")
    }
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(', markup)


def test_a_cell_has_its_sweep_by_learning_rate():
    [cell] = [cell for cell in board_data([make(["adam"])])["cells"] if cell["name"] == "adam"]
    assert cell["sweep"]["rates"] == [0.05, 0.1]
    slow, fast = cell["sweep"]["steps"]
    assert slow / fast == pytest.approx(2, rel=0.1)  # whole steps
    assert cell["learning_rate"] == 0.1


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_ranked(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("gradbench.reporting.board.board_data", lambda runs: pytest.fail("ranked"))
    with pytest.raises(GradbenchError, match="cannot be written"):
        write_board([make()], tmp_path / "file" / "board.html")


@pytest.mark.thorough
def test_a_page_of_20_optimizers_and_14_problems_is_small(tmp_path):
    names = [f"adam[b1=0.{k}]" for k in range(10, 30)]
    problems = [f"quadratic_bowl[dim={k}]" for k in range(2, 16)]
    rates = [10 ** (-3 + k / 20) for k in range(50)]
    run = make_run(rates, seeds=2, optimizers=names, problems=problems, curve_steps=(0, 100))
    assert write_board([run], tmp_path / "board.html").stat().st_size < 5_000_000


def test_time_of_a_step_is_beside_the_kind_of_device():
    one, two = make(), make(identifier="20260102T000000Z-fedcba")
    two = dataclasses.replace(two, info=two.info | {"environment": two.info["environment"] | {"device_kind": "a GPU"}})
    cells = board_data([one, two])["cells"]
    assert {(cell["device"], cell["name"]) for cell in cells} == {
        (device, f"{name} ({device})") for device in ("a chip", "a GPU") for name in ("sgd", "adam")
    }
    assert all(cell["step_s"] == pytest.approx(1.04e-3) for cell in cells)


def test_only_a_board_is_replaced(tmp_path):
    path = tmp_path / "board.html"
    path.write_text("my notes")
    with pytest.raises(GradbenchError, match="exists and is not a board"):
        write_board([make()], path)
    path.unlink()
    write_board([make()], path)
    write_board([make()], path)


@pytest.mark.usefixtures("compiled_quickly")
def test_a_verification_is_kept_beside_the_record_and_stands_until_that_is_changed(sweep, capsys):
    run = sweep("himmelblau", ["sgd"], [1e-3, 1e-2], seeds=1, steps=5, timing="none")
    assert invoke(["verify", str(run.path), "--by", "me", "--quiet"]) == 0
    found = board_data([run])["records"][0]["verified"]
    assert (found["by"], found["holds"], found["exact"], found["differ"]) == ("me", True, 2, 0)
    info = run.path / "run.json"
    info.write_text(info.read_text() + " ")
    (run.path / "manifest.json").write_text((run.path / "manifest.json").read_text() + " ")
    assert standing_verification(run) is None
    assert keep(run.path, verify_run(run, 2), "you")["holds"] is False  # the manifest has another digest of run.json
    (run.path / NAME).write_text("{}")
    with pytest.raises(RecordError, match=f"{NAME}: damaged"):
        standing_verification(run)


@pytest.mark.usefixtures("compiled_quickly")
def test_records_that_do_not_compare_are_refused_by_name_with_exit_2(sweep, capsys, tmp_path):
    one = sweep("himmelblau", ["sgd"], [1e-3, 1e-2], seeds=1, steps=5, timing="none")
    two = sweep("himmelblau", ["sgd"], [1e-3, 1e-2], seeds=1, steps=6, timing="none")
    assert invoke(["board", str(one.path), str(two.path), "--out", str(tmp_path / "b.html"), "--quiet"]) == 2
    assert f"{one.id} and {two.id} do not compare: steps is 5 and 6" in capsys.readouterr().err
    assert invoke(["board", str(one.path), "--out", str(tmp_path / "b.html"), "--quiet"]) == 0


@pytest.mark.usefixtures("compiled_quickly")
def test_of_a_folder_with_records_of_several_suites_one_is_chosen(sweep, capsys, tmp_path):
    runs = [sweep("himmelblau", ["sgd"], [1e-3, 1e-2], seeds=1, steps=5, timing="none") for _ in range(2)]
    change_info(runs[1].path, lambda info: info.update(suite={"name": "s", "sha256": "a" * 64}))
    close(runs[1].path)
    words = ["board", str(tmp_path / "results"), "--out", str(tmp_path / "b.html"), "--quiet"]
    assert invoke(words) == 2
    error = capsys.readouterr().err
    assert (
        f"none (1, such as {runs[0].id}), s aaaaaaaa (1, such as {runs[1].id}); choose one with --suite, suite="
        in error
    )
    for name, run in (("none", runs[0]), ("s", runs[1]), ("s aaaaaaaa", runs[1])):
        assert invoke([*words, "--suite", name]) == 0
        assert [row["id"] for row in page_of(tmp_path / "b.html")[1]["records"]] == [run.id]
        (tmp_path / "b.html").unlink()
    assert invoke([*words, "--suite", "core-1"]) == 2
    assert "no record is of suite core-1, but of: none (1" in capsys.readouterr().err


def test_from_python_one_suite_is_chosen_too(tmp_path):
    plain, other = make(), make(identifier="20260102T000000Z-fedcba")
    suite = dataclasses.replace(other, info=other.info | {"suite": {"name": "s", "sha256": "a" * 64}})
    path = tmp_path / "board.html"
    with pytest.raises(GradbenchError, match="records of several suites do not compare"):
        gradbench.board(plain, suite, out=path)
    _, page = page_of(gradbench.board(plain, suite, out=path, suite="s"))
    assert [row["id"] for row in page["records"]] == [suite.id]


PROBE = """<script>
const faults = [], pause = () => new Promise((next) => setTimeout(next, 25));
addEventListener("error", (event) => faults.push(event.message));
addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
(async () => {
  const until = async (done) => { for (let i = 0; i < 400 && !done(); i++) await pause(); };
  await until(() => document.body.dataset.ready);
  const names = () => [...document.querySelectorAll("#matrix td.name")].map((td) => td.textContent);
  const found = { before: names(), charts: document.querySelectorAll("#sweeps svg").length };
  found.wide = document.documentElement.scrollWidth - innerWidth;
  document.querySelectorAll("#matrix tbody tr")[1].click();
  await until(() => document.getElementById("chosen").textContent === found.before[1]);
  found.chosen = document.getElementById("chosen").textContent;
  const fourth = [...document.querySelectorAll("#matrix tbody td:nth-child(4)")];
  found.beside = fourth.map((td) => td.textContent.split(" ")[0]);
  const family = document.getElementById("family");
  family.value = "Adam";
  family.dispatchEvent(new Event("change"));
  await until(() => names().length === 1);
  found.adam = names();
  found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  const made = document.createElement("pre"); made.id = "result";
  made.textContent = JSON.stringify({ ...found, faults });
  document.body.append(made);
})();
</script>"""


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.skipif("CI" in os.environ, reason="the browser test is for a person's machine, not CI")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_chromium_a_row_opens_its_sweeps_and_a_family_filters(width, tmp_path):
    path = write_board([make(problems=["quadratic_bowl", "rosenbrock"])], tmp_path / "board.html")
    before, _, after = path.read_text().rpartition("</body>")
    path.write_text(before + PROBE + "</body>" + after)
    result = in_chromium(path, width)
    assert result["faults"] == []
    assert result["requests"] == []
    assert result["wide"] <= 0
    assert (result["before"], result["chosen"], result["adam"]) == (["adam", "sgd"], "sgd", ["adam"])
    assert result["beside"] == ["0.25", "chosen"]  # 4 times as fast
    assert result["charts"] == 2  # a sweep for each problem
