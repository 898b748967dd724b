"""What is compiled and timed, in which order, and what a run without timing leaves."""

from __future__ import annotations

import threading

import jax
import pytest
from sampling import sample

import gradbench
from gradbench.analysis.regress import compare_runs
from gradbench.engine import compiling, driver, pair, runner
from gradbench.errors import RunError
from gradbench.inputs.plan import SweepPlan

pytestmark = pytest.mark.usefixtures("compiled_quickly")
PLAN = {"learning_rates": "0.01:0.1:4", "seeds": 1, "steps": 50, "dtype": "float64"}
FULL = dict(compiling.TIMED)  # the fixture `sweep` times less


class Telling(runner.Watcher):
    """Keeps what happens, in order; stops a run after `stop_after`."""

    def __init__(self, stop_after: str = ""):
        self.events: list[tuple[str, str]] = []
        self.timed: list[int] = []
        self.stop_after = stop_after

    def pair_started(self, number, problem, optimizer):
        self.events.append(("started", optimizer))

    def chunk(self, progress):
        if self.events[-1][0] != "chunk":
            self.events.append(("chunk", self.events[-1][1]))

    def pair_swept(self, number, problem, optimizer, tables):
        self.events.append(("swept", optimizer))
        self.timed.append(len(tables.timings))

    def pair_done(self, number, problem, optimizer, tables):
        self.events.append(("done", optimizer))
        self.timed.append(len(tables.timings))

    def should_stop(self):
        return bool(self.events) and self.events[-1][0] == self.stop_after


@pytest.fixture
def compiled(sweep, monkeypatch) -> list[tuple[str, str]]:
    """(optimizer, program) of everything that is compiled ahead, in the order in which it was begun."""
    names = []

    def tell(module_function, name):
        def compile_and_tell(program, *mode):
            names.append((program.trial.optimizer.spec, name(program, *mode)))
            return module_function(program, *mode)

        return compile_and_tell

    def shape(program):
        return "solo" if program.block.slots == 1 else "batched"

    monkeypatch.setattr(compiling, "compile_program", tell(compiling.compile_program, shape))
    monkeypatch.setattr(compiling, "compile_evaluation", tell(compiling.compile_evaluation, lambda _, mode: mode))
    return names


def watched(tmp_path, watcher, **settings):
    return runner.run_plan(SweepPlan(("beale",), **PLAN | settings), out=tmp_path / "results", watcher=watcher)


@pytest.mark.parametrize(
    ("timing", "programs"),
    sample(
        [("full", {"batched", "solo", "value", "value_and_grad"}), ("none", {"batched"}), ("batched", {"batched"})], 2
    ),
)
def test_only_what_is_timed_is_compiled_each_once(compiled, sweep, monkeypatch, timing, programs):
    monkeypatch.setattr(driver, "TIMED", FULL)
    sweep("beale", ["sgd", "adam"], **PLAN, timing=timing)
    of_problem = {("sgd", mode) for mode in compiling.EVALUATIONS}  # timed once a problem, with its last optimizer
    assert len(compiled) == len(set(compiled))
    assert set(compiled) == {(name, program) for name in ("sgd", "adam") for program in programs} - of_problem


def test_a_pair_s_answer_comes_before_it_is_timed(sweep, tmp_path):
    watcher = Telling()
    watched(tmp_path, watcher, optimizers=("sgd", "adam"))
    stages = ("started", "chunk", "swept", "done")
    assert watcher.events == [(stage, name) for name in ("sgd", "adam") for stage in stages]
    assert watcher.timed == [0, 1, 0, 1]


def test_an_answer_does_not_wait_for_what_is_only_timed(sweep, tmp_path, monkeypatch):
    answered, compile_program = threading.Event(), compiling.compile_program

    class Answering(Telling):
        def pair_swept(self, *arguments):
            answered.set()

    def compile_after_the_answer(program):
        if program.block.slots == 1 and not answered.wait(60):
            raise RuntimeError("the answer waits for the program of one trial")
        return compile_program(program)

    monkeypatch.setattr(driver, "TIMED", FULL)
    monkeypatch.setattr(compiling, "compile_program", compile_after_the_answer)
    run = watched(tmp_path, Answering(), optimizers=("sgd",))
    assert run.timings["mode"].to_pylist() == ["value", "value_and_grad", "solo", "batched"]


