"""A problem: a loss to minimise, with what is known about it. Built-in and users' files go through one loader."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jax
import threadpoolctl

from gradbench.errors import GradbenchError, GradbenchWarning, ProblemError, error_text, nearest
from gradbench.inputs.built_in import problem_names, problems_folder
from gradbench.inputs.contract import framework_hint, validate
from gradbench.inputs.losses.data import as_arrays, cast
from gradbench.inputs.losses.objective import Objective
from gradbench.inputs.specs.spec import FILE_MODULE, check_settings, is_path, load_file, parse_spec
from gradbench.paths import user_path

LOG = logging.getLogger(__name__)
Params = Any
Data = Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss and the facts known about it.

    Attributes:
        init: `init(key) -> params`, a starting point: any pytree of float arrays. `key` is a jax.random key. Of a
            stateful problem `init(key) -> (params, state)`.
        loss: `loss(params, data) -> scalar`, the mean over examples where there are examples. A third parameter
            without default, `loss(params, data, key)`, gets a fresh key for each trial and step (dropout, noise). It
            may return `(scalar, aux)`, aux a dict of scalars that are recorded as metrics are. Of a stateful problem
            `loss(params, state, data[, key]) -> (scalar, state)`, or `(scalar, state, aux)`. Where a loss takes a key,
            it is evaluated with the key None if it allows that (no dropout), else with one fixed key.
        data: a pytree of arrays, passed in and never closed over, so that it is cast to the run's dtype and
            placed on the device. Floats are kept in float64 here. A frame is kept as a dict of its columns, a list of
            numbers or a tensor of torch as an array; what cannot be an array raises ProblemError.
        examples: the number of rows when the data can be cut into minibatches: every leaf of `data` whose first
            dimension equals it is cut, the others are passed whole. None where there are no examples.
        minimum: the lowest loss, exact or from a float64 solve; None if unknown.
        target: the loss that counts as solved where `minimum` is unknown.
        curvature: (mu, L), bounds on the Hessian's eigenvalues, where known.
        gradient: `gradient(params, data) -> params`, the analytic gradient where one is written down.
        holdout: a pytree like `data`, of which only the number of rows may differ, that is never trained on: the loss
            and the metrics are evaluated on it at the recorded points.
        metrics: name -> `f(params, data) -> scalar` (`f(params, state, data)` of a stateful problem), evaluated at the
            recorded points on `data` and `holdout`. One named "loss" stands for the loss there, where a model computes
            otherwise in training than in use.
        maximise: the names of the metrics of which more is better.
        stateful: the problem has state that is not parameters, such as running statistics: any pytree of arrays that
            the loss returns anew at each update and no optimizer touches.
        name: the spec it was loaded from.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[..., Any]
    data: Data = ()
    examples: int | None = None
    minimum: float | None = None
    target: float | None = None
    curvature: tuple[float, float] | None = None
    gradient: Callable[[Params, Data], Params] | None = None
    holdout: Data | None = None
    metrics: Mapping[str, Callable[..., jax.Array]] = dataclasses.field(default_factory=dict)
    maximise: tuple[str, ...] = ()
    stateful: bool = False
    name: str = "problem"

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", as_arrays(self.data))
        object.__setattr__(self, "holdout", as_arrays(self.holdout))
        if self.metrics is None:  # like a holdout that a setting leaves out
            object.__setattr__(self, "metrics", {})

    @cached_property
    def objective(self) -> Objective:
        """The loss and the metrics in the form that all problems share."""
        return Objective(self.init, self.loss, self.metrics, self.data, self.holdout, self.stateful)

    def named(self, name: str, target: float | None = None) -> Problem:
        """The same problem under this name, and with this target where it is given; traced no more often."""
        stated = self.target if target is None else target
        renamed = dataclasses.replace(self, name=name, target=stated)
        vars(renamed)["objective"] = self.objective
        return renamed

    @property
    def plain(self) -> Problem:
        """The problem as an ordinary deterministic loss(params, data) -> scalar, for what needs one: itself if it is
        one. A key is fixed and the state is that of seed 0's start, both part of `data`; auxiliary scalars are dropped.
        """
        return self if self.objective.plain else self._fixed

    @cached_property
    def _fixed(self) -> Problem:
        of = self.objective
        made = {"init": of.fixed_params, "loss": of.fixed_loss, "data": of.fixed_data(self.data)}
        gradient = None if of.random or self.stateful else self.gradient
        return dataclasses.replace(self, **made, gradient=gradient, holdout=None, metrics={}, stateful=False)


def problem_path(target: str) -> Path:
    """Where the file of a built-in name, or of a path to a user's file, should be."""
    return user_path(target) if is_path(target) else problems_folder() / f"{target}.py"


