"""What a problem has to keep: its contract, checked before anything is computed, with one line for each fault."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import GradbenchError, ProblemError, error_text, nearest
from gradbench.inputs.losses.data import check_data, check_holdout
from gradbench.inputs.losses.objective import LOSS

if TYPE_CHECKING:
    from gradbench.inputs.problem import Problem

_Fault = Callable[[str], ProblemError]


def validate(problem: Problem) -> Problem:
    """The problem itself if it keeps the contract, else ProblemError. Nothing is computed, only shapes."""

    def fault(text: str) -> ProblemError:
        return ProblemError(f"{problem.name}: {text}")

    check_data(problem.data, fault)
    _check_metrics(problem, fault)
    vars(problem.objective)["drawn"] = _checked_start(problem, fault)  # so that it is not traced again
    _check_loss(problem, fault)
    _check_facts(problem, fault)
    _check_evaluation(problem, fault)
    return problem


# JAX's gradient at a complex number is the conjugate of the direction of ascent, and most optimizers step against it.
_COMPLEX = (
    'make it of its real and imaginary part; gradbench check FILE.py:f --args "z: c64[n]" and '
    "gradbench.assert_gradient(f, z) take complex arguments"
)
# What holds parameters in other libraries, by where its class comes from, and what to give instead.
_FRAMEWORKS = {
    "flax.linen": 'init should return model.init(key, x)["params"]',
    "flax.nnx": "init should return the params of graphdef, params, rest = nnx.split(model, nnx.Param, ...)",
    "equinox": "init should return the params of params, static = eqx.partition(model, eqx.is_inexact_array)",
    "haiku": "init should return hk.without_apply_rng(hk.transform(forward)).init(key, x)",
}


def _framework(value: Any) -> str | None:
    """The library of _FRAMEWORKS that an object's class, or one it derives from, belongs to."""
    places = [f"{kind.__module__}." for kind in type(value).__mro__]
    return next((name for name in _FRAMEWORKS if any(p.startswith(f"{name}.") for p in places)), None)


def framework_hint(*values: Any) -> str:
    """How the params of a module of another library are had, where one of `values` is or holds one; else empty."""
    for leaf in jax.tree.leaves(values, is_leaf=lambda x: _framework(x) is not None):
        if name := _framework(leaf):
            return f"; for {name}, {_FRAMEWORKS[name]} (docs/recipes.md)"
    return ""


def _checked_start(problem: Problem, fault: _Fault) -> Any:
    """What `init` gives, as shapes."""

    def start() -> Any:
        drawn = problem.init(jax.random.key(0))
        if problem.stateful and not (isinstance(drawn, tuple) and len(drawn) == 2):
            raise fault("init(key) must return (params, state), since stateful=True; it returned no such pair")
        params, state = problem.objective.parts(drawn)
        if not jax.tree.leaves(params):
            raise fault("init(key) returned no parameters")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            where, wrong = "params" + jax.tree_util.keystr(path), ""
            if not _is_array(leaf):
                wrong = f"is of type {type(leaf).__name__}; parameters must be arrays of floats"
                if dataclasses.is_dataclass(leaf):
                    wrong += ", or a dataclass of them that jax.tree_util.register_dataclass has registered"
            elif np.size(leaf) == 0:
                wrong = f"is empty, of shape {np.shape(leaf)}"
            elif jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
                wrong = f"is {jnp.result_type(leaf)}; parameters must be floats: {_COMPLEX}"
            elif not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                wrong = f"is {jnp.result_type(leaf)}; parameters must be floats"
            if wrong:
                raise fault(f"{where} {wrong}{framework_hint(params)}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if not _is_array(leaf) or jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                where = "state" + jax.tree_util.keystr(path)
                raise fault(f"{where} is of type {type(leaf).__name__}; state must be arrays of numbers")
        return drawn

    try:
        with jax.enable_x64(False):
            return jax.eval_shape(start)
    except GradbenchError:
        raise
    except Exception as error:
        raise fault(f"init(key) raised {error_text(error)}{framework_hint(problem.init)}") from error


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int | complex)


def _check_loss(problem: Problem, fault: _Fault) -> None:
    of = problem.objective
    try:
        found = of.gradient
    except Exception as error:  # JAX says what would do: scan, or a fori_loop of known length, for a while_loop
        _check_value(problem, fault)
        raise fault(f"the loss has no gradient: {error_text(error)}") from error
    if found.constant:
        raise fault(f"the loss must be a JAX array that depends on params, got a {found.constant}")
    _check_results(problem, found.model_state, found.aux, fault)
    if any(str(effect).startswith("Ordered") for effect in found.jaxpr.effects):
        raise fault(
            "the loss has a callback with ordered=True, and trials that run side by side have no order; "
            "leave ordered out of its jax.debug.print, jax.debug.callback or io_callback"
        )


def _check_value(problem: Problem, fault: _Fault) -> None:
    """What is wrong with the loss of a problem without a gradient, beside that."""
    of = problem.objective
    try:
        with jax.enable_x64(False):
            loss, (after, aux) = jax.eval_shape(of.in_float32, *of.parts(of.drawn), problem.data)
    except ProblemError as error:
        raise fault(str(error)) from error
    except Exception as error:
        raise fault(_misfit(problem) or f"the loss raised {error_text(error)}") from error
    if not hasattr(loss, "shape") or loss.shape != ():
        got = f"shape {loss.shape}" if hasattr(loss, "shape") else f"a {type(loss).__name__}"
        raise fault(f"the loss must be a scalar, got {got}")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise fault(f"the loss must be a float, got {loss.dtype}")
    _check_results(problem, after, aux, fault)


