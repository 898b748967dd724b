"""The engine against plain loops and against itself: blocks, queues, retirement and minibatches change nothing."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir
from plain import plain_loop
from sampling import sample

import gradbench
from gradbench.engine import pair
from gradbench.engine.slots.points import recorded_rows
from gradbench.errors import GradbenchError
from gradbench.program import program
from gradbench.program.minibatch import batch_rows, permuted
from gradbench.program.spread import initialise


def table(run, name="trials"):
    return getattr(run, name).to_pydict()


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


SMALL = ["mlp[hidden=8]", "linear_regression"]


@pytest.mark.parametrize("optimizer", sample(["sgd", "adam", "momentum", "adamw"]))
def test_trajectories_are_those_of_a_plain_optax_loop(sweep, optimizer):
    rates, steps = [0.003, 0.03], 30
    run = sweep(SMALL, [optimizer], rates, seeds=2, steps=steps, dtype="float64", record_points=99)
    curves = {key: np.array(values) for key, values in table(run, "curves").items()}
    make = momentum if optimizer == "momentum" else getattr(optax, optimizer)
    problems = [gradbench.load_problem(name) for name in SMALL]
    # A start is drawn in float32 whatever the run's dtype, and a jitted draw may differ in its last bit.
    starts = [initialise(problem, jax.devices()[:1])(jnp.arange(2, dtype=jnp.uint32)) for problem in problems]
    for trial, (which, rate, seed) in enumerate(itertools.product(range(2), rates, range(2))):
        start = jax.tree.map(lambda leaf, seed=seed: np.asarray(leaf)[seed], starts[which])
        expected = plain_loop(problems[which], make, rate, steps, seed, start=start)
        # float64 rounding, 1.1e-16, over 30 steps of sums of up to 1797 terms, in two orders of adding
        np.testing.assert_allclose(curves["loss"][curves["trial"] == trial], expected, rtol=1e-11)


@pytest.mark.parametrize("name", sample(["rastrigin", "mlp"]))
def test_starts_have_the_same_bits_as_when_compiled_for_speed(name):
    problem, seeds = gradbench.load_problem(name), jnp.arange(5, dtype=jnp.uint32)
    expected = jax.jit(jax.vmap(lambda seed: problem.init(jax.random.key(seed))))(seeds)
    jax.tree.map(np.testing.assert_array_equal, initialise(problem, jax.devices()[:1])(seeds), expected)


def test_minibatch_trajectories_are_those_of_a_plain_loop(sweep, small_blocks):
    small_blocks(rows=2)
    run = sweep("linear_regression", ["sgd"], [0.01, 0.05], seeds=2, steps=40, batch_size=32, dtype="float64")
    curves = {key: np.array(values) for key, values in table(run, "curves").items()}
    problem = gradbench.load_problem("linear_regression")
    epoch = 442 // 32
    for trial, (rate, seed) in enumerate(itertools.product([0.01, 0.05], range(2))):
        expected = plain_loop(problem, optax.sgd, rate, 40, seed, batch_size=32)
        mine = curves["trial"] == trial
        assert curves["step"][mine].tolist() == [0, epoch, 2 * epoch, 3 * epoch, 40]
        np.testing.assert_allclose(curves["loss"][mine], expected[curves["step"][mine]], rtol=1e-12)


def depthwise(params, data):
    images = jnp.reshape(data["x"], (-1, 3, 3, 2))
    order, kernel = ("NHWC", "HWIO", "NHWC"), params["w"]
    features = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=order, feature_group_count=2
    )
    return jnp.mean((jnp.tanh(features) - data["y"][:, None, None, None]) ** 2)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("batch_size", sample([4, None]))
def test_a_convolution_that_cannot_be_batched_is_swept(sweep, small_blocks, batch_size):
    small_blocks(lanes=2, rows=2, devices=1)
    generator = np.random.default_rng(0)
    start = {"w": generator.normal(size=(2, 2, 1, 2))}
    data = {"x": generator.normal(size=(12, 18)), "y": generator.normal(size=12)}
    problem = gradbench.Problem(lambda key: start, depthwise, data, examples=12)
    rates, steps = [0.1, 0.3], 6
    run = sweep(
        problem, ["momentum"], rates, seeds=1, steps=steps, dtype="float64", batch_size=batch_size, record_points=99
    )
    curves = {key: np.array(values) for key, values in table(run, "curves").items()}
    start = jax.tree.map(lambda w: np.asarray(w, np.float32), start)  # as all starts are drawn
    for trial, rate in enumerate(rates):
        expected = plain_loop(problem, momentum, rate, steps, 0, batch_size, start)
        mine = curves["trial"] == trial
        # float64 rounding, 1.1e-16, over 6 steps of means of up to 96 terms, in two orders of adding
        np.testing.assert_allclose(curves["loss"][mine], expected[curves["step"][mine]], rtol=1e-12)


@pytest.mark.usefixtures("compiled_quickly")
def test_a_primitive_without_a_batching_rule_is_swept(sweep, small_blocks):
    small_blocks()
    double = Primitive("double")
    double.def_abstract_eval(lambda x: x)
    mlir.register_lowering(double, mlir.lower_fun(lambda x: 2 * x, multiple_results=False))
    doubled = jax.custom_jvp(double.bind)
    doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))
    problem = gradbench.Problem(
        lambda key: doubled(jnp.array([0.5, 1.0])), lambda params, data: jnp.sum(doubled(params) ** 2)
    )
    run = sweep(problem, ["sgd"], [0.01, 0.02, 0.05, 0.1], seeds=1, steps=10)
    rates = np.array(run.trials["learning_rate"])
    # The gradient is 8 x, from (1, 2); a rate is rounded once, and a step of an entry three times.
    rtol = 2 * 10 * 5 * np.finfo(np.float32).eps
    np.testing.assert_allclose(run.trials["final_loss"], 4 * 5 * (1 - 8 * rates) ** 20, rtol=rtol)


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own():
    key = jnp.array([3, 14], jnp.uint32)
    batches = jax.jit(jax.vmap(lambda step: batch_rows(step, 105, 10, key)))(jnp.arange(20))
    epochs = np.reshape(batches, (2, 100))
    for rows in epochs:
        assert len(set(rows.tolist())) == 100
        assert rows.min() >= 0
        assert rows.max() < 105
    assert (epochs[0] != epochs[1]).any()


def test_shuffled_positions_are_uniform():
    # Chi-squared of where item 0 and the pair (0, 1) land over 4000 keys, against its 1 - 1e-6 quantile.
    size, draws = 12, 4000
    keys = jax.random.bits(jax.random.key(0), (draws, 2), jnp.uint32)
    places = np.asarray(jax.vmap(lambda key: permuted(jnp.arange(size), size, key))(keys))
    assert (np.sort(places, axis=1) == np.arange(size)).all()
    single = np.bincount(places[:, 0], minlength=size)
    pairs = np.bincount(places[:, 0] * size + places[:, 1], minlength=size**2).reshape(size, size)
    pairs = pairs[~np.eye(size, dtype=bool)]
    from scipy.stats import chi2

    for counts in (single, pairs):
        expected = draws / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-6, len(counts) - 1)


PLAN = {"optimizers": ["sgd", "adam"], "learning_rates": "1e-3:10.0:16", "seeds": 2, "steps": 60}


def test_two_runs_of_one_plan_are_identical(sweep, small_blocks, compiled_afresh):
    small_blocks()
    first, second = (sweep("logistic_regression", **PLAN | {"optimizers": ["adam"]}) for _ in range(2))
    assert first.trials.equals(second.trials)
    assert first.curves.equals(second.curves)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("extra", sample([{}, {"stop_at_target": True, "target": 0.1}, {"batch_size": 100}]))
def test_retirement_changes_only_the_work(sweep, small_blocks, extra):
    small_blocks()
    with_it, without = (sweep("linear_regression", **PLAN, **extra, retire=retire) for retire in (True, False))
    assert "diverged" in with_it.trials["verdict"].to_pylist() or extra
    for name in ("trial", "verdict", "steps_run", "diverged_at", "steps_to_target", "best_step"):
        assert with_it.trials[name].to_pylist() == without.trials[name].to_pylist(), name
    # A trial may sit in another slot, where a product over the block may add in another order.
    for name in ("final_loss", "best_loss", "final_grad_norm"):
        np.testing.assert_allclose(with_it.trials[name], without.trials[name], rtol=1e-4)
    assert with_it.curves["step"].to_pylist() == without.curves["step"].to_pylist()


@pytest.mark.thorough
def test_a_sweep_equals_its_trials_alone(sweep):
    rates = list(np.geomspace(1e-3, 1.0, 64))
    together = sweep("linear_regression", ["momentum"], rates, seeds=1, steps=20, dtype="float64")
    problem, plan = "linear_regression", {"seeds": 1, "steps": 20, "dtype": "float64"}
    for trial in range(0, 64, 21):
        alone = sweep(problem, ["momentum"], [rates[trial]], **plan)
        np.testing.assert_allclose(
            together.trials["final_loss"][trial].as_py(), alone.trials["final_loss"][0].as_py(), 1e-12
        )


def compilations(action) -> int:
    counted = []

    def listen(event: str, seconds: float, **_) -> None:
        counted.append(event == "/jax/core/compile/backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        action()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)  # and nobody else's
    return sum(counted)


@pytest.mark.usefixtures("compiled_quickly")
def test_compilations_do_not_grow_with_trials(sweep, small_blocks):
    small_blocks()
    plan = {"learning_rates": "1e-3:1.0:10", "seeds": 2, "steps": 50, "timing": "batched"}
    sweep("himmelblau", ["sgd"], **plan)  # compiles what every pair of this block shape shares
    few = compilations(lambda: sweep("himmelblau", ["sgd"], **plan))
    many = compilations(lambda: sweep("himmelblau", ["sgd"], "1e-4:10.0:60", seeds=5, steps=50, timing="batched"))
    assert few == many
    assert 0 < few <= 12


@pytest.mark.usefixtures("compiled_quickly")
def test_the_engine_compiles_each_block_program_once(sweep, small_blocks, monkeypatch):
    small_blocks()
    observe = pair._observe(True)
    observe.clear_cache()
    sweep("beale", ["sgd", "adam"], "1e-4:1.0:40", seeds=2, steps=50)
    assert observe._cache_size() == 1  # shared by both pairs


@pytest.mark.thorough
@pytest.mark.parametrize(("optimizer", "batch_size"), [*itertools.product(["momentum", "adam"], [50, None])])
def test_a_loop_without_copies_computes_the_same(optimizer, batch_size, sweep, monkeypatch):
    """The compiler's option changes what is copied, and nothing else: on every problem the bits stay."""
    problems = [p for p in ("quadratic_bowl", "beale", "logistic_regression") if batch_size is None or "_r" in p]
    plan = {"seeds": 2, "steps": 60, "batch_size": batch_size}

    def results(options):
        monkeypatch.setattr(program, "loop_options", lambda *_: options)
        run = sweep(problems, [optimizer], "1e-3:1.0:8", **plan)
        return run.trials, run.curves

    options = program.loop_options("cpu", False)
    assert all(a.equals(b) for a, b in zip(results({}), results(options)))


