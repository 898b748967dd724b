"""Who catches what: this check, jax.test_util.check_grads, torch.autograd.gradcheck and a plain central difference.

    python tests/benchmarks/check_peers.py [--out results/reference/check/peers.json]

The planted faults of gradbench.gradients.faults in float64, float32 and bfloat16, all tools at their defaults, and
right losses, where an objection is a false alarm. An execution fault is a loss that computes itself wrongly: the
others are given that loss, this check the program made of it. torch is asked where it is installed: it gets the same
function and the same gradient through an autograd.Function that calls JAX.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads
from torch_gradcheck import objects

from gradbench import load_problem
from gradbench.gradients import check_gradient, faults
from gradbench.gradients.execution import programs
from gradbench.gradients.execution.execution import Execution
from gradbench.gradients.formula import derivative as formula
from gradbench.gradients.formula import oracle
from gradbench.gradients.rounding.numbers.formats import x64_context
from gradbench.machine.environment import environment

DTYPES = ("float64", "float32", "bfloat16")
FORMULA = faults.formula_faults()
EXECUTION = {name: faults.planted(loss) for name, loss in faults.execution_faults().items()}
BUILT_IN = ("quadratic_bowl", "rosenbrock", "linear_regression", "logistic_regression", "mlp[hidden=16]")
RIGHT = {"network": faults.planted(), "one of 10^6": faults.million()} | {name: load_problem(name) for name in BUILT_IN}
KINDS = {"formula faults caught": FORMULA, "execution faults caught": EXECUTION, "false alarms": RIGHT}


def arguments(problem, dtype):
    point = oracle.points(problem, dtype, 1)[0]
    return jax.device_put((point.params, point.data))


@functools.cache
def formula_objects(name) -> bool:
    problem = FORMULA[name]
    tests, _ = formula.check(problem, oracle.points(problem, "float64", 1)[0], None, 1.0, True)
    return any(t.verdict == "FAIL" for t in tests)


@functools.cache
def network(dtype):
    execution = Execution(faults.planted(), dtype, "highest", jax.devices()[0])
    return execution, execution.reference(oracle.points(execution.problem, dtype, 1)[0])


def ours(name, dtype) -> bool:
    """True if it objects. A formula fault is judged in float64, whatever the dtype."""
    if name in FORMULA:
        return formula_objects(name)
    if name in EXECUTION:
        execution, reference = network(dtype)
        program = programs.PROGRAMS["value_and_grad"].build(EXECUTION[name].loss, None)
        return execution.run(name, program, reference).verdict == "FAIL"
    return check_gradient(RIGHT[name], dtype=dtype, fast=True).verdict == "FAIL"


def jax_check_grads(problem, dtype) -> bool:
    with x64_context(dtype):
        params, data = arguments(problem, dtype)
        try:
            check_grads(lambda p: problem.loss(p, data), (params,), order=1, modes=["rev"])
        except AssertionError:
            return True
    return False


def central_difference(problem, dtype) -> bool:
    """Along one random direction, step 1e-6 in float64 and 1e-3 below, relative tolerance 1e-3."""
    with x64_context(dtype):
        params, data = arguments(problem, dtype)
        generator = np.random.default_rng(0)
        direction = jax.tree.map(lambda x: jnp.asarray(generator.standard_normal(x.shape), x.dtype), params)
        step = jnp.asarray(1e-6 if dtype == "float64" else 1e-3, dtype)

        def at(sign):
            return problem.loss(jax.tree.map(lambda x, v: x + sign * step * v, params, direction), data)

        slope = float(at(1) - at(-1)) / (2 * float(step))
        gradient = jax.grad(problem.loss)(params, data)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
        along = sum(float(np.sum(np.asarray(g, np.float64) * np.asarray(v, np.float64))) for g, v in pairs)
    return not abs(slope - along) <= 1e-3 * max(abs(slope), abs(along))


def torch_gradcheck(problem, dtype) -> bool | None:
    with x64_context(dtype):
        params, data = arguments(problem, dtype)
        leaves, tree = jax.tree.flatten(params)
        if sum(x.size for x in leaves) > 10_000:
            return None  # one column a parameter: hours
        return objects(lambda *flat: (problem.loss(tree.unflatten(flat), data),), leaves, dtype)


PEERS = {
    "jax.test_util.check_grads": jax_check_grads,
    "torch.autograd.gradcheck": torch_gradcheck,
    "central difference": central_difference,
}
TOOLS = ("gradbench check", *PEERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    rows = json.loads(out.read_text())["rows"] if out and out.exists() else []  # goes on where it was stopped
    done = {row["name"] for row in rows}
    for kind, problems in KINDS.items():
        for name, problem in problems.items():
            if name not in done:
                row = {"kind": kind, "name": name} | {tool: {} for tool in TOOLS}
                for dtype in DTYPES:
                    row["gradbench check"][dtype] = ours(name, dtype)
                    for tool, objects in PEERS.items():
                        row[tool][dtype] = objects(problem, dtype)
                rows.append(row)
                print(row, flush=True)
                write(out, rows, [])
    summary = []
    for dtype in DTYPES:
        for kind in KINDS:
            line = {"dtype": dtype, "": kind}
            for tool in TOOLS:
                answers = [r[tool][dtype] for r in rows if r["kind"] == kind and r[tool][dtype] is not None]
                line[tool] = f"{sum(answers)}/{len(answers)}"
            summary.append(line)
    objections = []
    for row in rows:
        line = {"objects in": row["name"]}
        for tool in TOOLS:
            dtypes = ", ".join(dtype for dtype in DTYPES if row[tool][dtype])
            line[tool] = "not run" if row[tool]["float64"] is None else dtypes
        objections.append(line)
    print(markdown(summary), markdown(objections), sep="\n\n")
    write(out, rows, summary)


def write(out: Path | None, rows, summary) -> None:
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        head = {"command": "python tests/benchmarks/check_peers.py", **environment(jax.devices(), "of each check")}
        out.write_text(json.dumps(head | {"summary": summary, "rows": rows}, indent=1) + "\n")


def markdown(rows) -> str:
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *[[str(r[k]) for k in header] for r in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
