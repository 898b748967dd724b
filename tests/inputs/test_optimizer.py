"""Optimizer specs: every name of optax works or is refused with a reason."""

from __future__ import annotations

import inspect
from functools import partial
from types import FunctionType, ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from sampling import sample

from gradbench.errors import GradbenchWarning, OptimizerError, ProblemError
from gradbench.inputs.optimizer import REFUSED, load_optimizer, optimizer_functions, own_optimizer
from gradbench.inputs.problem import Problem
from gradbench.inputs.updates import extra_arguments


def taking_a_rate(module: ModuleType) -> set[str]:
    """The functions of a module, and partials of functions, that take a learning rate."""
    public = {name: f for name, f in vars(module).items() if not name.startswith("_")}
    functions = {name: f for name, f in public.items() if isinstance(f, FunctionType | partial)}
    return {name for name, f in functions.items() if "learning_rate" in inspect.signature(f).parameters}


def test_every_optimizer_of_optax_is_offered_or_refused():
    names = taking_a_rate(optax) | taking_a_rate(optax.contrib)
    assert {"nadam", "nadamw"} <= names
    assert names <= set(optimizer_functions()) | set(REFUSED)
    assert list(optimizer_functions()) == sorted(optimizer_functions())
    for name in REFUSED:
        with pytest.raises(OptimizerError, match="cannot be swept"):
            load_optimizer(name)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("part", sample(range(6)))
def test_every_optimizer_sweeps(sweep, small_blocks, part):
    small_blocks(lanes=1, rows=4)  # two devices: a state has to be split among them as well
    names = list(optimizer_functions())[part::6]
    run = sweep("quadratic_bowl[dim=3]", names, [1e-3, 1e-1], seeds=1, steps=6)
    initial, best = (np.array(run.trials[column]) for column in ("initial_loss", "best_loss"))
    moved = (best < initial).reshape(len(names), 2).any(axis=1)
    still = [name for name, m in zip(names, moved) if not m]
    assert still == []


def rate_of(spec: str, steps: int) -> list[float]:
    """The learning rates an sgd spec uses: its updates for a gradient of -1."""
    transformation = load_optimizer(spec).build(jnp.float32(0.5), steps)
    state, rates, update = transformation.init(jnp.zeros(())), [], jax.jit(transformation.update)
    for _ in range(steps + 1):
        change, state = update(jnp.asarray(-1.0), state, jnp.zeros(()))
        rates.append(float(change))
    return rates


def test_schedules_rise_to_the_swept_learning_rate_and_fall():
    cosine = rate_of("sgd[schedule=cosine,warmup=4]", 12)
    assert cosine[:5] == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5])
    assert cosine[8] == pytest.approx(0.25)
    assert cosine[12] == pytest.approx(0.0, abs=1e-7)
    assert rate_of("sgd[schedule=linear,end=0.5]", 10)[10] == pytest.approx(0.25)
    assert rate_of("sgd[schedule=exponential,end=0.1]", 10)[10] == pytest.approx(0.05)
    wsd = rate_of("sgd[schedule=wsd,warmup=2,stable=6,cooldown=0.5]", 12)
    assert wsd == pytest.approx([0, 0.25, *[0.5] * 5, 0.5 * 2 / 3, 0.5 / 3, 0, 0, 0, 0], abs=1e-7)
    assert rate_of("sgd[schedule=wsd,cooldown=0.25]", 10)[8:] == pytest.approx([0.5, 0.25, 0], abs=1e-7)
    assert rate_of("sgd[warmup=2]", 4) == pytest.approx([0.0, 0.25, 0.5, 0.5, 0.5])


def test_settings_reach_the_optimizer():
    grads = [jnp.asarray(v) for v in (1.0, -2.0, 0.5)]
    for spec, expected in (
        ("sgd[momentum=0.5,nesterov=true]", optax.sgd(0.1, momentum=0.5, nesterov=True)),
        ("momentum", optax.sgd(0.1, momentum=0.9)),
        ("adam[b1=0.8]", optax.adam(0.1, b1=0.8)),
        ("optax:adamw[weight_decay=0.1]", optax.adamw(0.1, weight_decay=0.1)),
        ("nadam[b1=0.8]", optax.nadam(0.1, b1=0.8)),
    ):
        mine = load_optimizer(spec).build(0.1, 10)
        params = jnp.asarray(1.0)
        state, known = mine.init(params), expected.init(params)
        for grad in grads:
            got, state = mine.update(grad, state, params)
            want, known = expected.update(grad, known, params)
            assert float(got) == float(want)