def test_float16_and_bfloat16_runs_are_in_their_dtype(sweep):
    # 1 - 2 * 0.001 rounds to 1 - 2**-9 in float16 and bfloat16 cannot move from 1 by it at all.
    losses = {}
    for dtype in ("float16", "bfloat16", "float32"):
        run = sweep("quadratic_bowl[dim=1]", ["sgd"], [0.0005], seeds=1, steps=10, dtype=dtype)
        losses[dtype] = run.trials["final_loss"][0].as_py()
    assert losses["bfloat16"] == 1.0
    assert losses["float32"] == pytest.approx(0.999**20, rel=1e-5)
    assert losses["float16"] == pytest.approx(0.999**20, rel=1e-2)
    assert losses["float16"] != losses["float32"]


@pytest.mark.usefixtures("compiled_quickly")
def test_a_diverged_trial_ends_where_it_diverged_and_is_not_padded(sweep):
    run = sweep("quadratic_bowl[dim=1]", ["sgd"], [2.0], seeds=1, steps=300)
    trial = run.trials.to_pylist()[0]
    # |1 - 2 * 2| = 3, so the loss grows ninefold per step: above 1 + 1e4 first at step 5.
    assert trial["verdict"] == "diverged"
    assert trial["diverged_at"] == trial["steps_run"] == 5
    assert trial["final_loss"] == pytest.approx(9.0**5)
    assert run.curves["step"].to_pylist()[-1] == 5


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    ("facts", "offset"), sample(itertools.product([{"minimum": -1.0}, {}, {"target": -0.999}], [1e-9, 0.0, 100.0]))
)
def test_a_loss_that_begins_near_0_or_below_may_rise_and_is_diverged_when_it_blows_up(sweep, offset, facts):
    facts = {name: value - offset for name, value in facts.items()}
    problem = gradbench.Problem(
        lambda key: jnp.ones(()), lambda p, off: p**2 - 1 - off, data=np.array(offset), name="shifted", **facts
    )  # an offset that is data: one program for all
    adam = sweep(problem, ["adam"], [3.0], seeds=1, steps=400).trials.to_pylist()[0]  # goes to -2 first: 3 above
    assert adam["verdict"] != "diverged"
    assert adam["best_loss"] < -0.5 - offset
    sgd = sweep(problem, ["sgd"], [2.0], seeds=1, steps=60).trials.to_pylist()[0]  # 9 times as high at every step
    assert sgd["verdict"] == "diverged"


