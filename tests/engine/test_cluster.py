"""Workers of Dask on the loopback, and what may happen to them: the record is that of one process."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
from quick import child_environment

import gradbench
from gradbench.cli import main as cli
from gradbench.engine import pair, runner, units
from gradbench.engine.units import run_unit
from gradbench.errors import GradbenchWarning, PlanError, RunError
from gradbench.machine import cluster as module
from gradbench.machine.cluster import Cluster, connect, shares, slurm_cluster
from gradbench.machine.devices import cores
from gradbench.program import block
from gradbench.record.parts import PairStore
from gradbench.record.schema import SWEPT

pytest.importorskip("distributed")

PLAN = {"problems": ["beale", "himmelblau"], "optimizers": ["sgd"], "learning_rates": "1e-3:3:6", "seeds": 2}
PLAN |= {"steps": 60, "timing": "none"}
UNITS = 8  # of 3 trials


@pytest.fixture(scope="module")
def cluster():
    with connect("local:2", "cpu") as workers:
        yield workers


OBSERVE = pair._observe


@pytest.fixture(autouse=True)
def small_units(sweep, small_blocks, monkeypatch):
    small_blocks(lanes=3, rows=16, devices=1)
    monkeypatch.setattr(pair, "_observe", OBSERVE)  # compiled here as by the workers, which find it in the cache
    monkeypatch.setattr(block, "UNIT_SECONDS", 0.0)


@pytest.fixture
def alone(sweep):
    return sweep(**PLAN)


@pytest.fixture
def submitted(cluster, monkeypatch):
    """The units that are handed to the cluster."""
    handed, submit = [], Cluster.submit

    def counted(self, function, *arguments):
        handed.extend(arguments[1:] if function is run_unit else ())
        return submit(self, function, *arguments)

    monkeypatch.setattr(Cluster, "submit", counted)
    return handed


def same(run, other) -> bool:
    return all(getattr(run, name).equals(getattr(other, name)) for name in SWEPT)


def address(cluster) -> str:
    return cluster.client.scheduler.address


def test_two_workers_that_are_joined_leave_the_record_of_one_process(sweep, cluster, alone, submitted):
    with connect(address(cluster)) as joined:  # loopback: no warning
        run = sweep(**PLAN, executor=joined)
    assert same(run, alone)
    assert len(submitted) == UNITS
    assert run.info["environment"] == alone.info["environment"]


@pytest.mark.thorough
def test_spawned_processes_leave_the_record_of_one_process(sweep, alone):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert same(sweep(**PLAN, executor=processes), alone)


@pytest.mark.thorough
def test_an_executor_of_dask_leaves_the_record_of_one_process(sweep, cluster, alone):
    assert same(sweep(**PLAN, executor=cluster.client.get_executor(pure=False)), alone)


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 4])
def test_one_worker_and_four_leave_the_record_of_one_process(sweep, alone, workers):
    with connect(f"local:{workers}", "cpu") as other:
        assert other.describe("cpu", "highest")["cpu_cores"] <= alone.info["environment"]["cpu_cores"]
        assert same(sweep(**PLAN, executor=other), alone)
        assert other.alone() == (workers == 1)


@pytest.mark.thorough
def test_a_driver_of_another_kind_leaves_the_choice_of_blocks_to_a_worker(sweep, cluster, alone, monkeypatch):
    monkeypatch.setattr(runner, "difference", lambda *_: "is another machine")
    monkeypatch.setattr(units, "choose_block", None)  # here, not in the worker
    run = sweep(**PLAN, executor=cluster)
    assert run.info["state"] == "complete"
    assert run.info["blocks"].keys() == alone.info["blocks"].keys()
    assert run.info["problems"] == alone.info["problems"]
    assert run.info["environment"]["cpu_cores"] == len(shares(list(range(cores())), 2)[0])


def test_the_command_line_runs_on_workers_and_says_what_failed(cluster, faulty, tmp_path, capsys):
    problems = faulty("raise", always=True)["problems"]
    words = ["-o", "sgd", "--lr", "0.001", "--seeds", "1", "--steps", "5", "--timing", "none", "--out", str(tmp_path)]
    assert cli.invoke(["run", *problems, *words, "--cluster", address(cluster), "--quiet"]) == 3
    told = capsys.readouterr().err
    assert "trials 0 to 0, failed 3 times; all else is recorded: on " in told
    assert "go on with: gradbench run --resume" in told
    assert gradbench.load_run("latest", tmp_path).trials["problem"].to_pylist() == ["himmelblau"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--cluster", "locl:2"], "did you mean 'local'"),
        (["--cluster", "slurm:none.toml"], "none.toml: No such file"),
        (["--unit-timeout", "3"], "--unit-timeout: 3: need seconds above 0, of the units that --cluster's workers"),
        (["--unit-timeout", "0", "--cluster", "local:2"], "need seconds above 0"),
    ],
)
def test_the_command_line_refuses_what_is_no_cluster_in_one_line(words, told, capsys, tmp_path):
    assert cli.invoke(["run", "beale", "--out", str(tmp_path), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
    assert not list(tmp_path.iterdir())


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(PlanError, match=r"^cluster: .*distributed.*; install gradbench with its extra cluster"):
        connect("tcp://127.0.0.1:1").__enter__()


# In a worker, and the first time only unless `always`, it does what it is told while the unit runs.
FAULTY = """
import os, pathlib, signal
import gradbench
from gradbench.inputs.problem import load_problem

