"""One form for every problem's loss, whatever it takes and returns: with a key, state and auxiliary scalars or without.

Training takes a fresh key for each update and gives the state anew. Evaluation is of a loss without randomness where
there is one: called with the key None where the loss takes that, which is the usual word for "no dropout", else with
one fixed key.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import ProblemError
from gradbench.inputs.losses.data import cast

Params = Any
Data = Any
ModelState = Any
LOSS = "loss"  # the loss's own name among the metrics
SPLITS = ("train", "holdout")


def fixed_key() -> jax.Array:
    """The key of a loss that is asked for one number."""
    return jax.random.key(0)


def trial_key(seed: jax.Array) -> jax.Array:
    """Out of which the keys of a trial's updates are folded: that of update n is fold_in(trial_key(seed), n)."""
    return jax.random.fold_in(jax.random.key(seed), 2)  # 1 is the minibatch order's


class GradientTrace(NamedTuple):
    """The gradient of a training loss: its closed jaxpr, which returns the gradient's leaves first; the shapes of the
    state after it and of the auxiliary scalars; what type the loss is of where it is no JAX array, else empty."""

    jaxpr: Any
    model_state: ModelState
    aux: dict[str, Any]
    constant: str


@dataclass(frozen=True, eq=False)
class Objective:
    """A problem's loss and metrics, called alike whatever the problem is; `model_state` is () where it has none."""

    init: Callable[[jax.Array], Any]
    loss: Callable[..., Any]
    metrics: Mapping[str, Callable[..., Any]]
    data: Data
    holdout: Data
    stateful: bool

    def __getstate__(self) -> dict[str, Any]:
        """The fields: what was traced is of this process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def random(self) -> bool:
        """Whether the loss takes a key: it has one more parameter without default."""
        try:
            parameters = inspect.signature(self.loss).parameters.values()
        except (TypeError, ValueError):  # Python cannot tell that of some functions
            return False
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
        return needed == 3 + self.stateful

    def parts(self, drawn: Any) -> tuple[Params, ModelState]:
        """Params and state, of what `init` gave."""
        return drawn if self.stateful else (drawn, ())

    def training(
        self, params: Params, model_state: ModelState, data: Data, key: Any = None
    ) -> tuple[jax.Array, tuple[ModelState, dict[str, jax.Array]]]:
        """(loss, (the state after it, auxiliary scalars)). Raises ProblemError where the loss returns anything else."""
        state, keys = (model_state,) if self.stateful else (), (key,) if self.random else ()
        result = self.loss(params, *state, data, *keys)
        results = result if isinstance(result, tuple) else (result,)
        if not 1 + self.stateful <= len(results) <= 2 + self.stateful:
            got = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
            raise ProblemError(f"the loss must return {self._form}, got {got}")
        loss, *rest = results
        model_state = rest.pop(0) if self.stateful else ()
        aux = rest[0] if rest else {}
        if not (isinstance(aux, Mapping) and all(isinstance(name, str) for name in aux)):
            raise ProblemError(f"the loss must return {self._form}, and its last is a {type(aux).__name__}")
        return loss, (model_state, dict(aux))

    @property
    def _form(self) -> str:
        aux = "{name: scalar}"
        return f"(loss, state) or (loss, state, {aux})" if self.stateful else f"a scalar or (loss, {aux})"

    def evaluation(self, params: Params, model_state: ModelState, data: Data) -> dict[str, jax.Array]:
        """name -> scalar: the loss, auxiliary scalars and metrics, of params and state as they are."""
        key = None if self.takes_no_key else fixed_key()
        loss, (_, aux) = self.training(params, model_state, data, key)
        arguments = (params, model_state, data) if self.stateful else (params, data)
        return {LOSS: loss, **aux, **{name: metric(*arguments) for name, metric in self.metrics.items()}}

    @cached_property
    def drawn(self) -> Any:
        """What `init` gives, as shapes; in float32, as all starts are drawn."""
        with jax.enable_x64(False):
            return jax.eval_shape(lambda: self.init(fixed_key()))  # no key is computed: that compiles a program

    def in_float32(self, params: Params, model_state: ModelState, data: Data) -> tuple[Any, Any]:
        """`training` with a fixed key, of state and data as float32."""
        return self.training(params, cast(model_state, jnp.float32), cast(data, jnp.float32), fixed_key())

    @cached_property
    def gradient(self) -> GradientTrace:
        """The gradient of `in_float32` by the params, traced once. Raises what tracing raises."""
        constant: list[str] = []

        def traced(*of: Any) -> Any:
            loss, rest = self.in_float32(*of)
            constant.extend([] if isinstance(loss, jax.Array) else [type(loss).__name__])
            return loss, rest

        trace = jax.make_jaxpr(jax.grad(traced, has_aux=True), return_shape=True)
        with jax.enable_x64(False):
            jaxpr, (_, (after, aux)) = trace(*self.parts(self.drawn), self.data)
        return GradientTrace(jaxpr, after, aux, "".join(constant[:1]))

    @cached_property
    def takes_no_key(self) -> bool:
        """Whether the loss can be called with the key None, found out by tracing it."""
        if not self.random:
            return True
        try:
            self._shapes(self.training, self.data)
        except Exception:
            return False
        return True

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What `evaluation` gives, by name."""
        return tuple(self.shapes_of_evaluation(self.data))

    @cached_property
    def aux(self) -> tuple[str, ...]:
        """The names of the auxiliary scalars."""
        if "gradient" in vars(self):
            return tuple(self.gradient.aux)
        return tuple(self._shapes(lambda *of: self.training(*of, fixed_key())[1][1], self.data))

    def shapes_of_evaluation(self, data: Data) -> dict[str, Any]:
        return self._shapes(self.evaluation, data)

    def _shapes(self, function: Callable[..., Any], data: Data) -> Any:
        """What `function(params, model_state, data)` gives in float32, as shapes."""

        def traced(data: Data) -> Any:
            return function(*self.parts(cast(self.init(fixed_key()), jnp.float32)), cast(data, jnp.float32))

        with jax.enable_x64(False):
            return jax.eval_shape(traced, data)

    @property
    def plain(self) -> bool:
        """Whether the loss is an ordinary one: loss(params, data) -> scalar."""
        return not (self.random or self.stateful or self.aux)

    @property
    def splits(self) -> tuple[str, ...]:
        """What is evaluated at the recorded points beside the curve: nothing of a problem that says nothing of it."""
        if self.holdout is not None:
            return SPLITS
        return SPLITS[:1] if self.metrics or self.aux else ()

    @property
    def recorded(self) -> tuple[tuple[str, str], ...]:
        """(split, name) of each value that a recorded point has."""
        return tuple((split, name) for split in self.splits for name in self.names)

    # A loss of (params, data) alone, for what needs one: with a fixed key, and the starting point's state.

    def fixed_loss(self, params: Params, data: Data) -> jax.Array:
        """The training loss of data as `fixed_data` has them: with their key and state, and no auxiliary scalars."""
        if not (self.random or self.stateful):
            return self.training(params, (), data)[0]
        data, state, key = data
        state = jax.tree.map(lambda leaf: leaf[0], state)
        return self.training(params, state, data, jax.random.wrap_key_data(key[0]) if self.random else None)[0]

    def fixed_params(self, key: jax.Array) -> Params:
        return self.parts(self.init(key))[0]

    def fixed_data(self, data: Data) -> Data:
        """`data` with a key and seed 0's state beside them, where the loss takes them. These have a leading axis of 1,
        so that they are never cut with the examples."""
        if not (self.random or self.stateful):
            return data
        with jax.enable_x64(False):
            state = jax.jit(lambda: self.parts(self.init(fixed_key()))[1])()
            fixed = (state, jax.random.key_data(fixed_key()))
        return (data, *jax.tree.map(lambda leaf: np.asarray(leaf)[None], fixed))