@pytest.mark.usefixtures("compiled_quickly")
def test_a_users_optimizer_from_a_file(sweep, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import optax\ndef make(learning_rate, scale=1.0):\n    return optax.sgd(learning_rate * scale)\n")
    run = sweep("quadratic_bowl", [f"{file}:make[scale=2.0]"], [0.1], seeds=1, steps=10)
    plain = sweep("quadratic_bowl", ["sgd"], [0.2], seeds=1, steps=10)
    assert run.trials["final_loss"].to_pylist() == plain.trials["final_loss"].to_pylist()


def test_a_users_optimizer_gets_the_rate_by_name_wherever_it_stands(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import optax\ndef make(scale=1.0, learning_rate=1e-3):\n    return optax.sgd(learning_rate * scale)\n"
    )
    mine = load_optimizer(f"{file}:make[scale=3.0]").build(0.5, 1)
    update, _ = mine.update(jnp.ones(()), mine.init(jnp.ones(())))
    assert float(update) == -1.5


@pytest.mark.parametrize("signature", ["scale=1.0", "scale", "learning_rate, /"])
def test_a_function_that_takes_no_learning_rate_by_name_is_refused(tmp_path, signature):
    file = tmp_path / "mine.py"
    file.write_text(f"import optax\ndef make({signature}):\n    return optax.sgd(0.1)\n")
    with pytest.raises(OptimizerError, match=r"make has no parameter learning_rate, .* def make\(learning_rate"):
        load_optimizer(f"{file}:make")


def own_update(folder, named: str, used: str, kind: str = "GradientTransformationExtraArgs") -> str:
    """The spec of an sgd whose update takes further arguments, written into a file."""
    file = folder / "mine.py"
    file.write_text(
        "import optax\ndef make(learning_rate):\n    inner = optax.sgd(learning_rate)\n"
        f"    def update(grads, state, params=None, {named}):\n        {used}\n"
        "        return inner.update(grads, state, params)\n"
        f"    return optax.{kind}(inner.init, update)\n"
    )
    return f"{file}:make"


def squares(params, data):
    return jnp.sum(params**2)


@pytest.mark.parametrize("kind", ["GradientTransformation", "GradientTransformationExtraArgs"])
@pytest.mark.parametrize(
    ("named", "used"),
    [
        ("*, value", "value + 0"),
        ("*, grad, obj_fn", "grad, obj_fn(params)"),
        ("value_fn=None", "value_fn(params)"),
        ("*, grad_fn", "grad_fn(params, 0) + grads"),
        ("*, grad_fn", "grad_fn(params) + grads"),
        ("*, value, **rest", "value + 0"),
        ("**rest", "rest"),
    ],
)
def test_an_update_is_handed_the_extra_arguments_it_names(tmp_path, named, used, kind):
    optimizer = load_optimizer(own_update(tmp_path, named, used, kind))
    params, grads = jnp.ones(2), jnp.full(2, 2.0)
    extras = extra_arguments(optimizer, 1, squares, params, ())
    transformation = optimizer.build(0.25, 1)
    handed = extras(squares(params, ()), grads, lambda p: squares(p, ()))
    updates, _ = transformation.update(grads, transformation.init(params), params, **handed)
    assert updates.tolist() == [-0.5, -0.5]


def test_an_update_that_needs_something_else_is_refused(tmp_path):
    optimizer = load_optimizer(own_update(tmp_path, "*, hessian", "hessian"))
    with pytest.raises(OptimizerError, match=r"cannot be swept: .*'hessian'; an update may ask for value, grad, val"):
        extra_arguments(optimizer, 1, squares, jnp.ones(2), ())


def test_sam_is_handed_the_gradient_elsewhere():
    def make(learning_rate):
        return optax.contrib.sam(optax.sgd(learning_rate), optax.sgd(0.5), opaque_mode=True)

    optimizer = own_optimizer("mine", make)
    extras = extra_arguments(optimizer, 1, squares, jnp.ones(2), ())
    params, transformation = jnp.ones(2), optimizer.build(0.25, 1)
    handed = extras(squares(params, ()), 2 * params, lambda p: squares(p, ()))
    updates, _ = transformation.update(2 * params, transformation.init(params), params, **handed)
    # Half of the gradient against the descent and back: from (1, 1) to (2, 2), whose gradient is (4, 4).
    assert updates.tolist() == [-1.0, -1.0]


def per_example(rate):
    return optax.chain(optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0), optax.sgd(rate))


