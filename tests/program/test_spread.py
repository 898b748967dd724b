"""Trials along one axis, where they must not be side by side."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradbench
from gradbench.gradients.execution import programs
from gradbench.gradients.rounding.band import Band
from gradbench.inputs.optimizer import load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.program.block import choose_block
from gradbench.program.kind import Kind
from gradbench.program.spread import initialise, over_trials
from gradbench.program.trial import Trial
from gradbench.program.xla.jaxprs import equations


def factorisations(jaxpr):
    """Numbers of axes of the matrices that are factorised."""
    return {e.invars[0].aval.ndim for e in equations(jaxpr) if e.primitive.name in ("qr", "cholesky", "eigh")}


def init(key):
    first, second = jax.random.split(key)
    orthogonal = jax.nn.initializers.orthogonal()(first, (64, 256))
    return {"orthogonal": orthogonal, "normal": jax.random.normal(second, (8, 256))}


def loss(params, data):
    matrix = jnp.eye(6) + 0.1 * params["orthogonal"][:6] @ params["orthogonal"][:6].T
    values = jnp.linalg.eigvalsh(matrix) + jnp.diag(jnp.linalg.cholesky(matrix)) + jnp.diag(jnp.linalg.qr(matrix)[1])
    return jnp.sum(values**2) + jnp.mean(params["normal"] ** 2)


@pytest.mark.thorough
def test_factorisations_of_several_trials_are_taken_one_after_another_on_a_cpu():
    spread = over_trials(lambda seed: init(jax.random.key(seed)), (0,), "cpu")
    seeds = jnp.arange(4, dtype=jnp.uint32)
    assert factorisations(jax.make_jaxpr(spread)(seeds)) == {2}
    elsewhere = over_trials(lambda seed: init(jax.random.key(seed)), (0,), "gpu")
    assert factorisations(jax.make_jaxpr(elsewhere)(seeds)) == {3}
    for seed, orthogonal in enumerate(spread(seeds)["orthogonal"]):
        np.testing.assert_allclose(orthogonal, init(jax.random.key(seed))["orthogonal"], rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_the_check_takes_no_batches_of_them_either():
    params = {"orthogonal": jnp.ones((64, 256)), "normal": jnp.ones((8, 256))}  # nothing is run
    band = Band(jax.grad(loss), params, (), "float32", "highest", jax.devices()[0])
    with jax.enable_x64(True):
        wide = [jnp.asarray(leaf, jnp.float64) for leaf in jax.tree.leaves(params)]
        assert factorisations(band._compiled().trace(jnp.arange(4, dtype=jnp.uint32), wide).jaxpr) == {2}
    run = programs.forward(loss)
    assert factorisations(jax.make_jaxpr(run)(params, ((), programs.directions(params)))) == {2}


@pytest.mark.thorough
def test_a_sweep_with_factorisations_on_all_cores_ends(sweep):
    """With jax 0.10.1, batches of them on two devices beside other work wait for each other for good."""
    run = sweep(gradbench.Problem(init, loss), ["sgd"], "1e-4:1e-3:8", seeds=2, steps=5)
    assert np.all(np.isfinite(run.trials["final_loss"]))


def test_starts_are_spread_over_the_devices():
    devices = jax.devices()
    problem = gradbench.Problem(init, loss)
    starts = initialise(problem, devices)
    drawn = starts(np.arange(2 * len(devices), dtype=np.uint32))
    assert drawn["normal"].sharding.device_set == set(devices)
    one = initialise(problem, devices[:1])(np.arange(2 * len(devices), dtype=np.uint32))
    np.testing.assert_array_equal(drawn["normal"], one["normal"])
    assert initialise(problem, devices) is starts


def test_a_seeds_start_has_the_same_bits_alone_and_among_others():
    """With jax 0.12, of these weights one draw alone had other last bits."""

    def weights(key):
        parts = jnp.split(jax.random.normal(key, (264,)), [240])
        return {
            "embedding": 3.0 * parts[0].reshape(30, 8) / math.sqrt(30),
            "out": 3.0 * parts[1].reshape(8, 3) / math.sqrt(8),
        }

    starts = initialise(gradbench.Problem(weights, loss), jax.devices()[:1])
    together = starts(np.arange(4, dtype=np.uint32))
    alone = [starts(np.array([seed], np.uint32)) for seed in range(4)]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *draws: np.concatenate(draws), *alone), together)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        ("quadratic_bowl", Kind(products=False, matrices=True, images=False, alone=False)),
        ("mlp", Kind(products=True, matrices=True, images=False, alone=False)),
        ("cnn", Kind(products=True, matrices=False, images=True, alone=False)),
        ("transformer", Kind(products=True, matrices=False, images=False, alone=True)),
        ("matrix_factorisation", Kind(products=False, matrices=True, images=False, alone=True)),
        ("gaussian_process", Kind(products=True, matrices=True, images=False, alone=True)),
    ],
)
def test_a_problem_has_the_block_of_its_kind(problem, kind):
    loaded = gradbench.load_problem(problem)
    plan = SweepPlan((problem,), ("sgd",), "1e-3:1:8", seeds=2, steps=100)
    trial = Trial.of(loaded, load_optimizer("sgd"), plan)
    block = choose_block(trial, jax.devices("cpu"), plan.trials)
    assert trial.kind == kind
    assert (block.lanes == 1) == (kind.alone or not kind.matrices)  # a convolution's windows fill the cache
    assert block.relayout == kind.relayout(block.lanes, "cpu")


def test_the_block_does_not_depend_on_what_was_counted_before():
    seen = set()
    for sizes in ([None, 32], [32, None]):
        problem = gradbench.load_problem("cnn")
        for size in sizes:
            plan = SweepPlan(("cnn",), ("sgd",), "1e-3:1:8", steps=1000, batch_size=size)
            trial = Trial.of(problem, load_optimizer("sgd"), plan)
            seen.add((size, choose_block(trial, jax.devices("cpu"), plan.trials)))
    assert len(seen) == 2


def test_a_small_batch_of_images_keeps_its_layout():
    plan = SweepPlan(("cnn",), ("sgd",), "1e-3:1:8", steps=100, batch_size=32)
    trial = Trial.of(gradbench.load_problem("cnn"), load_optimizer("sgd"), plan)
    assert not trial.kind.images
    assert not choose_block(trial, jax.devices("cpu"), plan.trials).relayout
