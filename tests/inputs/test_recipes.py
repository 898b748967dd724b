"""Every file and command of docs/recipes.md, as it stands there, works where its packages are installed."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import jit_quickly
from sampling import sample

from gradbench.cli import main as cli
from gradbench.datasets import load_table
from gradbench.engine import runner, units
from gradbench.errors import GradbenchError
from gradbench.inputs.problem import cast

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
TABLES = {"pets.csv": re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1]}
COMMANDS = re.findall(r"^    (gradbench run .*)$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with every file of the page."""
    for name, text in (FILES | TABLES).items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def packages(text):
    """The packages that a file imports."""
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in names + [node.module for node in nodes if isinstance(node, ast.ImportFrom)]}


class Stop(GradbenchError):
    """Raised where a run would begin."""


@pytest.mark.parametrize("command", sample(COMMANDS, 5))
def test_a_command_is_read_and_its_steps_lower_the_loss(folder, monkeypatch, command):
    for name in re.findall(r"\w+\.py", command):
        for package in packages(FILES[name]):
            pytest.importorskip(package)
    plans = []

    def run_plan(plan, **_):
        plans.append(plan)
        raise Stop

    monkeypatch.setattr(runner, "run_plan", run_plan)
    assert cli.invoke(shlex.split(command)[1:]) == Stop.exit_code
    for trial in units.prepare(plans[0], {}, {})[0]:
        losses = trained(trial.problem, trial.optimizer, 3e-3)
        assert np.isfinite(losses).all()
        assert losses[-1] < losses[0]


def trained(problem, optimizer, rate, steps=20):
    """The losses of `steps` steps on all the data, with one key and the first state where the loss takes them."""
    problem = problem.plain
    data = cast(problem.data, jnp.float32)

    @jit_quickly
    def run(params):
        made = optimizer.build(jnp.float32(rate), steps)

        def step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(problem.loss)(params, data)
            updates, state = made.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, made.init(params)), None, steps)[1]

    return np.asarray(run(cast(problem.init(jax.random.key(0)), jnp.float32)))


def test_every_file_has_a_command_and_is_short():
    for name, text in FILES.items():
        assert any(name in command for command in COMMANDS), name
        assert len(text.splitlines()) <= 25, name


def test_the_table_is_read_as_the_page_says(folder):
    features, label = load_table("pets.csv", label="species", classes=True)
    np.testing.assert_array_equal(features, [[4.1, 25], [12.5, 40], [3.9, 23]])
    assert label.tolist() == ["cat", "dog", "cat"]