@pytest.mark.parametrize(
    ("transformation", "words"),
    [
        (lambda rate: optax.lookahead(optax.sgd(rate), 5, 0.5), "keeps the slow ones in its state"),
        (per_example, "axis; it needs a gradient for every example"),
    ],
)
def test_a_part_of_optax_that_no_sweep_can_run_says_what_would_do(transformation, words):
    optimizer = own_optimizer("mine", transformation)
    with pytest.raises(OptimizerError, match=words):
        extra_arguments(optimizer, 1, lambda params, data: params["a"][0] + params["b"], PAIR, ())


PAIR = {"a": jnp.ones(2), "b": jnp.ones(())}


def test_updates_that_would_be_broadcast_are_refused():
    """As those of per-example gradients, where all params have as many rows as one has examples."""
    with pytest.raises(OptimizerError, match="its updates do not have the shapes of the parameters"):
        extra_arguments(own_optimizer("mine", per_example), 1, squares, jnp.ones(2), ())


def test_a_state_and_updates_may_be_numbers_of_python(sweep):
    def make(learning_rate):
        def update(grads, state, params=None):
            rate = jnp.where(state["first"], 0.5 * learning_rate, learning_rate)
            return {"a": -rate * grads["a"], "b": 0.0}, {"first": False}

        return optax.GradientTransformation(lambda params: {"first": True}, update)

    problem = Problem(lambda key: PAIR, lambda params, data: squares(params["a"], ()) + params["b"])
    run = sweep(problem, make, [0.25], seeds=1, steps=2)
    # The first step leaves 3/4 of each entry, the second half of that.
    assert run.trials["final_loss"].to_pylist() == [2 * (3 / 8) ** 2 + 1]


def test_an_own_optimizer_that_leaves_out_the_rate_is_warned_of(sweep):
    problem = Problem(lambda key: jnp.ones(2), lambda params, data: squares(params, ()))
    with pytest.warns(GradbenchWarning, match="^mine: its updates do not depend on the learning rate, so all rates"):
        sweep(problem, {"mine": lambda learning_rate: optax.adam(1e-2)}, [0.1, 0.2], seeds=1, steps=1)
    kept = optax.inject_hyperparams(optax.adam)  # keeps it in its state; a warning is an error here
    sweep(problem, {"mine": lambda learning_rate: kept(learning_rate=learning_rate)}, [0.1, 0.2], seeds=1, steps=1)


KEPT = {}


def momentum_in_a_global(learning_rate):
    def init(params):
        KEPT["mean"] = jnp.zeros_like(params)
        return ()

    def update(grads, state, params=None):
        KEPT["mean"] = 0.9 * KEPT["mean"] + grads
        return -learning_rate * KEPT["mean"], state

    return optax.GradientTransformation(init, update)


def test_what_is_kept_outside_of_the_state_is_refused():
    with pytest.raises(OptimizerError, match="its update reads arrays of an earlier call; keep them in its state"):
        extra_arguments(own_optimizer("mine", momentum_in_a_global), 1, squares, jnp.ones(2), ())


def test_a_loss_that_reads_what_it_kept_is_refused(sweep):
    kept = [0.0]

    def loss(params, data):
        kept[0] = 0.9 * kept[0] + jnp.sum(params)
        return jnp.sum((params - kept[0]) ** 2)

    with pytest.raises(
        ProblemError, match="mine: the loss reads arrays of an earlier call; compute them anew, or return them"
    ):
        sweep(Problem(lambda key: jnp.ones(2), loss, name="mine"), "sgd", [0.1])


def test_a_derivative_rule_that_reads_what_it_kept_is_the_losss_fault(sweep):
    kept = []

    @jax.custom_vjp
    def loss(params, data):
        return jnp.sum(params**2)

    def forward(params, data):
        kept.append(params)
        return loss(params, data), None

    loss.defvjp(forward, lambda _, cotangent: (2 * kept[0] * cotangent, None))
    with pytest.raises(ProblemError, match="mine: the loss reads arrays of an earlier call"):
        sweep(Problem(lambda key: jnp.ones(2), loss, name="mine"), "sgd", [0.1])


def test_a_loss_that_another_dtype_breaks_is_the_losss_fault_and_the_types_are_named(sweep):
    start = jnp.zeros(2)  # float32, whatever the dtype of the run

    def loss(params, data):
        return jnp.sum(jax.lax.scan(lambda x, _: (x + params**2, None), start, None, length=3)[0])

    problem = Problem(lambda key: jnp.ones(2), loss, name="mine")
    sweep(problem, "sgd", [0.1], steps=2)
    with pytest.raises(ProblemError, match=r"mine: the loss has no gradient in float64: .*float32\[2\].*float64\[2\]"):
        sweep(problem, "sgd", [0.1], steps=2, dtype="float64")