def problem(flag, fault, always=False):
    flag = pathlib.Path(flag)
    if "GRADBENCH_CORES" in os.environ and (always or not flag.exists()):
        flag.touch()
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("no more")
    return load_problem("beale")
"""


@pytest.fixture
def faulty(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)

    def plan(fault: str, **settings: bool) -> dict:
        more = "".join(f",{name}={value}" for name, value in settings.items())
        spec = f"{tmp_path / 'faulty.py'}[flag={tmp_path / 'flag'},fault={fault}{more}]"
        return PLAN | {"problems": [spec, "himmelblau"]}

    return plan


@pytest.mark.thorough
def test_a_worker_that_is_killed_loses_one_unit_and_no_row(sweep, cluster, alone, faulty, submitted):
    run = sweep(**faulty("kill"), executor=cluster)
    assert run.trials.drop_columns(["problem"]).equals(alone.trials.drop_columns(["problem"]))
    assert run.curves.equals(alone.curves)
    assert len(submitted) == UNITS + 1


@pytest.mark.thorough
def test_a_unit_that_is_handed_out_while_no_worker_is_there_runs_on_the_next(sweep, alone, faulty, monkeypatch):
    """The only worker is killed, and the driver does not look before it hands out the unit again."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 1e9)
    with connect("local:1", "cpu") as only:
        run = sweep(**faulty("kill"), executor=only)
    assert run.curves.equals(alone.curves)


@pytest.mark.thorough
def test_a_poisoned_problem_is_left_out_and_the_other_is_recorded(sweep, cluster, alone, faulty, tmp_path):
    words = r"trials 0 to 2, failed 3 times, and 3 more units; all else is recorded: .*MemoryError: no more"
    with pytest.raises(RunError, match=words):
        sweep(**faulty("raise", always=True), executor=cluster)
    left = gradbench.load_run("latest", tmp_path / "results")
    assert left.trials["problem"].unique().to_pylist() == ["himmelblau"]
    assert left.trials["final_loss"].equals(alone.trials["final_loss"][12:])


DRIVER = """
import os, signal, sys
import gradbench
from gradbench.engine import pair, runner, units
from gradbench.inputs.plan import SweepPlan
from gradbench.machine.cluster import connect
from gradbench.machine.devices import cores
from gradbench.program import block
from gradbench.program.program import Block
from gradbench.record.parts import PairStore

block.UNIT_SECONDS = 0.0
units.choose_block = lambda *_: Block(1, 3, 16, 1)
add, added = PairStore.add_unit, []

def add_unit(self, number, tables):
    add(self, number, tables)
    added.append(number)
    if len(added) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

PairStore.add_unit = add_unit
if __name__ == "__main__":
    with connect(sys.argv[1]) as workers:
        gradbench.sweep(**eval(sys.argv[2]), out=sys.argv[3], executor=workers)
"""


@pytest.mark.thorough
def test_a_driver_that_was_killed_goes_on_with_what_is_missing(cluster, alone, submitted, tmp_path):
    command = [sys.executable, "-c", DRIVER, address(cluster), repr(PLAN), str(tmp_path / "killed")]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gradbench.load_run("latest", tmp_path / "killed").trials.num_rows == 9
    run = gradbench.resume("latest", results=tmp_path / "killed", executor=cluster)
    assert same(run, alone)
    assert len(submitted) == UNITS - 3


