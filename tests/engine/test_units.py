"""Units of a sweep: whoever runs them, and whatever becomes of them, the record is that of one process."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import StopAfter
from quick import child_environment
from sampling import sample

import gradbench
from gradbench.engine import runner, units
from gradbench.engine.units import Job, NoMemory, Unit, run_unit
from gradbench.errors import GradbenchWarning, PlanError, ProblemError, RecordError, RunError
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import load_problem
from gradbench.inputs.transfer.parcel import Parcel
from gradbench.machine.environment import difference, environment
from gradbench.machine.workers import Alone, Here, name_of_worker
from gradbench.program import block
from gradbench.program.block import unit_trials
from gradbench.program.program import Block
from gradbench.program.trial import Trial
from gradbench.record.schema import SWEPT

pytestmark = pytest.mark.usefixtures("compiled_quickly")
# Of 14 trials some diverge at once, so that slots are refilled; a unit is 3 of them.
PLAN = {"problems": ["beale", "quadratic_bowl[dim=4]"], "optimizers": ["sgd"], "learning_rates": "1e-3:3:7"}
PLAN |= {"seeds": 2, "steps": 60, "timing": "none"}
UNITS = 10


@pytest.fixture(autouse=True)
def small_units(small_blocks, monkeypatch):
    small_blocks(lanes=3, rows=16, devices=1)
    monkeypatch.setattr(block, "UNIT_SECONDS", 0.0)  # a block is the least


@pytest.fixture
def nothing_loaded(monkeypatch):
    """As in a worker that has just begun."""
    monkeypatch.setattr(units, "_loaded", {})


def same(run, other) -> bool:
    return all(getattr(run, name).equals(getattr(other, name)) for name in SWEPT)


class Faulty(Executor):
    """This process, where `fault(unit, which time it is)` may say what becomes of a call instead."""

    def __init__(self, fault=lambda unit, times: None):
        self.fault, self.here, self.calls, self.results = fault, Here(), [], []

    def submit(self, function, *arguments):
        if function is not run_unit:
            return self.here.submit(function, *arguments)
        self.calls.append(arguments[1])
        instead = self.fault(arguments[1], self.calls.count(arguments[1]))
        if instead is None:
            future = self.here.submit(function, *arguments)
            self.results.append(future.result())
            return future
        future = Future()
        if instead == "lost":
            future.cancel()
        else:
            future.set_exception(instead)
        return future


@pytest.fixture(scope="module")
def runs():
    return {}


@pytest.fixture
def alone(sweep, runs, tmp_path_factory):
    """The run of one process: one for all tests, made as the first of them has it."""
    if not runs:
        runs["alone"] = gradbench.sweep(**PLAN, out=tmp_path_factory.mktemp("alone"))
    return runs["alone"]


@pytest.mark.parametrize(
    ("problem", "settings"),
    sample([("linear_regression[examples=60,features=3]", {"batch_size": 20}), ("beale", {})]),
)
def test_a_unit_has_the_bits_of_the_whole_sweep(sweep, nothing_loaded, problem, settings):
    plan = PLAN | {"problems": [problem]} | settings
    whole = sweep(**plan)
    made = SweepPlan.from_dict(whole.info["plan"])
    began, data = whole.info["environment"], {problem: whole.info["sources"]["problems"][problem]["data_sha256"]}
    job = Job(made, Parcel.of(made, {}, {}), tuple(Block(**of) for of in whole.info["blocks"].values()), began, data)
    parts = [Unit(0, 0, 0, 2), Unit(0, 1, 2, 9), Unit(0, 2, 9, 14)]
    results = [run_unit(job, unit) for unit in reversed(parts)]
    for name in SWEPT:
        rows = pa.concat_tables([result.tables[name] for result in results])
        keys = [(key, "ascending") for key in ("trial", "step", "split", "name") if key in rows.column_names]
        assert rows.sort_by(keys).equals(getattr(whole, name)), name
    assert [result.compiled for result in results] == [True, False, False]


def test_threads_leave_the_record_of_one_process(sweep, alone):
    with ThreadPoolExecutor(2) as threads:
        run = sweep(**PLAN, executor=threads)
    assert same(run, alone)
    assert run.info["state"] == "complete"
    assert run.info["blocks"] == alone.info["blocks"]
    assert run.info["units"] == dict.fromkeys(alone.info["blocks"], 3)
    assert run.info["environment"] == alone.info["environment"]
    assert run.info["sources"] == alone.info["sources"]
    assert run.info["problems"] == alone.info["problems"]


def test_a_worker_compiles_a_pair_once(sweep, nothing_loaded):
    executor = Faulty()
    sweep(**PLAN, executor=executor)
    assert len(executor.calls) == UNITS
    assert sum(result.compiled for result in executor.results) == 2


def test_what_is_lost_is_run_again(sweep, alone):
    executor = Faulty(lambda unit, times: "lost" if times < 3 else None)
    assert same(sweep(**PLAN, executor=executor), alone)
    assert len(executor.results) == UNITS


@pytest.mark.thorough
def test_what_fails_twice_is_run_again(sweep, alone):
    executor = Faulty(lambda unit, times: ValueError("now and then") if times < 3 else None)
    assert same(sweep(**PLAN, executor=executor), alone)


def test_a_unit_that_fails_three_times_is_left_out_and_the_others_go_on(sweep, alone, tmp_path):
    executor = Faulty(lambda unit, times: ValueError("never") if (unit.pair, unit.part) == (0, 1) else None)
    with pytest.raises(RunError, match=r"^beale × sgd, trials 3 to 5, failed 3 times; all else is recorded: never$"):
        sweep(**PLAN, executor=executor)
    assert RunError.exit_code == 3
    assert len(executor.calls) == UNITS - 1 + 3
    left = gradbench.load_run("latest", tmp_path / "results")
    assert left.info["state"] == "interrupted"
    assert left.trials.num_rows == alone.trials.num_rows - 3
    mended = Faulty()
    assert same(gradbench.resume(left.path, executor=mended), alone)
    assert [(unit.pair, unit.part) for unit in mended.calls] == [(0, 1)]


def test_workers_that_are_gone_leave_what_they_did(sweep, alone, tmp_path):
    executor = Faulty(lambda unit, times: BrokenExecutor("killed") if (unit.pair, unit.part) == (1, 1) else None)
    with pytest.raises(RunError, match="the workers are gone: killed"):
        sweep(**PLAN, executor=executor)
    done = len(executor.results)
    rest = Faulty()
    assert same(gradbench.resume("latest", results=tmp_path / "results", executor=rest), alone)
    assert len(rest.calls) == UNITS - done


@pytest.mark.parametrize("begins_here", [True, False])
def test_a_run_may_go_on_elsewhere(sweep, alone, tmp_path, begins_here):
    """What this process began, workers finish, and the other way round; whole units are kept."""
    begins, ends = (None, Faulty()) if begins_here else (Alone(), None)
    plan = SweepPlan.from_dict(PLAN)
    stopped = runner.run_plan(plan, out=tmp_path / "other", watcher=StopAfter(3), executor=begins)
    assert stopped.info["state"] == "interrupted"
    assert same(gradbench.resume(stopped.path, executor=ends), alone)


@pytest.mark.thorough
def test_a_block_without_memory_is_halved_and_its_pair_begins_anew(sweep):
    def fault(unit, times):
        first = times == 1 and (unit.pair, unit.part) == (0, 2)
        return NoMemory("RESOURCE_EXHAUSTED") if first else None

    with pytest.warns(GradbenchWarning, match="no memory for 3 trials at a time on a device; going on with 1"):
        run = sweep(**PLAN, executor=Faulty(fault))
    assert [of["lanes"] for of in run.info["blocks"].values()] == [1, 3]
    assert run.trials["trial"].to_pylist() == list(range(28))


def test_a_watcher_is_told_of_each_pair_once_and_of_the_units(tmp_path):
    told, last = [], []

    class Listening(runner.Watcher):
        def pair_swept(self, number, problem, optimizer, tables):
            told.append(("swept", number, tables.trials.num_rows))

        def pair_done(self, number, problem, optimizer, tables):
            told.append(("done", number, tables.trials.num_rows))

        def units(self, progress):
            last[:] = [progress]

    plan = SweepPlan.from_dict(PLAN | {"problems": ["beale"], "sharpness": True})
    runner.run_plan(plan, out=tmp_path, watcher=Listening(), executor=Alone())
    assert told == [("swept", 0, 14), ("done", 0, 14)]
    [progress] = last
    assert (progress.done, progress.units, progress.running, progress.failed) == (6, 6, 0, 0)  # 5 and the sharpness
    assert list(progress.rates) == [name_of_worker()]


@pytest.mark.thorough
def test_timings_come_from_a_worker_that_is_alone_and_say_where(sweep):
    plan = PLAN | {"problems": ["beale"], "timing": "batched", "sharpness": True}
    with pytest.warns(GradbenchWarning, match="nothing is timed: workers may share"):
        shared = sweep(**plan, executor=Faulty())
    timed = sweep(**plan, executor=Alone())
    assert shared.timings.num_rows == 0
    assert timed.timings["mode"].to_pylist() == ["batched"]
    assert timed.timings["of_limit"].null_count == 0
    assert timed.timings["host"].to_pylist() == sweep(**plan).timings["host"].to_pylist() != [None]
    assert timed.timings["device_kind"].to_pylist() == [timed.info["environment"]["device_kind"]]
    assert timed.sharpness.equals(shared.sharpness)
    assert timed.sharpness.num_rows


def test_a_worker_of_another_version_refuses_by_name(sweep, alone):
    made = SweepPlan.from_dict(PLAN)
    began = alone.info["environment"] | {"versions": alone.info["environment"]["versions"] | {"jax": "0.0.1"}}
    blocks = tuple(Block(**of) for of in alone.info["blocks"].values())
    with pytest.raises(RunError, match=r"on .*: the run began with jax 0\.0\.1, here it is"):
        run_unit(Job(made, Parcel.of(made, {}, {}), blocks, began, {}), Unit(0, 0, 0, 3))


def test_this_process_does_not_go_on_with_units_of_another_version(tmp_path):
    stopped = runner.run_plan(SweepPlan.from_dict(PLAN), out=tmp_path, watcher=StopAfter(1), executor=Alone())
    info = json.loads((stopped.path / "run.json").read_text())
    info["environment"]["versions"]["optax"] = "0.0.1"
    (stopped.path / "run.json").write_text(json.dumps(info))
    with pytest.raises(
        RecordError, match=r"the run began with optax 0\.0\.1, here it is .*; go on where it is the same, or begin"
    ):
        gradbench.resume(stopped.path)


def test_other_data_on_a_worker_are_refused(alone):
    made = SweepPlan.from_dict(PLAN)
    blocks = tuple(Block(**of) for of in alone.info["blocks"].values())
    job = Job(made, Parcel.of(made, {}, {}), blocks, alone.info["environment"], {"beale": "0" * 64})
    with pytest.raises(RunError, match="the data of beale on this worker are not those"):
        run_unit(job, Unit(0, 0, 0, 3))


def test_a_device_of_another_kind_is_named():
    here = environment(gradbench.machine.devices.find_devices("cpu"), "highest")
    assert difference(here, here) is None
    assert difference(here | {"device_kind": "NVIDIA H200"}, here).startswith(
        "began with device_kind NVIDIA H200, here"
    )


HANGING = """
import sys, time
import gradbench
from gradbench.engine.units import Job, Unit, run_unit
from gradbench.inputs.transfer.parcel import Parcel
from gradbench.inputs.plan import SweepPlan
from gradbench.machine.workers import describe
from gradbench.program.program import Block

