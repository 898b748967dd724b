"""The same sweep on 1, 2, 4 and 8 virtual devices: the same bits."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest

PROBLEMS = ("quadratic_bowl", "logistic_regression", "mlp[hidden=8]")
OPTIMIZERS = ("sgd", "adam")
COUNTS = (1, 2, 4, 8)

# A digest of each pair's tables, without the timing that a whole run does. 26 trials queue for 4 slots a device.
SCRIPT = """
import hashlib, itertools, json, pathlib, sys, tempfile

from gradbench.devices import find_devices
from gradbench.engine import PairSweep
from gradbench.optimizer import load_optimizer
from gradbench.plan import SweepPlan
from gradbench.problem import load_problem
from gradbench.program import Block, Program, Trial, numerics
from gradbench.record import PairStore

devices = find_devices("cpu")
assert len(devices) == int(sys.argv[1])
digests = {}
for problem, optimizer in itertools.product(*map(json.loads, sys.argv[2:])):
    plan = SweepPlan((problem,), (optimizer,), "1e-3:10:13", seeds=2, steps=40)
    with numerics("float32", "highest"):
        trial = Trial.of(load_problem(problem), load_optimizer(optimizer), plan)
    program = Program(trial, Block(len(devices), 4, 16, 1), devices)
    with tempfile.TemporaryDirectory() as folder:
        store = PairStore(pathlib.Path(folder))
        assert PairSweep(program, program.advance, plan, 0, store).run()
        tables = [str(store.read(name).to_pydict()) for name in ("trials", "curves")]
    digests[f"{problem} x {optimizer}"] = hashlib.sha256("".join(tables).encode()).hexdigest()
print(json.dumps(digests))
"""


@pytest.fixture(scope="module")
def digests():
    """By number of devices, by pair."""
    running = {}
    for count in COUNTS:
        command = [sys.executable, "-c", SCRIPT, str(count), json.dumps(PROBLEMS), json.dumps(OPTIMIZERS)]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
        running[count] = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    outputs = {count: process.communicate()[0] for count, process in running.items()}
    assert [process.returncode for process in running.values()] == [0] * len(COUNTS)
    return {count: json.loads(output) for count, output in outputs.items()}


@pytest.mark.parametrize("pair", [" x ".join(pair) for pair in itertools.product(PROBLEMS, OPTIMIZERS)])
def test_all_numbers_of_devices_give_the_same_record(digests, pair):
    # XLA compiles for one device by another road: there it divides several leaves by adam's bias correction, which is
    # one number a trial, by way of its reciprocal.
    counts = COUNTS[1:] if pair == "mlp[hidden=8] x adam" else COUNTS
    assert len({digests[count][pair] for count in counts}) == 1
