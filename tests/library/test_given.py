"""What people have becomes a plan: problems and optimizers as specs, objects and functions; anything else is a line."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradbench
from gradbench.errors import GradbenchError, OptimizerError, PlanError, ProblemError, RecordError
from gradbench.inputs.specs.spec import load_file
from gradbench.library.given import optax_spec, take_optimizers, take_problems

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def bowl(width=2):
    return gradbench.Problem(init=lambda key: jnp.ones(width), loss=lambda p, _: p @ p, minimum=0.0)


def make(learning_rate, scale=2.0):
    return optax.sgd(learning_rate * scale)


def test_problems_are_specs_objects_and_functions():
    named = dataclasses.replace(bowl(), name="mine")
    names, objects = take_problems(["mlp", named, bowl, partial(bowl, width=3)])
    assert names == ("mlp", "mine", "bowl", "bowl[width=3]")
    assert list(objects) == ["mine", "bowl", "bowl[width=3]"]
    assert take_problems(bowl)[0] == ("bowl",)
    assert take_problems("mlp") == (("mlp",), {})


def test_a_function_called_problem_is_called_as_its_file(tmp_path):
    made = "gradbench.Problem(init=lambda key: jnp.ones(n), loss=lambda p, _: p @ p)"
    text = f"import gradbench\nimport jax.numpy as jnp\n\ndef problem(n=2):\n    return {made}\n"
    (tmp_path / "own_bowl.py").write_text(text)
    function = load_file(tmp_path / "own_bowl.py", ProblemError).problem
    assert take_problems([function, partial(function, n=3)])[0] == ("own_bowl", "own_bowl[n=3]")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "got a value of type int; give a spec"),
        (["mlp", None], "got a value of type NoneType; give a spec"),
        (lambda: 3, r"lambda\(\) returned a value of type int, not a gradbench.Problem"),
        (lambda width: bowl(width), "missing a required argument: 'width'; set what it needs with functools.partial"),
        (lambda p, d: p @ p, r"argument: 'p'; .*, or make a problem of a loss: gradbench.Problem\(init, loss\)"),
        (lambda: 1 / 0, r"lambda\(\) raised ZeroDivisionError: division by zero"),
        (gradbench.Problem, "got the class Problem; give a spec"),
        ([bowl(), bowl(3)], r"two are called 'problem'; write Problem\(..., name=\"mine\"\)"),
    ],
)
def test_no_problem_is_one_line(given, words):
    with pytest.raises(ProblemError, match=words) as caught:
        take_problems(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "spec"),
    [
        (optax.adam, "adam"),
        (optax.nadam, "nadam"),  # itself a partial of adam
        (optax.contrib.prodigy, "prodigy"),
        (partial(optax.sgd, momentum=0.9, nesterov=True), "sgd[momentum=0.9,nesterov=true]"),
        (partial(partial(optax.adam, b1=0.8), b2=1e-3), "adam[b1=0.8,b2=0.001]"),
        (partial(optax.sgd, momentum=None), "sgd[momentum=none]"),
        (partial(optax.adamw, mask=lambda params: params), None),  # no spec says a function
        (make, None),
    ],
)
def test_a_function_of_optax_is_its_spec(function, spec):
    assert optax_spec(function) == spec
    if spec is not None:
        assert take_optimizers(function) == ((spec,), {})
        assert gradbench.load_optimizer(spec).spec == spec


def test_optimizers_are_specs_functions_and_named_functions():
    masked = partial(optax.adamw, weight_decay=0.1, mask=lambda params: params)
    given = ["adam[b1=0.8]", optax.lion, make, partial(make, scale=3.0), {"mine": lambda rate: optax.sgd(rate)}, masked]
    names, functions = take_optimizers(given)
    assert names[:5] == ("adam[b1=0.8]", "lion", "make", "make[scale=3.0]", "mine")
    assert names[5] == "optax.adamw[weight_decay=0.1,mask=…]"
    assert list(functions) == list(names[2:])
    for name, factor in (("make", 2.0), ("make[scale=3.0]", 3.0), ("mine", 1.0)):
        transformation = functions[name].build(0.5, 10)
        updates, _ = transformation.update(jnp.ones(1), transformation.init(jnp.ones(1)), jnp.ones(1))
        assert float(updates[0]) == -0.5 * factor


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (optax.adam(0.1), "got an optax.GradientTransformation, whose learning rate is set already; give a spec"),
        ([optax.adam(0.1)], "got an optax.GradientTransformation"),
        ([None], "got a value of type NoneType"),
        ({"mine": "adam"}, "got a value of type str"),
        ({1: make}, "got a value of type function"),
        (lambda rate: optax.sgd(rate), r'a lambda has no name; write \{"mine": lambda'),
        ({"adam": make}, "'adam': this is optax's adam; give your own function another name"),
        ({"sgd[momentum=0.9]": make}, "this is optax's sgd"),
        ({"mine": partial(make, 0.1)}, "its learning rate is set, which a sweep does"),
        (partial(optax.adam, learning_rate=0.1), "its learning rate is set, which a sweep does"),
        (dict, "a class; give a function of the learning rate"),
        ({"mine": lambda rate, beta: optax.sgd(rate)}, "has no parameter learning_rate, which a sweep sets"),
        ({"mine": lambda: optax.sgd(0.1)}, "has no parameter learning_rate, which a sweep sets"),
    ],
)
def test_no_optimizer_is_one_line(given, words):
    with pytest.raises(OptimizerError, match=words) as caught:
        take_optimizers(given)
    assert "\n" not in str(caught.value)


def test_a_python_test_of_the_traced_rate_gets_a_hint(sweep):
    def warm(learning_rate):
        return optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, 2, 10))

    with pytest.raises(
        OptimizerError, match=r"learning rate, make one of peak 1 and pass lambda step: learning_rate \*"
    ):
        sweep(bowl, warm, [0.1], seeds=1, steps=2)


def test_the_hint_works(sweep):
    def warm(learning_rate):
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, 4)
        return optax.sgd(lambda step: learning_rate * schedule(step))

    run = sweep(bowl, warm, [0.1], seeds=1, steps=4)
    shares = [0.0, 0.5, 1.0, 0.5]  # a line up, half a cosine down
    expected = 2 * np.prod([1 - 2 * 0.1 * share for share in shares]) ** 2
    np.testing.assert_allclose(run.trials["final_loss"].to_pylist(), [expected], rtol=1e-5)


def test_a_swept_function_is_that_function_and_no_other_process_can_resume_it(sweep):
    run = sweep(bowl, {"mine": make}, [0.1], seeds=1, steps=1)
    np.testing.assert_allclose(run.trials["final_loss"].to_pylist(), [2 * (1 - 2 * 0.2) ** 2], rtol=1e-5)
    assert run.info["sources"]["optimizers"] == {"mine": {"file": None, "sha256": None, "given": "function"}}
    info = gradbench.load_run(run.path).info
    info["state"] = "interrupted"
    gradbench.record.store.write_json(info, run.path / "run.json")
    with pytest.raises(RecordError, match="bowl was given as an object, which only its own process had"):
        gradbench.resume(run.path)


def test_the_sharpness_along_the_path_of_a_function(sweep):
    run = sweep(bowl, make, [0.1], seeds=1, steps=4, sharpness=True)
    np.testing.assert_allclose(run.sharpness["sharpness"].to_pylist(), 2.0, rtol=1e-5)


def test_a_run_with_a_function_among_built_in_problems_cannot_be_resumed_either(sweep):
    run = sweep("quadratic_bowl[dim=1]", make, [0.1], seeds=1, steps=1)
    gradbench.record.store.write_json(run.info | {"state": "interrupted"}, run.path / "run.json")
    with pytest.raises(RecordError, match="make was given as an object, which only its own process had"):
        gradbench.resume(run.path)


@pytest.mark.parametrize(
    "rates",
    [
        [0.1, 0.2, 0.4],
        np.array([0.1, 0.2, 0.4]),
        np.array([0.1, 0.2, 0.4], np.float32),
        jnp.array([0.1, 0.2, 0.4]),
        [np.float32(0.1), jnp.float32(0.2), 0.4],
        (rate / 10 for rate in (1, 2, 4)),
        {0.1: "a", 0.2: "b", 0.4: "c"}.keys(),
    ],
    ids=["list", "float64", "float32", "jax", "scalars", "generator", "keys"],
)
def test_learning_rates_are_any_values(rates):
    np.testing.assert_allclose(gradbench.SweepPlan(learning_rates=rates).rates, [0.1, 0.2, 0.4], rtol=1e-7)


def test_learning_rates_may_be_named_as_the_command_line_names_them(sweep):
    run = gradbench.sweep(bowl(), "sgd", lr=[0.5], seeds=1, steps=1, timing="none")
    assert run.trials["learning_rate"].to_pylist() == [0.5]


def test_one_learning_rate_and_whole_ones():
    for one in (0.5, np.float32(0.5), np.array(0.5), jnp.float32(0.5)):
        assert gradbench.SweepPlan(learning_rates=one).rates == [0.5]
    assert gradbench.SweepPlan(learning_rates=range(1, 4)).rates == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        (np.ones((2, 2)), r"\[1.0, 1.0\] is not a number above 0"),
        ([0.1, "0.2"], "'0.2' is not a number above 0"),
        ([0.1, None], "None is not a number above 0"),
        (object(), "need low:high:count or numbers, got object"),
        (True, "True is not a number above 0"),
        (np.array([]), "none given"),
    ],
)
def test_no_learning_rates_are_one_line(rates, words):
    with pytest.raises(GradbenchError, match=words):
        gradbench.SweepPlan(learning_rates=rates)


def test_epochs_are_steps_of_a_problem_given_as_an_object_too(sweep):
    def counted():
        return gradbench.Problem(
            lambda key: jnp.zeros(3), lambda w, data: jnp.mean(data @ w), jnp.ones((50, 3)), examples=50
        )

    given = {"learning_rates": [0.1], "batch_size": 20, "timing": "none"}
    assert sweep(counted, "sgd", epochs=3, **given).plan.steps == 3 * (50 // 20)
    for epochs, words in ((0, "at least 1, got 0"), (1.5, "got 1.5")):
        with pytest.raises(PlanError, match=words):
            sweep(counted, "sgd", epochs=epochs, **given)
    with pytest.raises(PlanError, match="give one of epochs and steps"):
        sweep(counted, "sgd", epochs=1, steps=2, **given)
