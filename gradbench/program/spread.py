"""Many trials along one axis: batched on a device, or one after another where that is faster; and over devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from gradbench.inputs.problem import Problem
from gradbench.machine.internals import compiler_options, quick_compile
from gradbench.program.kind import FACTORISATIONS
from gradbench.program.xla.jaxprs import equations

TRIALS = "trials"


def over_trials(function: Callable[..., Any], in_axes: Sequence[int | None], platform: str) -> Callable[..., Any]:
    """jax.vmap(function, in_axes), with axes 0 or None; or one trial after another inside the program: where JAX cannot
    batch `function` (a primitive without a batching rule, a grouped convolution under shard_map), and where it
    factorises matrices on a CPU."""
    together = jax.vmap(function, tuple(in_axes))

    def one_by_one(*args: Any) -> Any:
        def one(own: list[Any]) -> Any:
            rest = iter(own)
            return function(*(shared if axis is None else next(rest) for shared, axis in zip(args, in_axes)))

        return jax.lax.map(one, [arg for arg, axis in zip(args, in_axes, strict=True) if axis is not None])

    def several(*args: Any) -> Any:
        try:
            traced, result = jax.make_jaxpr(together, return_shape=True)(*args)
        except NotImplementedError:
            return one_by_one(*args)
        if platform == "cpu" and any(e.primitive.name in FACTORISATIONS for e in equations(traced)):
            return one_by_one(*args)
        return jax.tree.unflatten(jax.tree.structure(result), jaxpr_as_fun(traced)(*jax.tree.leaves(args)))

    return several


def trials_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """The devices along the axis of the trials."""
    return Mesh(np.array(devices), (TRIALS,), axis_types=(AxisType.Auto,))


KEPT = 4  # problems whose initialisers stay compiled: those of a default run
_initialisers: dict[tuple[Any, ...], jax.stages.Wrapped] = {}


def initialise(problem: Problem, devices: Sequence[jax.Device]) -> jax.stages.Wrapped:
    """A jitted function, seeds (S,) -> starting points with a leading axis S, sharded over the devices; compiled once
    per problem and devices, whatever the optimizers. A seed's point is the same to the bit whatever S is."""
    key = problem.init, *devices
    if key not in _initialisers:
        for oldest in list(_initialisers)[: 1 - KEPT]:  # so that older problems' data can be freed
            _initialisers.pop(oldest, None)
        platform = devices[0].platform
        draw = over_trials(lambda seed: problem.init(jax.random.key(seed)), (0,), platform)

        def starts(seeds: jax.Array) -> Any:
            if len(seeds) > 1:
                return draw(seeds)
            # Two, one of which is dropped: XLA:CPU of jax 0.12 fuses one draw otherwise, which can change its last bit.
            both = jax.lax.optimization_barrier(draw(jnp.repeat(seeds, 2)))
            return jax.tree.map(lambda leaf: leaf[:1], both)

        spread = jax.shard_map(
            starts, mesh=trials_mesh(devices), in_specs=P(TRIALS), out_specs=P(TRIALS), check_vma=False
        )
        # XLA:CPU unrolls random bits into long programs: optimised, an mlp's take two seconds to compile.
        options = compiler_options(platform, xla_backend_optimization_level=1) if platform == "cpu" else {}
        options |= quick_compile(platform)
        _initialisers[key] = jax.jit(spread, compiler_options=options)
    return _initialisers[key]
