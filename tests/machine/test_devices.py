"""The same sweep on 1, 2, 4 and 8 virtual devices: the same bits; and what of a machine a container may use."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from quick import child_environment

from gradbench.machine import devices
from gradbench.program.block import device_memory

COUNTS = (1, 2, 4, 8)

# Divides by a norm, by a row of scales and by a softmax's sums.
NORMALISED = """
import jax
import jax.numpy as jnp
from gradbench import Problem, datasets


def problem():
    images, labels = datasets.bundled("digits")

    def loss(params, data):
        w = params["w"] / jnp.linalg.norm(params["w"])
        w = params["scale"] * w / jnp.sqrt(jnp.mean(w**2, axis=0, keepdims=True) + 1e-3)
        return -jnp.mean(jax.nn.softmax(data["x"] @ w)[jnp.arange(len(data["y"])), data["y"]])

    def init(key):
        return {"w": jax.random.normal(key, (64, 10)), "scale": jnp.ones(10)}

    return Problem(init, loss, {"x": images / 16.0, "y": labels}, examples=len(labels), target=-0.9)
"""

# A digest of each pair's tables, without the timing that a whole run does. 26 trials queue for 4 slots per device.
SCRIPT = """
import hashlib, json, pathlib, sys, tempfile

from gradbench.machine.devices import find_devices
from gradbench.engine.pair import PairSweep
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import load_problem
from gradbench.program.program import Block, Program, Trial, numerics
from gradbench.record.parts import PairStore

devices = find_devices("cpu")
assert len(devices) == int(sys.argv[1])
digests = {}
for problem, optimizer in json.loads(sys.argv[2]):
    plan = SweepPlan((problem,), (optimizer,), "1e-3:10:13", seeds=2, steps=40)
    with numerics("float32", "highest"):
        trial = Trial.of(load_problem(problem), load_optimizer(optimizer), plan)
    program = Program(trial, Block(len(devices), 4, 16, 1), devices)
    with tempfile.TemporaryDirectory() as folder:
        store = PairStore(pathlib.Path(folder))
        assert PairSweep(program, program.advance, plan, 0, store).run()
        tables = [str(store.read(name).to_pydict()) for name in ("trials", "curves")]
    digests[f"{pathlib.Path(problem).name} x {optimizer}"] = hashlib.sha256("".join(tables).encode()).hexdigest()
print(json.dumps(digests))
"""


PAIRS = (
    ("quadratic_bowl", "sgd"),
    ("logistic_regression", "adam"),
    ("mlp[hidden=8]", "sgd"),
    ("normalised.py", "adam"),
)


@pytest.mark.thorough
def test_all_numbers_of_devices_give_the_same_record(tmp_path):
    (tmp_path / "normalised.py").write_text(NORMALISED)
    pairs = [(str(tmp_path / name) if name.endswith(".py") else name, optimizer) for name, optimizer in PAIRS]
    running = {}
    for count in COUNTS:
        command = [sys.executable, "-c", SCRIPT, str(count), json.dumps(pairs)]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
        running[count] = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    outputs = {count: process.communicate()[0] for count, process in running.items()}
    assert [process.returncode for process in running.values()] == [0] * len(COUNTS)
    digests = {count: json.loads(output) for count, output in outputs.items()}  # by pair
    assert list(digests[1]) == [" x ".join(pair) for pair in PAIRS]
    for count in COUNTS:
        assert digests[count] == digests[1], count


def cgroups(folder, monkeypatch, own: str, files: dict[str, str]) -> None:
    """A made-up /sys/fs/cgroup with these files, and /proc/self/cgroup."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (folder / "own").write_text(own)
    monkeypatch.setattr(devices, "CGROUPS", folder / "cgroup")
    monkeypatch.setattr(devices, "OWN_CGROUPS", folder / "own")
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: range(64), raising=False)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),  # a container sees its own group as the root
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # of the group above
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),  # half a core is one
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {}, 64),
        ("0::/gone\n", {"cpu.max": "400000 100000"}, 4),
        (
            "3:cpu,cpuacct:/docker/1\n0::/\n",  # version 1, whose path is not there inside a container
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_container_has_the_cores_of_its_quota(tmp_path, monkeypatch, own, files, cores):
    cgroups(tmp_path, monkeypatch, own, files)
    assert devices.cores() == cores


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/a/b\n", {"memory.max": "max", "a/memory.max": "1000000", "a/b/memory.max": "2000000"}, 1_000_000),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "3000000"}, 3_000_000),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("0::/\n", {"memory.max": "max"}, None),
    ],
)
def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch, own, files, limit):
    cgroups(tmp_path, monkeypatch, own, files)
    assert devices.memory() == (limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def test_a_device_may_fill_its_share_of_a_containers_memory(tmp_path, monkeypatch):
    cgroups(tmp_path, monkeypatch, "0::/\n", {"memory.max": "8000000", "cpu.max": "200000 100000"})
    assert device_memory(devices.find_devices("cpu")[0]) == 4_000_000


STARTS_JAX = """
import jax.numpy as jnp
from gradbench import Problem

def problem():
    data = jnp.linspace(0.0, 1.0, 5)
    return Problem(lambda key: data, lambda params, data: (params**2).sum(), data, examples=5)
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "command",
    [
        ["run", "./mine.py", "-o", "sgd[momentum=0.5|0.9]", "--steps", "1"],
        ["run", "./mine.py", "-o", "sgd", "--epochs", "1"],
    ],
    ids=["axes", "epochs"],
)
def test_a_problem_that_starts_jax_as_it_is_loaded_has_all_cores_too(tmp_path, command):
    (tmp_path / "mine.py").write_text(STARTS_JAX)
    arguments = [*command, "--lr", "0.1", "--seeds", "1", "--timing", "none", "--out", "out", "--quiet"]
    code = "import sys; from gradbench.machine import devices; devices.cores = lambda: 3\n"
    code += f"from gradbench.__main__ import main; sys.argv[1:] = {arguments!r}; main()"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=child_environment(), capture_output=True, text=True
    )
    [info] = (json.loads(file.read_text()) for file in tmp_path.glob("out/*/run.json"))
    assert info["environment"]["device_count"] == 3, found.stderr