def test_nothing_is_timed_while_something_else_runs(compiled, sweep, monkeypatch):
    working, at_work, time_program = [], compiling.Compiler.working, compiling.time_program
    compilers = []

    def remember(self):
        compilers.append(self)
        return at_work(self)

    def look(*arguments):
        working.append(compilers[-1]._running)
        return time_program(*arguments)

    monkeypatch.setattr(compiling.Compiler, "working", remember)
    monkeypatch.setattr(compiling, "time_program", look)
    sweep("beale", ["sgd", "adam", "lion"], **PLAN, timing="batched")
    assert working == [0, 0, 0]


def test_a_compilation_beside_other_work_says_so():
    begun, go_on = threading.Event(), threading.Event()
    compiled = compiling.Compiled(None, 0.0, 0.0, 0.0, False, None, None)

    def slow():
        begun.set()
        go_on.wait(60)
        return compiled

    with compiling.Compiler() as compiler:
        assert not compiler.submit(lambda: compiled).result().ahead
        job = compiler.submit(slow)
        begun.wait(60)
        with compiler.working():
            go_on.set()
            assert job.result().ahead


def test_a_pair_that_does_not_compile_ahead_fails_in_its_own_name(sweep, monkeypatch, tmp_path):
    compile_program = compiling.compile_program

    def refuse_adam(program):
        if program.trial.optimizer.spec == "adam":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too much")
        return compile_program(program)

    monkeypatch.setattr(compiling, "compile_program", refuse_adam)
    with pytest.raises(RunError, match="beale × adam: RESOURCE_EXHAUSTED"):
        sweep("beale", ["sgd", "adam"], "0.01:0.1:4", seeds=1, steps=50)
    (folder,) = (tmp_path / "results").glob("*/parts/0000")
    assert (folder / "complete.json").is_file()


def test_a_run_without_timing_is_the_same_but_for_the_timings(sweep):
    timed, bare = (sweep("beale", ["sgd", "adam"], **PLAN, timing=timing) for timing in ("batched", "none"))
    assert len(bare.timings) == 0
    assert "limits" not in bare.info
    assert bare.trials.equals(timed.trials)
    assert bare.curves.equals(timed.curves)
    found = compare_runs(timed, bare)
    assert any(f"no timings in {bare.id}" in note for note in found.notes)
    assert not any("time" in row["what"].split() for row in found.rows)


@pytest.mark.thorough
def test_what_takes_the_rows_does_the_same_compiled_quickly(sweep, monkeypatch):
    plan = {"learning_rates": "0.01:10:6", "seeds": 2, "steps": 60, "timing": "none"}
    quick = sweep("linear_regression", ["sgd"], **plan)
    monkeypatch.setattr(pair, "FEW_ROWS", 0)
    fast = sweep("linear_regression", ["sgd"], **plan)
    assert quick.trials.equals(fast.trials)
    assert quick.curves.equals(fast.curves)


def test_a_plan_from_before_the_setting_is_timed_in_full():
    old = {key: value for key, value in SweepPlan().to_dict().items() if key != "timing"}
    assert SweepPlan.from_dict(old).timing == "full"


def test_a_run_stopped_between_sweep_and_timing_is_only_timed(sweep, tmp_path, monkeypatch):
    whole = sweep("beale", ["sgd", "adam"], **PLAN)
    watcher = Telling(stop_after="swept")
    stopped = watched(tmp_path, watcher, optimizers=("sgd", "adam"))
    assert stopped.info["state"] == "interrupted"
    assert len(stopped.trials) == 4
    assert len(stopped.timings) == 0
    again = Telling()
    resumed = gradbench.resume(stopped.path, watcher=again)
    assert again.events[:3] == [("started", "sgd"), ("swept", "sgd"), ("done", "sgd")]  # no chunk
    assert ("chunk", "adam") in again.events
    assert resumed.trials.equals(whole.trials)
    assert resumed.curves.equals(whole.curves)
    assert resumed.timings["mode"].to_pylist() == ["batched", "batched"]