def test_a_function_that_takes_a_scheduled_rate_for_a_number_is_told_what_it_is(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import optax\ndef make(learning_rate):\n    return optax.sgd(float(learning_rate))\n")
    optimizer = load_optimizer(f"{file}:make[schedule=cosine]")
    with pytest.raises(OptimizerError, match="with a schedule the learning rate is a function of the step"):
        extra_arguments(optimizer, 1, squares, jnp.ones(2), ())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("./mine.py", "name its function too, such as ./mine.py:make"),
        ("adm", "did you mean 'adam'"),
        ("adam[b3=1]", "did you mean 'b"),
        ("adam[b1=true]", "should be a number"),
        ("adam[b1=2]", "b1=2 should be at least 0 and below 1"),
        ("adamw[b2=1]", "b2=1 should be"),
        ("rmsprop[decay=-0.1]", "decay=-0.1 should be"),
        ("sgd[momentum=-1]", "momentum=-1 should be between -1 and 1"),
        ("adam[eps=-1e-8]", "eps=-1e-08 should be finite and at least 0"),
        ("adam[schedule=cosin]", "did you mean 'cosine'"),
        ("adam[warmup=-1]", "number of steps"),
        ("adam[learning_rate=1]", "no setting 'learning_rate'"),
        ("./none.py:make", "no such file"),
        ("optax:nothing", "no function 'nothing'"),
        ("optax:scale", "no parameter learning_rate"),
        ("builtins:dict", "no parameter learning_rate"),
        ("no.such.module:make", "cannot import"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec, words):
    with pytest.raises(OptimizerError, match=words) as caught:
        load_optimizer(spec)
    assert "\n" not in str(caught.value)


def test_what_is_no_spec_is_refused():
    with pytest.raises(OptimizerError, match='function is no spec; give one, such as "adam'):
        load_optimizer(optax.adam)


def test_the_ends_of_the_ranges_and_a_users_own_names_are_taken(tmp_path):
    (tmp_path / "mine.py").write_text("import optax\ndef make(learning_rate, b1): return optax.sgd(learning_rate)\n")
    for spec in ("adam[b1=0,eps=0]", "sgd[momentum=none]", "sgd[momentum=-0.5]", f"{tmp_path / 'mine.py'}:make[b1=2]"):
        load_optimizer(spec)


@pytest.mark.parametrize("body", ["return 3", "raise ValueError('lost')", "return optax.sgd('fast')"])
def test_a_users_optimizer_that_does_not_work_is_refused_before_anything_is_written(sweep, tmp_path, body):
    file = tmp_path / "mine.py"
    file.write_text(f"import optax\ndef make(learning_rate):\n    {body}\n")
    with pytest.raises(OptimizerError):
        sweep("quadratic_bowl", [f"{file}:make"], [0.1])
    assert not (tmp_path / "results").exists()
    assert jax.default_backend()


@pytest.mark.parametrize(
    ("first", "after", "words"),
    [
        ("[]", "state + [1]", r"its update returned the state PyTreeDef\(\[\*\]\), and its init PyTreeDef\(\[\]\)"),
        ("{'n': jnp.zeros(2)}", "{'n': jnp.zeros(3)}", r"state\['n'\] is float32 of shape \(2,\) from its init, and"),
        ("0", "0.9 * state + 0.1", r"state is int32 of shape \(\) from its init, and float32 of shape \(\) from its"),
        ("0.0", "state + 1j", r"state is float32 of shape \(\) from its init, and complex64 of shape \(\) from its"),
    ],
    ids=["grows", "another shape", "cut to whole numbers", "cut to real numbers"],
)
def test_a_state_that_no_loop_can_carry_is_refused_before_anything_is_written(sweep, tmp_path, first, after, words):
    file = tmp_path / "mine.py"
    file.write_text(f"""
import jax.numpy as jnp
import optax
def make(learning_rate):
    def update(grads, state, params=None):
        return -learning_rate * grads, {after}
    return optax.GradientTransformation(lambda params: {first}, update)
""")
    with pytest.raises(OptimizerError, match=words):
        sweep("quadratic_bowl", [f"{file}:make"], [0.1])
    assert not (tmp_path / "results").exists()
