"""Which axes of an optimizer one program serves, and which need one program per value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gradbench.errors import OptimizerError, PlanError
from gradbench.inputs.optimizer import Optimizer, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, load_problem, shapes
from gradbench.inputs.specs.axis import axes_of, concrete, expanded, without_axes
from gradbench.inputs.updates import untraceable
from gradbench.machine.devices import each_core_a_device
from gradbench.program.trial import numerics


def separated(
    plan: SweepPlan, objects: Mapping[str, Problem], functions: Mapping[str, Optimizer]
) -> tuple[SweepPlan, dict[str, Optimizer]]:
    """(the plan, with one optimizer for each value of an axis that cannot be traced because it changes the program; the
    optimizers by their names in it, `functions` included). What can be traced is found by tracing. Raises PlanError and
    OptimizerError."""
    named = {}
    for spec in plan.optimizers:
        own = functions.get(spec) or functions.get(without_axes(spec))
        if own is not None:
            named[spec] = own if own.spec == spec else own.called(spec)
    if not any(axes_of(spec, OptimizerError) for spec in plan.optimizers):
        return plan, named
    each_core_a_device()
    problem = load_problem(objects.get(plan.problems[0], plan.problems[0])).plain
    params, data = shapes(problem, plan.dtype)
    specs: dict[str, Optimizer | None] = {}
    with numerics(plan.dtype, plan.precision):
        for spec in plan.optimizers:
            optimizer, axes = named.get(spec) or load_optimizer(spec), plan.axes_of(spec)
            first = {axis.name: axis.values[0] for axis in axes}
            apart = untraceable(optimizer, first, plan.steps, problem.loss, params, data)
            if not isinstance(plan.design, str):
                if apart:
                    raise PlanError(f"design: {apart[0]} of {spec!r} changes the program, so a list cannot vary it")
                for setting in ({axis.name: value} for axis in axes for value in axis.values):
                    one = concrete(spec, setting, OptimizerError)  # raises for a value that is out of range
                    optimizer.called(one) if spec in named else load_optimizer(one)
            for one in expanded(spec, OptimizerError, lambda axis, apart=apart: axis.name in apart):
                specs[one] = optimizer if spec in named else None
    plan = dataclasses.replace(plan, optimizers=tuple(specs))
    return plan, {spec: own.called(spec) if own.spec != spec else own for spec, own in specs.items() if own}
