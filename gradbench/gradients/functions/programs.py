"""What is computed of a function: its values, VJP, JVP and Hessian-vector products; and how: eager, jit, vmap,
remat."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.gradients.functions.cases import complex_of, is_complex_array, is_float_array, parts
from gradbench.gradients.second.products import OVER, PRODUCTS, inner
from gradbench.program.xla.jaxprs import (
    CALLS,
    bind,
    called,
    equations,
    evaluate,
    has_rule,
    open_jaxpr,
    place_of_rule,
    with_bodies,
)

# (floats, rest) -> flat arrays.
Flat = Callable[[list[Any], Any], list[Any]]
FIRST = ("vjp", "jvp")
CHECKS = ("value", *FIRST, *OVER)
EXTREMA = frozenset(["reduce_max", "reduce_min"])  # subtracted before exp, so that their derivative cancels


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a function's arguments are made of float arrays, other arrays, and values that are passed as they are."""

    tree: Any
    leaves: tuple[Any, ...]  # None in the place of an array
    kinds: tuple[str, ...]  # of the arrays: float, complex (two float arrays) or other
    names: tuple[str, ...]  # of the float arrays
    outputs: tuple[str, ...] = ()  # names of the flat outputs, where they are known

    @classmethod
    def of(cls, arguments: tuple[Any, ...], argument_names: tuple[str, ...]) -> Layout:
        paths = jax.tree_util.tree_leaves_with_path(arguments)
        arrays = [(path, leaf) for path, leaf in paths if is_array(leaf)]
        kinds = tuple(
            "complex" if is_complex_array(leaf) else "float" if is_float_array(leaf) else "other" for _, leaf in arrays
        )
        names = []
        for (path, _), kind in zip(arrays, kinds):
            name = argument_names[path[0].idx] + jax.tree_util.keystr(path[1:])
            names += {"float": [name], "complex": [f"{name}.real", f"{name}.imag"], "other": []}[kind]
        leaves = tuple(None if is_array(leaf) else leaf for _, leaf in paths)
        return cls(jax.tree.structure(arguments), leaves, kinds, tuple(names))

    def with_outputs(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Layout:
        """The same with the names of the outputs of `function`, if JAX can trace it."""
        try:
            with jax.enable_x64(True):
                found = jax.tree.leaves(jax.eval_shape(lambda f, o: function(*self.join(f, o)), *self.split(arguments)))
        except Exception:
            return self
        names = ["value"] if len(found) == 1 else [f"value[{i}]" for i in range(len(found))]
        each = [[f"{n}.real", f"{n}.imag"] if is_complex(x) else [n] for n, x in zip(names, found)]
        return dataclasses.replace(self, outputs=tuple(itertools.chain(*each)))

    def split(self, arguments: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        """(float arrays, other arrays)."""
        arrays = [leaf for leaf in jax.tree.leaves(arguments) if is_array(leaf)]
        floats: list[Any] = []
        for array, kind in zip(arrays, self.kinds):
            floats += {"float": lambda a: [a], "complex": parts, "other": lambda a: []}[kind](array)
        return floats, [a for a, kind in zip(arrays, self.kinds) if kind == "other"]

    def join(self, floats: list[Any], others: list[Any]) -> tuple[Any, ...]:
        one, other = iter(floats), iter(others)
        made = {
            "float": lambda: next(one),
            "complex": lambda: complex_of(next(one), next(one)),
            "other": lambda: next(other),
        }
        arrays = iter([made[kind]() for kind in self.kinds])
        return jax.tree.unflatten(self.tree, [next(arrays) if leaf is None else leaf for leaf in self.leaves])

    def flat(self, function: Callable[..., Any]) -> Flat:
        """`function` as one of (float arrays, other arrays) -> its outputs' leaves; a complex leaf gives both parts."""

        def run(floats: list[Any], others: list[Any]) -> list[Any]:
            leaves = jax.tree.leaves(function(*self.join(floats, others)))
            return [part for x in leaves for part in ((x.real, x.imag) if is_complex(x) else (x,))]

        return run


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def is_complex(x: Any) -> bool:
    """Whether it is a complex array, or the shape of one; PyTorch's have dtypes that NumPy does not know."""
    return "complex" in str(getattr(x, "dtype", ""))


def value(flat: Flat) -> Flat:
    return flat


def vjp(flat: Flat) -> Flat:
    """(floats, (others, cotangents)) -> the float outputs, as the rule reports them, and the cotangents of `floats`."""

    def run(floats: list[Any], rest: Any) -> list[Any]:
        others, cotangents = rest
        outputs, pull = jax.vjp(lambda x: _float_outputs(flat, x, others), floats)
        (back,) = pull([c.astype(o.dtype) for c, o in zip(cotangents, outputs, strict=True)])
        return [*outputs, *back]

    return run


def jvp(flat: Flat) -> Flat:
    """(floats, (others, tangents)) -> the float outputs and their tangents."""

    def run(floats: list[Any], rest: Any) -> list[Any]:
        others, tangents = rest
        outputs, along = jax.jvp(lambda x: _float_outputs(flat, x, others), (floats,), (tangents,))
        return [*outputs, *along]

    return run


def _float_outputs(flat: Flat, floats: list[Any], others: list[Any]) -> list[Any]:
    return [x for x in flat(floats, others) if is_float(x)]


def weighted(flat: Flat) -> Callable[[list[Any], Any], Any]:
    """(floats, (others, cotangents)) -> the sum of the cotangents times the float outputs."""
    return lambda floats, rest: inner(rest[1], _float_outputs(flat, floats, rest[0]))


def product(name: str) -> Callable[[Flat], Flat]:
    """(floats, (others, (cotangents, tangents))) -> the Hessian of `weighted` times the tangents."""

    def build(flat: Flat) -> Flat:
        def run(floats: list[Any], rest: Any) -> list[Any]:
            others, (cotangents, tangents) = rest
            return PRODUCTS[name](weighted(flat))(floats, ((others, cotangents), tangents))[1]

        return run

    return build


BUILD: dict[str, Callable[[Flat], Flat]] = {"value": value, "vjp": vjp, "jvp": jvp}
BUILD |= {name: product(name) for name in OVER}


def differentiate(flat: Flat, mode: str, trace: Any, floats: list[Any], others: list[Any]) -> None:
    """Trace a derivative of `flat`, whose jaxpr is `trace`. Raises what tracing raises; TypeError without one."""
    if mode == "jvp" and any(e.primitive.name.startswith("custom_vjp_call") for e in equations(trace)):
        raise TypeError("a custom_vjp has no forward derivative")  # JAX would say so only where it compiles it
    outputs = [o for o in jax.eval_shape(flat, floats, others) if is_float(o)]
    jax.eval_shape(BUILD[mode](flat), floats, (others, rest(mode, outputs, floats)))


def rest(mode: str, cotangents: Any, tangents: Any) -> Any:
    """What a derivative takes in addition to the arguments."""
    return {"vjp": cotangents, "jvp": tangents}.get(mode, (cotangents, tangents))


def whole(flat: Flat, modes: tuple[str, ...]) -> Flat:
    """(floats, (others, cotangents, tangents)) -> all outputs, then for each mode the cotangents of `floats`, the
    tangents of the float outputs, or a Hessian-vector product: all that is expected of every program, in one trace."""

    def run(floats: list[Any], given: Any) -> list[Any]:
        others, cotangents, tangents = given
        outputs = flat(floats, others)
        count = sum(map(is_float, outputs))
        found = list(outputs)
        for mode in modes:
            own = BUILD[mode](flat)(floats, (others, rest(mode, cotangents, tangents)))
            found += own[count:] if mode in FIRST else own
        return found

    return run


def part_of(flat: Flat, number: int) -> Flat:
    """The VJP by one float argument alone: the others are not differentiated."""

    def run(floats: list[Any], rest: Any) -> list[Any]:
        def of_one(own: list[Any], others: Any) -> list[Any]:
            return flat([*floats[:number], *own, *floats[number + 1 :]], others)

        return vjp(of_one)([floats[number]], rest)

    return run


def remat(flat: Flat) -> Flat:
    """`flat`, whose values are recomputed for its derivative."""
    return lambda floats, others: jax.checkpoint(flat)(floats, others)


def without_rules(flat: Flat, stops: bool = True, extrema: bool = True, users: bool = False) -> Flat:
    """`flat` with every custom_vjp and custom_jvp taken out, at any depth, or with `users` only those of libraries:
    what JAX differentiates then is what the function computes. A linear solve stays: its inside may stop gradients.

    Without `stops` every stop_gradient is taken out too; without `extrema` the results of EXTREMA have no derivative.
    """

    def strip(jaxpr: Any, consts: list[Any], arguments: list[Any]) -> list[Any]:
        return evaluate(jaxpr, consts, arguments, step)

    def step(equation: Any, ins: list[Any]) -> list[Any]:
        call, name = called(equation, ins), equation.primitive.name
        if call and name in CALLS:
            if users and has_rule(equation) and place_of_rule(equation):
                return list(bind(equation, ins, equation.params))
            return strip(*call)
        if name == "stop_gradient" and not stops:
            return ins
        params = with_bodies(equation, lambda closed, given: strip(*open_jaxpr(closed), given))
        results = list(bind(equation, ins, params))
        return results if extrema or name not in EXTREMA else [*map(jax.lax.stop_gradient, results)]

    def stripped(floats: list[Any], others: Any) -> list[Any]:
        return strip(*open_jaxpr(jax.make_jaxpr(flat)(floats, others)), jax.tree.leaves((floats, others)))

    return stripped


def natives(flat: Flat, trace: Any) -> list[Flat]:
    """Other functions with the values of `flat`, whose jaxpr is `trace`, which may have its derivatives too: without
    the rules of libraries and its stop_gradients, and where nothing is differentiated through EXTREMA. The user's own
    rules stay: they are often there since the function itself is differentiated badly."""
    found = list(equations(trace))
    names = {equation.primitive.name for equation in found}
    ruled = "stop_gradient" in names or any(has_rule(e) and not place_of_rule(e) for e in found)
    others = [without_rules(flat, stops=False, users=True)] if ruled else []
    return [*others, without_rules(flat, extrema=False, users=True)] if names & EXTREMA else others


def through_extrema(flat: Flat, strip: bool) -> Flat:
    """`flat` with no derivative but the one that passes through results of EXTREMA. With `strip` its rules and
    stop_gradients are taken out; without, a stop_gradient stays, and extrema inside a rule have no derivative. Loops
    and branches are not looked into.

    Where the maximum is only a shift or a scale that cancels, this derivative is 0, and all that a right program adds
    by differentiating through it is its rounding.
    """

    def walk(jaxpr: Any, consts: list[Any], pairs: list[Any], through: frozenset[str]) -> list[Any]:
        step = functools.partial(both, through=through)
        return evaluate(jaxpr, [(c, c) for c in consts], pairs, step, lambda value, aval: (value, value))

    def both(equation: Any, pairs: list[Any], through: frozenset[str]) -> list[Any]:
        """Each value twice: with the derivative through extrema alone, and with all of it."""
        call, name = called(equation, pairs), equation.primitive.name
        if call and name in CALLS:
            return walk(*call, through if strip or not has_rule(equation) else frozenset())
        if name == "stop_gradient" and strip:
            return pairs
        alone, whole = (list(bind(equation, [pair[i] for pair in pairs], equation.params)) for i in (0, 1))
        return list(zip(whole if name in through else alone, whole))

    def run(floats: list[Any], others: Any) -> list[Any]:
        pairs = [(jax.lax.stop_gradient(x), x) for x in jax.tree.leaves((floats, others))]
        jaxpr, consts = open_jaxpr(jax.make_jaxpr(flat)(floats, others))
        return [alone for alone, _ in walk(jaxpr, consts, pairs, EXTREMA)]

    return run


def extremal(flat: Flat, trace: Any, strip: bool = False) -> list[Flat]:
    """`through_extrema` of a function whose jaxpr is `trace`; none where it has no extrema, or `strip` would strip no
    user's rule, so that `natives` has room for it."""
    found = list(equations(trace))
    if EXTREMA.isdisjoint(e.primitive.name for e in found):
        return []
    wanted = not strip or any(has_rule(e) and place_of_rule(e) for e in found)
    return [through_extrema(flat, strip)] if wanted else []