plan = SweepPlan(("./hang.py",), ("sgd",), [0.1], seeds=1)
job = Job(plan, Parcel.of(plan, {}, {}), (Block(1, 1, 1, 1),), describe("cpu", "highest"), {}, 0.5, ("another", 0))
run_unit(job, Unit(0, 0, 0, 1))
"""


@pytest.mark.thorough
def test_a_unit_that_hangs_ends_its_worker(tmp_path):
    (tmp_path / "hang.py").write_text("import time\ndef problem():\n    time.sleep(60)\n")
    command = [sys.executable, "-c", HANGING]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "Timeout (0:00:00.500000)!" in done.stderr
    assert "in problem" in done.stderr  # where it hangs


def test_the_process_that_keeps_the_record_is_not_ended(sweep, alone, monkeypatch):
    monkeypatch.setattr(units.faulthandler, "dump_traceback_later", None)
    assert same(sweep(**PLAN, executor=Faulty(), unit_timeout=1e-9), alone)


MINE = """
import jax.numpy as jnp, numpy as np, optax, gradbench

def problem(data, scale=1.0):
    values = np.loadtxt(data)
    init = lambda key: jnp.zeros(2)
    return gradbench.Problem(init, lambda p, data: scale * jnp.mean((p.sum() - data) ** 2), data=values, minimum=None)