@pytest.mark.usefixtures("compiled_quickly")
def test_a_start_at_the_minimum_has_not_diverged_by_a_little_noise(sweep):
    there = gradbench.Problem(
        lambda key: jnp.full(3, 0.1), lambda p, _: jnp.sum((p - 0.1) ** 2) + 0.3, minimum=0.3, name="there"
    )
    trial = sweep(there, ["noisy_sgd[eta=1e-3]"], [0.1], seeds=1, steps=5).trials.to_pylist()[0]
    assert trial["verdict"] == "converged"


@pytest.mark.usefixtures("compiled_quickly")
def test_non_finite_losses_are_data(sweep, tmp_path):
    file = tmp_path / "edge.py"
    file.write_text(
        "import jax.numpy as jnp\nfrom gradbench import Problem\n"
        "def problem():\n    return Problem(lambda key: jnp.ones(2), lambda p, d: jnp.sum(jnp.log(p)))\n"
    )
    run = sweep(str(file), ["sgd"], [0.5], seeds=1, steps=20)
    trial = run.trials.to_pylist()[0]
    assert trial["verdict"] == "diverged"
    assert not np.isfinite(trial["final_loss"])
    assert trial["minimum"] is None


def test_recorded_rows_hold_both_ends_and_no_more_than_asked():
    for total, points in itertools.product((1, 2, 3, 10, 501, 10**6), (2, 3, 5, 200)):
        rows = recorded_rows(total, points)
        assert rows[0] == 0
        assert rows[-1] == total - 1
        assert len(rows) <= points
        assert (np.diff(rows) > 0).all()