def _check_results(problem: Problem, after: Any, aux: Mapping[str, Any], fault: _Fault) -> None:
    """Of a loss that is a scalar, what it returns beside it."""
    _check_state(problem.objective.parts(problem.objective.drawn)[1], after, fault)
    _check_scalars("the auxiliary", aux, fault)


def _misfit(problem: Problem) -> str:
    """What is wrong with a loss that cannot be called as losses are; the empty string where it can."""
    names = ["params", *(["state"] if problem.stateful else []), "data", *(["key"] if problem.objective.random else [])]
    try:
        signature = inspect.signature(problem.loss)
    except (TypeError, ValueError):  # Python cannot tell that of some built-in ones
        return ""
    try:
        signature.bind(*names)
    except TypeError:
        taken = ", ".join(signature.parameters)
        return f"the loss takes ({taken}); write loss({', '.join(names)}), where data is () if the problem has none"
    return ""


def _check_state(before: Any, after: Any, fault: _Fault) -> None:
    """The loss has to return state like the one it was given: a loop carries it."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise fault(f"the loss returned the state {jax.tree.structure(after)}, and init {jax.tree.structure(before)}")
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)):
        floats = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (old, new))
        if old.shape != new.shape or not (floats or old.dtype == new.dtype):
            was, found = (f"{leaf.dtype} of shape {leaf.shape}" for leaf in (old, new))
            raise fault(f"state{jax.tree_util.keystr(path)} is {was} from init, but the loss returned {found}")


def _check_scalars(what: str, found: Mapping[str, Any], fault: _Fault) -> None:
    for name, value in found.items():
        if getattr(value, "shape", None) != ():
            got = f"shape {value.shape}" if hasattr(value, "shape") else f"a {type(value).__name__}"
            raise fault(f"{what} {name!r} must be a scalar, got {got}")


def _check_facts(problem: Problem, fault: _Fault) -> None:
    for fact in ("minimum", "target"):
        value = getattr(problem, fact)
        if value is not None and not _finite(value):
            raise fault(f"{fact} is {value!r}; give a finite number or None")
    if problem.curvature is not None:
        bounds = problem.curvature
        right = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(map(_finite, bounds))
        if not (right and bounds[0] <= bounds[1] and bounds[1] > 0):
            raise fault(f"curvature is {bounds!r}; give (mu, L) with mu at most L and L above 0, or None")
    if problem.gradient is not None and not callable(problem.gradient):
        raise fault(f"gradient is a {type(problem.gradient).__name__}; give a function gradient(params, data) or None")
    if problem.examples is not None:
        rows = {np.shape(leaf)[0] for leaf in jax.tree.leaves(problem.data) if np.ndim(leaf) > 0}
        if not isinstance(problem.examples, int) or problem.examples < 1 or problem.examples not in rows:
            raise fault(f"examples={problem.examples!r}, but no array of data has that many rows")
    if problem.holdout is not None:
        check_holdout(problem.holdout, problem.data, fault)


def _check_metrics(problem: Problem, fault: _Fault) -> None:
    """The metrics' form, before anything of the problem is traced."""
    metrics, maximise = problem.metrics, problem.maximise
    if not isinstance(metrics, Mapping):
        raise fault(f'metrics is a {type(metrics).__name__}; give functions by name, {{"accuracy": accuracy}}')
    for name, function in metrics.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise fault(f"metrics has the name {name!r}; give letters, digits and underscores")
        if not callable(function):
            raise fault(f"metrics[{name!r}] is a {type(function).__name__}; give a function f(params, data)")
    if not isinstance(maximise, tuple | list) or not all(isinstance(name, str) for name in maximise):
        raise fault(f'maximise is {maximise!r}; give names of metrics, ("accuracy",)')
    if type(problem.stateful) is not bool:
        raise fault(f"stateful is {problem.stateful!r}; give True or False")


def _check_evaluation(problem: Problem, fault: _Fault) -> None:
    """What is evaluated, on the data and held-out data, where anything is."""
    of = problem.objective
    taken = set(of.aux) & {LOSS, *problem.metrics}
    if taken:
        raise fault(f"the auxiliary {min(taken)!r} has the name of the loss or of a metric; give it another")
    for split, data in zip(of.splits, (problem.data, problem.holdout)):
        try:
            found = of.shapes_of_evaluation(data)
        except Exception as error:
            raise fault(f"evaluated on {split}, the loss or a metric raised {error_text(error)}") from error
        _check_scalars("the metric", found, fault)
    known = [name for name in (*of.aux, *problem.metrics) if name != LOSS]
    for name in problem.maximise:
        if name not in known:
            raise fault(f"maximise has {name!r}{nearest(name, known)} (its metrics: {', '.join(known) or 'none'})")


def _finite(value: Any) -> bool:
    """Whether a fact is one finite number, of Python, numpy or JAX."""
    try:
        return np.ndim(value) == 0 and math.isfinite(value)
    except (TypeError, ValueError):
        return False