def make(learning_rate, factor=1.0):
    return optax.sgd(factor * learning_rate)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("values.txt").write_text("1\n2\n4\n")
    return SweepPlan(("./mine.py[data=values.txt,scale=0.5]",), ("./mine.py:make[factor=0.5]", "sgd"), [0.1])


def test_files_travel_by_their_content(mine, monkeypatch, tmp_path):
    parcel = Parcel.of(mine, {}, {})
    Path("mine.py").unlink()
    Path("values.txt").unlink()
    problems, optimizers = parcel.open()
    [problem] = problems.values()
    assert (problem.name, problem.data.tolist()) == (mine.problems[0], [1.0, 2.0, 4.0])
    assert float(problem.loss(problem.init(None), problem.data)) == pytest.approx(0.5 * 7)  # (1 + 4 + 16) / 3
    assert {name: of.spec for name, of in optimizers.items()} == {mine.optimizers[0]: mine.optimizers[0]}


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ProblemError, match=r"\./none\.py: no such file"):
        Parcel.of(SweepPlan(("./none.py",), ("sgd",), [0.1]), {}, {})


def test_objects_are_sent_by_cloudpickle_or_refused(mine, monkeypatch):
    pytest.importorskip("cloudpickle")
    plan = SweepPlan(("own",), ("own_sgd",), [0.1])
    problem = load_problem(gradbench.Problem(lambda key: 1.0, lambda p, data: p**2, name="own"))  # and traced
    problems, _ = Parcel.of(plan, {"own": problem}, {"own_sgd": load_optimizer("sgd")}).open()
    assert problems["own"].loss(3.0, ()) == 9.0
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(PlanError, match="own, own_sgd: given as objects, which only cloudpickle can send"):
        Parcel.of(plan, {"own": problem}, {"own_sgd": load_optimizer("sgd")})


