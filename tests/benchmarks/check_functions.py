"""Who catches what in functions: this check, allclose at torch.testing's tolerances, jax.test_util.check_grads, and
torch.autograd's gradcheck and gradgradcheck.

    python tests/benchmarks/check_functions.py [--dtype float32 ...] [--family softmax ...] [--right]
        [--seeds 124] [--out results/reference/check/functions.json]

The functions of function_faults.py in four dtypes. The others get what a test of a kernel mostly has: one random input,
every size 64, or 5 for torch's, which call the function for each entry of it; they see it as an autograd.Function.
allclose compares values and gradients with the reference's in the same dtype. A miss of this
check is explained where at every case the fault moves each output by less than could be seen. With --out it goes on
where it was stopped. Right functions are called with --seeds more random inputs at random sizes. Exits 1 on a false
alarm or on a miss that is not explained.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

import jax
import numpy as np
import torch_gradcheck
from function_faults import FAMILIES, Family
from jax.test_util import check_grads

from gradbench.gradients.functions import programs
from gradbench.gradients.functions.cases import from_letters
from gradbench.gradients.functions.check import Check
from gradbench.gradients.functions.programs import Layout
from gradbench.gradients.functions.session import Session
from gradbench.gradients.rounding.numbers.formats import x64_context
from gradbench.machine.environment import environment

DTYPES = ("float32", "bfloat16", "float16", "float64")
# rtol, atol of torch.testing.assert_close (its documentation's table).
TOLERANCES = {"float64": (1e-7, 1e-7), "float32": (1.3e-6, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float16": (1e-3, 1e-5)}
SIZE, SMALL = 64, 5
TORCH = {"gradcheck": 1, "gradgradcheck": 2}  # the order of the derivative
FIRST = 3  # seeds are the check's own before
SHAPES = 8  # of the random sizes, 1 to SIZE, of the right functions
COMMAND = "python tests/benchmarks/check_functions.py"


def inputs(family: Family, dtype: str, size: int = SIZE):
    source, _ = from_letters(family.args, dtype)
    case = source.case(dict.fromkeys(source.letters, size), "random", 0)
    return case, Layout.of(case.arguments, ("a", "b", "c", "d"))


def gradients(function, layout, arguments, dtype):
    """Flat values and cotangents of the float arguments, jitted; the values alone where it has no derivative."""
    flat = layout.flat(function)
    floats, others = layout.split(arguments)
    try:
        shapes = jax.eval_shape(flat, floats, others)
        generator = np.random.default_rng(1)
        cotangents = [generator.standard_normal(s.shape).astype(s.dtype) for s in shapes]
        return jax.jit(programs.vjp(flat))(floats, (others, cotangents))
    except (jax.errors.TracerArrayConversionError, ValueError):
        return flat(floats, others)


def allclose_objects(family: Family, function, dtype: str) -> bool | None:
    """None where this device does not run it: XLA:CPU has no product of 16 bits that adds up in 32."""
    case, layout = inputs(family, dtype)
    rtol, atol = TOLERANCES[dtype]
    with x64_context(dtype), jax.default_matmul_precision("highest"):
        wanted = gradients(family.reference, layout, case.arguments, dtype)
        try:
            got = jax.block_until_ready(gradients(function, layout, jax.tree.map(np.array, case.arguments), dtype))
        except jax.errors.JaxRuntimeError:
            return None
    pairs = [(np.asarray(g, np.float64), np.asarray(w, np.float64)) for g, w in zip(got, wanted)]
    return not all(np.allclose(g, w, rtol=rtol, atol=atol, equal_nan=True) for g, w in pairs)


def check_grads_objects(family: Family, function, dtype: str) -> bool | None:
    """None where it cannot be asked: the function has no derivative, or the device does not run it."""
    case, layout = inputs(family, dtype)
    floats, others = layout.split(case.arguments)
    with x64_context(dtype), jax.default_matmul_precision("highest"):
        flat, own = layout.flat(function), [jax.numpy.asarray(x) for x in floats]

        def of_arrays(*x):  # check_grads hands over NumPy's
            return flat([jax.numpy.asarray(each) for each in x], others)

        try:
            check_grads(of_arrays, tuple(own), order=1, modes=["rev"])
        except AssertionError:
            return True
        except (jax.errors.TracerArrayConversionError, jax.errors.JaxRuntimeError, ValueError):
            return None
    return False


def torch_objects(family: Family, function, dtype: str, order: int) -> bool | None:
    case, layout = inputs(family, dtype, SMALL)
    floats, others = layout.split(case.arguments)
    with x64_context(dtype), jax.default_matmul_precision("highest"):
        flat = layout.flat(function)
        return torch_gradcheck.objects(lambda *x: tuple(flat(list(x), others)), floats, dtype, order)


def sessions(family: Family, functions: list, dtype: str):
    """A session for each function, and the source of their cases."""
    source, _ = from_letters(family.args, dtype)
    layout = Layout.of(source.case(source.base(), "random", 0).arguments, ("a", "b", "c", "d"))
    flat, device = layout.flat, jax.devices()[0]
    made = [
        Session(flat(f), flat(family.reference), source, layout, dtype, "highest", device, ("mine", "plain"))
        for f in functions
    ]
    return made, source


def over_seeds(family: Family, function, dtype: str, seeds: range) -> dict:
    """A right function at SHAPES random sizes, its base sizes first, with one more random input for each seed."""
    (session,), source = sessions(family, [function], dtype)
    generator = np.random.default_rng(7)
    shapes = [source.base()]
    while len(shapes) < SHAPES:
        sizes = {letter: int(2 ** generator.uniform(0, np.log2(SIZE))) for letter in source.letters}
        shapes += [sizes] if source.allows(sizes) else []
    for seed in seeds:
        case = source.case(shapes[seed % SHAPES], "random", FIRST + seed)
        expected = session.reference.at(case, session.layout, session.device)
        session.judge("value", session.how, expected)
        session.derivatives(expected)
    found = session.findings
    return {
        "seeds": seeds.stop,
        "shapes": [list(sizes.values()) for sizes in shapes],
        "judged": len(found),
        "accused": sum(f.verdict == "FAIL" for f in found),
        "undecided": sum(f.verdict == "INCONCLUSIVE" for f in found),
        "largest_error_that_passed": max((f.off for f in found if f.verdict == "PASS"), default=0.0),
    }


def added(before: dict, more: dict) -> dict:
    """Counts of more seeds on top of those that were counted before."""
    counts = ("judged", "accused", "undecided")
    largest = max(before.get("largest_error_that_passed", 0.0), more["largest_error_that_passed"])
    return more | {key: before.get(key, 0) + more[key] for key in counts} | {"largest_error_that_passed": largest}


def seen(family: Family, function, dtype: str) -> tuple[float, float]:
    """Over all cases, (the largest relative change that the fault makes in an output, in units of what a right
    function's row at that case resolves; that change)."""
    (mine, plain), source = sessions(family, [function, family.reference], dtype)
    worst = (0.0, 0.0)
    for case in source.cases():
        try:
            expected = plain.reference.at(case, plain.layout, plain.device)
        except Exception:
            continue
        for check in [c for c in mine.checks if c in expected.parts and not case.edge]:
            got, right = (s.judge(check, s.how, expected) for s in (mine, plain))
            if got is None or right is None:
                continue
            resolves = plain.findings[-1].resolves
            for g, r, e in zip(got, right, expected.parts[check].expected):
                size = float(np.linalg.norm(e))
                change = float(np.linalg.norm(g.astype(np.float64) - r.astype(np.float64)))
                if change and size:
                    ratio = change / size / resolves if resolves else np.inf
                    worst = max(worst, (ratio, change / size))
    return worst


def judged(family: Family, name: str, function, dtype: str, is_right: bool) -> dict:
    started = time.process_time()
    report = Check(function, (), family.reference, family.args, (name, family.name), "-").run(
        dtype, "highest", None, False, None
    )
    smallest, found = report.smallest, [f for r in report.rows for f in r.findings]
    row = {
        "family": family.name,
        "name": name,
        "right": is_right,
        "dtype": dtype,
        "verdict": report.verdict,
        "found": "" if smallest is None else f"{smallest[0].check}, {smallest[0].program}: {smallest[1].case}",
        "would_have_caught": {
            check: min((r.resolves for r in report.rows if r.check == check), default=None) for check in programs.CHECKS
        },
        "judged": len(found),
        "accused": sum(f.verdict == "FAIL" for f in found),
        "undecided": sum(f.verdict == "INCONCLUSIVE" for f in found),
        "largest_error_that_passed": max((f.off for f in found if f.verdict == "PASS"), default=0.0),
        "cpu_seconds": round(time.process_time() - started, 2),
        "allclose": allclose_objects(family, function, dtype),
        "check_grads": check_grads_objects(family, function, dtype),
    }
    if not is_right and report.verdict != "FAIL":
        ratio, change = seen(family, function, dtype)
        row |= {"change": change, "change_over_resolved": ratio, "explained": ratio <= 1}
    return row


def summary(rows: list[dict]) -> list[dict]:
    lines = []
    for dtype in DTYPES:
        faults = [r for r in rows if r["dtype"] == dtype and not r["right"]]
        right = [r for r in rows if r["dtype"] == dtype and r["right"]]
        if not faults:
            continue
        missed = [r for r in faults if r["verdict"] != "FAIL"]
        lines.append(
            {
                "dtype": dtype,
                "faults found": f"{len(faults) - len(missed)}/{len(faults)}",
                "misses explained": f"{sum(r['explained'] for r in missed)}/{len(missed)}",
                "allclose finds": objections(faults, "allclose"),
                **{f"{tool} finds": objections(faults, tool) for tool in ("check_grads", *TORCH)},
                "right answers accused": f"{total(right, 'accused')}/{total(right, 'judged')}",
                "right functions accused": f"{sum(r['verdict'] == 'FAIL' for r in right)}/{len(right)}",
                "by allclose": objections(right, "allclose"),
                **{f"by {tool}": objections(right, tool) for tool in ("check_grads", *TORCH)},
            }
        )
    return lines


def objections(rows: list[dict], tool: str) -> str:
    """Of how many rows the tool objects; a dash where it was not asked, as torch's where there is no torch."""
    return f"{sum(bool(row.get(tool)) for row in rows)}/{len(rows)}" if any(tool in row for row in rows) else "-"


def total(rows: list[dict], key: str) -> int:
    return sum(row[key] + row.get("over_seeds", {}).get(key, 0) for row in rows)


def markdown(lines: list[dict]) -> str:
    table = [list(lines[0]), ["---"] * len(lines[0]), *[list(map(str, line.values())) for line in lines]]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--family", action="append", choices=[family.name for family in FAMILIES])
    parser.add_argument("--right", action="store_true", help="no faults: what --out does not hold of right functions")
    parser.add_argument("--seeds", type=int, default=124)
    parser.add_argument("--out", type=Path)
    choice = parser.parse_args()
    rows = json.loads(choice.out.read_text())["rows"] if choice.out and choice.out.exists() else []
    done = {(row["family"], row["name"], row["dtype"]) for row in rows}
    for dtype in choice.dtype or DTYPES:
        for family in FAMILIES:
            if choice.family and family.name not in choice.family:
                continue
            for kind in (family.right,) if choice.right else (family.right, family.faults):
                for name, function in kind.items():
                    if (family.name, name, dtype) in done:
                        continue
                    rows.append(judged(family, name, function, dtype, kind is family.right))
                    print({k: v for k, v in rows[-1].items() if k != "would_have_caught"}, flush=True)
                    write(choice.out, rows)
    functions = {
        (family.name, name): (family, function)
        for family in FAMILIES
        for kind in (family.right, family.faults)
        for name, function in kind.items()
    }
    for row in rows if importlib.util.find_spec("torch") else ():
        for tool in [tool for tool in TORCH if tool not in row and row["dtype"] in (choice.dtype or DTYPES)]:
            row[tool] = torch_objects(*functions[row["family"], row["name"]], row["dtype"], TORCH[tool])
            write(choice.out, rows)
    for row in rows:
        before = row.get("over_seeds", {"seeds": 0})
        if row["right"] and before["seeds"] < choice.seeds and row["dtype"] in (choice.dtype or DTYPES):
            if choice.family and row["family"] not in choice.family:
                continue
            seeds = range(before["seeds"], choice.seeds)
            row["over_seeds"] = added(before, over_seeds(*functions[row["family"], row["name"]], row["dtype"], seeds))
            print(row["family"], row["name"], row["dtype"], row["over_seeds"], flush=True)
            write(choice.out, rows)
    print(markdown(summary(rows)))
    accused = total([row for row in rows if row["right"]], "accused")
    return int(bool(accused) or not all(row.get("explained", True) for row in rows))


def write(out: Path | None, rows: list[dict]) -> None:
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        head = {"command": COMMAND, **environment(jax.devices(), "of each check")}
        plain = [{k: str(v) if v in (np.inf, -np.inf) else v for k, v in row.items()} for row in rows]
        out.write_text(json.dumps(head | {"summary": summary(rows), "rows": plain}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