def problem_function(target: str) -> Callable[..., Problem]:
    """The `problem(...)` function of a built-in name or of a path to a user's file."""
    path = problem_path(target)
    if not (is_path(target) or os.path.isfile(path)):
        known = problem_names()
        raise ProblemError(
            f"no problem {target!r}{nearest(target, known)} (built in: {', '.join(known)}; or a path ./mine.py)"
        )
    function = getattr(load_file(path, ProblemError), "problem", None)
    if not callable(function):
        raise ProblemError(f"{path}: has no function problem(...) that returns a gradbench.Problem")
    return function


@lru_cache(maxsize=1)
def _blas(imported: int) -> threadpoolctl.ThreadpoolController:
    """The libraries that NumPy and others multiply with. Finding them takes milliseconds; only imports load more."""
    return threadpoolctl.ThreadpoolController()


def _imported() -> int:
    """How many modules are imported, problem files aside."""
    return sum(not name.startswith(FILE_MODULE) for name in tuple(sys.modules))


def load_problem(spec: str | Problem) -> Problem:
    """Load `name`, `name[key=value]` or `./file.py[key=value]`, checked against the contract.

    A Problem is passed through after the same check. Raises ProblemError with one line that says what is wrong.
    """
    if isinstance(spec, Problem):
        return validate(spec)
    if not isinstance(spec, str):
        text = f"{type(spec).__name__} is no problem; give a name, a path or a gradbench.Problem"
        raise ProblemError(text + framework_hint(spec))
    parsed = parse_spec(spec, ProblemError)
    LOG.info("loading %s", parsed.text)
    function = problem_function(parsed.target)
    check_settings(parsed, function, ProblemError)
    try:
        inspect.signature(function).bind(**parsed.settings)
        # One thread of NumPy's: what several add up depends on how many there are, and a minimum is in the record.
        with _blas(_imported()).limit(limits=1, user_api="blas"):
            problem = function(**parsed.settings)
    except GradbenchError as error:
        raise type(error)(f"{parsed.text}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ProblemError(f"{parsed.text}: problem() raised {error_text(error)}") from error
    if not isinstance(problem, Problem):
        raise ProblemError(f"{parsed.text}: problem() returned {type(problem).__name__}, not a gradbench.Problem")
    return validate(problem.named(parsed.text))


def shapes(problem: Problem, dtype: str) -> tuple[Params, Data]:
    """What `init` gives and what is read in a run in `dtype`, as shapes: nothing is drawn or placed."""
    with jax.enable_x64(dtype == "float64"):
        return jax.eval_shape(lambda *of: cast(of, dtype), problem.objective.drawn, problem.data)


def check_batch(problem: Problem, size: int) -> None:
    """ProblemError unless the loss can be traced on `size` of the problem's examples."""
    problem, total = problem.plain, problem.examples

    def cut(leaf: Any) -> Any:
        whole = leaf.ndim == 0 or leaf.shape[0] != total
        return leaf if whole else jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

    params, data = shapes(problem, "float32")
    try:
        jax.eval_shape(problem.loss, params, jax.tree.map(cut, data))
    except Exception as error:
        where = f"on a minibatch of {size} of its {total} examples"
        raise ProblemError(f"{problem.name}: {where} the loss raised {error_text(error)}") from error


def idle_leaves(problem: Problem) -> list[str]:
    """The leaves of params, by their paths, whose gradient is 0 at every point: the loss does not use them, or only
    through operations without a derivative. Read off the traced gradient, so a gradient that happens to be 0 at some
    point, as of a dead relu or an embedding's unused row, is none."""
    params, _ = problem.objective.parts(problem.objective.drawn)
    jaxpr = problem.objective.gradient.jaxpr.jaxpr
    zeros = {  # jax.grad broadcasts a literal 0 for what nothing reaches
        equation.outvars[0]
        for equation in jaxpr.eqns
        if equation.primitive.name == "broadcast_in_dim" and getattr(equation.invars[0], "val", None) == 0
    }
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [
        f"params{path}"
        for path, out in zip(paths, jaxpr.outvars)
        if (out.val == 0 if hasattr(out, "val") else out in zeros)
    ]


def warn_of_idle_leaves(problem: Problem) -> None:
    """One GradbenchWarning that names `idle_leaves`, where there are any."""
    if idle := idle_leaves(problem):
        warnings.warn(f"{problem.name}: {idle_text(idle)}", GradbenchWarning, stacklevel=2)


def idle_text(idle: list[str]) -> str:
    """What is said of leaves that no gradient reaches."""
    named = ", ".join(idle[:4]) + (f" and {len(idle) - 4} more" if len(idle) > 4 else "")
    return f"no gradient reaches {named}: always 0, so not trained; is it state? (docs/recipes.md)"