def test_what_is_no_executor_and_forked_processes_are_refused(sweep):
    with pytest.raises(PlanError, match="executor: got a int"):
        sweep(**PLAN, executor=3)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as forked,
        pytest.raises(PlanError, match=r"forked processes hang in JAX; give ProcessPoolExecutor\(mp_context="),
    ):
        sweep(**PLAN, executor=forked)


def test_a_unit_is_whole_blocks_of_about_as_much_counted_work(monkeypatch):
    monkeypatch.setattr(block, "UNIT_SECONDS", 1.0)

    def trials(steps, lanes):
        plan = SweepPlan(("mlp",), ("sgd",), [0.1], steps=steps)
        return unit_trials(Trial.of(load_problem("mlp"), load_optimizer("sgd"), plan), Block(2, lanes, 10, 1), "cpu")

    few, many = trials(1000, 4), trials(10, 4)
    assert few % 8 == many % 8 == 0
    assert many == pytest.approx(100 * few, abs=100 * 8 / 2)  # a unit is rounded to whole blocks
    assert trials(10**6, 4) == 8


@pytest.mark.parametrize("search", sample(["refine", None, "halving"]))
def test_axes_and_searches_are_the_same_by_units(tmp_path, search):
    plan = SweepPlan(
        ("quadratic_bowl[dim=3]",),
        ("sgd[momentum=0.5|0.9]",),
        "1e-2:1:7",
        seeds=2,
        steps=27,
        timing="none",
        search=search,
    )
    with ThreadPoolExecutor(2) as pool:
        apart = gradbench.run_plan(plan, out=tmp_path, executor=pool)
    whole = gradbench.run_plan(plan, out=tmp_path)
    assert apart.trials.equals(whole.trials)
    assert apart.curves.equals(whole.curves)