@contextlib.contextmanager
def dask(*arguments: str, **variables: str):
    """A process of Dask's command line."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{arguments[0]}", *arguments[1:]]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=child_environment(**variables), **quiet)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.thorough
def test_a_worker_of_another_kind_is_refused_by_name(cluster, alone):
    with dask("worker", address(cluster), "--no-nanny", "--no-dashboard", "--name", "other", JAX_DEBUG_NANS="1"):
        cluster.client.wait_for_workers(3, timeout=60)
        here = cluster.describe("cpu", "highest")
        assert here["flags"] == alone.info["environment"]["flags"]  # as most are
        with pytest.warns(
            GradbenchWarning, match=r"left out: tcp://\S+: the run began with flags .*, here it is .*NANS"
        ):
            cluster.admit(here, "cpu", "highest")
        assert cluster.count() == 2
        with pytest.raises(RunError, match=r"no worker can run this: .*began with jax 0\.0\.1"):
            cluster.admit(here | {"versions": here["versions"] | {"jax": "0.0.1"}}, "cpu", "highest")


@contextlib.contextmanager
def scheduler_and_worker(port: int):
    with (
        dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard") as scheduler,
        dask("worker", f"tcp://127.0.0.1:{port}", "--no-nanny", "--no-dashboard", "--nthreads", "1"),
    ):
        yield scheduler


@pytest.mark.thorough
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_scheduler_that_is_killed_loses_no_row(sweep, cluster, alone, tmp_path, monkeypatch, comes_back):
    """If it comes back the run goes on, if not a resume does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    add, added = PairStore.add_unit, []
    with contextlib.ExitStack() as processes:
        scheduler = processes.enter_context(scheduler_and_worker(port))

        def add_unit(self, number, tables):
            add(self, number, tables)
            added.append(number)
            if len(added) == 2:
                scheduler.kill()
                scheduler.wait()
                if comes_back:
                    processes.enter_context(scheduler_and_worker(port))

        monkeypatch.setattr(PairStore, "add_unit", add_unit)
        with connect(f"tcp://127.0.0.1:{port}") as workers:
            if comes_back:
                run = sweep(**PLAN, executor=workers)
            else:
                monkeypatch.setattr(module, "RECONNECT_SECONDS", 1)
                with pytest.raises(RunError, match="the workers are gone: the cluster has no scheduler"):
                    sweep(**PLAN, executor=workers)
                kept = gradbench.load_run("latest", tmp_path / "results")
                assert kept.info["state"] == "interrupted"
                assert kept.trials.num_rows >= 6
                run = gradbench.resume(kept.path, executor=cluster)
    assert same(run, alone)


def test_only_loopback_and_tls_go_without_a_warning(recwarn):
    for text in ("tcp://127.0.0.1:8786", "tcp://localhost:8786", "tls://cluster.example:8786"):
        connect(text)
    assert not recwarn.list
    with pytest.warns(GradbenchWarning, match="neither encrypted nor authenticated.*use tls://"):
        connect("tcp://cluster.example:8786")


def test_more_processes_than_the_memory_holds_are_refused():
    with pytest.raises(PlanError, match=r"local:100000 is more processes than .* memory holds; local:"):
        connect("local:100000", "cpu").__enter__()


@pytest.mark.parametrize(
    "text", ["locl:2", "local:", "local:0", "local:-1", "slurm:", "cluster.example:8786", "tcp:", "bad://host:1"]
)
def test_what_is_no_cluster_is_refused_in_one_line(text):
    with pytest.raises(PlanError, match=r"^cluster: no '.*tcp://host:8786, tls://host:8786, local:4 or slurm:"):
        connect(text)


def test_a_cluster_that_was_not_entered_says_how(sweep):
    with pytest.raises(PlanError, match=r"not begun yet; write: with gradbench\.connect"):
        sweep(**PLAN, executor=connect("local:1"))


def test_workers_share_the_cores():
    assert shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3, 4]]
    assert shares([4, 6], 2) == [[4], [6]]
    assert shares([4, 6], 3) == [[4], [6], [4]]


def test_the_job_script_of_slurm_is_that_of_dask_jobqueue(tmp_path):
    jobqueue = pytest.importorskip("dask_jobqueue")
    file = tmp_path / "cluster.toml"
    file.write_text(
        'jobs = 8\nqueue = "gpu"\ncores = 4\nmemory = "32GB"\nwalltime = "02:00:00"\n'
        'job_extra_directives = ["--gres=gpu:1"]\njob_script_prologue = ["module load cuda"]\n'
    )
    with pytest.warns(GradbenchWarning, match="cluster.toml: neither encrypted.*set security = true"):
        made, jobs = slurm_cluster(file)
    settings = {"queue": "gpu", "cores": 4, "memory": "32GB", "walltime": "02:00:00", "processes": 1}
    settings |= {"job_extra_directives": ["--gres=gpu:1"], "job_script_prologue": ["module load cuda"]}
    with (
        made,
        jobqueue.SLURMCluster(**settings, scheduler_options={"dashboard_address": ":0"}) as expected,
    ):
        port = "tcp://HOST"
        mine, theirs = (of.job_script().replace(of.scheduler_address, port) for of in (made, expected))
    assert mine == theirs
    assert "#SBATCH --gres=gpu:1" in mine
    assert jobs == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [("jobs = 0", "jobs is 0; give the number"), ("jobs", "not TOML"), (None, "No such")],
)
def test_a_cluster_file_that_is_wrong_is_refused_in_one_line(tmp_path, text, words):
    pytest.importorskip("dask_jobqueue")
    if text is not None:
        (tmp_path / "cluster.toml").write_text(text)
    with pytest.raises(PlanError, match=words):
        slurm_cluster(tmp_path / "cluster.toml")