@pytest.mark.usefixtures("compiled_quickly")
def test_a_thousand_trials_stream_through_a_small_block(sweep, small_blocks):
    small_blocks(lanes=8, rows=11)
    run = sweep("quadratic_bowl[dim=2]", ["sgd"], "1e-3:4.0:500", seeds=2, steps=20, record_points=3)
    assert run.trials["trial"].to_pylist() == list(range(1000))
    assert run.trials["learning_rate"].to_pylist() == np.repeat(run.plan.rates, 2).tolist()
    assert run.curves.num_rows <= 3000


@pytest.mark.usefixtures("compiled_quickly")
def test_every_seed_starts_at_its_own_point(sweep):
    run = sweep("himmelblau", ["sgd"], [1e-3], seeds=4, steps=2)
    problem = gradbench.load_problem("himmelblau")
    expected = [float(problem.loss(problem.init(jax.random.key(seed)), ())) for seed in range(4)]
    np.testing.assert_allclose(run.trials["initial_loss"].to_pylist(), expected, rtol=1e-5)


def test_more_trials_than_the_memory_holds_are_refused_before_a_record_is_made(tmp_path):
    plan = gradbench.SweepPlan(("beale",), ("sgd",), [0.1], seeds=2**31 - 1, steps=3)
    with pytest.raises(GradbenchError, match=r"2,147,483,647 trials, which need about 1200 GiB"):
        gradbench.run_plan(plan, out=tmp_path)
    assert not list(tmp_path.iterdir())
