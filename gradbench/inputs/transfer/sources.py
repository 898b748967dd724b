"""Which problems and optimizers a run had: digests of their files and data, so that no other is taken for them."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.errors import OptimizerError, ProblemError
from gradbench.inputs.specs.spec import is_path, parse_spec
from gradbench.paths import user_path

if TYPE_CHECKING:  # the readers of records do not wait for JAX
    from gradbench.inputs.plan import SweepPlan
    from gradbench.inputs.problem import Problem

NOWHERE = {"file": None, "sha256": None}
FUNCTION = NOWHERE | {"given": "function"}


def sources(
    plan: SweepPlan, problems: Mapping[str, Problem], objects: Container[str], functions: Container[str] = ()
) -> dict[str, dict[str, Any]]:
    """What run.json keeps of a plan's problems and optimizers, by name; all are loaded already.

    Each has `file` and its `sha256`. They are null for a Problem given as an object (those in `objects`), for an
    optimizer given as a function (those in `functions`, with `given`) and for one of optax by its name, which optax's
    version tells. A problem has `data_sha256` as well.
    """
    return with_data(file_sources(plan, objects, functions), data_digests(plan, problems))


def file_sources(plan: SweepPlan, objects: Container[str], functions: Container[str] = ()) -> dict[str, dict[str, Any]]:
    """The same as far as it can be told without loading anything: without the data."""
    return {
        "problems": {name: NOWHERE if name in objects else _problem_source(name) for name in plan.problems},
        "optimizers": {name: FUNCTION if name in functions else _optimizer_source(name) for name in plan.optimizers},
    }


def data_digests(plan: SweepPlan, problems: Mapping[str, Problem]) -> dict[str, str]:
    """The fingerprints of what a run reads of its problems, by name."""
    return {name: fingerprint(_data(problems[name]), plan.dtype) for name in plan.problems}


def with_data(found: dict[str, dict[str, Any]], digests: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """`file_sources` with the digests of the data: `sources`."""
    problems = {name: source | {"data_sha256": digests[name]} for name, source in found["problems"].items()}
    return found | {"problems": problems}


def well_formed(value: Any) -> bool:
    """Whether `value`, from a run.json, is what `sources` makes; older records have none."""
    kinds = value.values() if isinstance(value, dict) else ()
    entries = [entry for kind in kinds if isinstance(kind, dict) for entry in kind.values()]
    whole = isinstance(value, dict) and value.keys() == {"problems", "optimizers"}
    return value is None or (
        whole
        and all(isinstance(kind, dict) for kind in kinds)
        and all(isinstance(entry, dict) and entry.keys() >= NOWHERE.keys() for entry in entries)
        and all(isinstance(text, str | None) for entry in entries for text in entry.values())
    )


def difference(began: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What of a run's sources is another one now, in words; None where all are the same."""
    for kind in ("problems", "optimizers"):
        for name, source in began[kind].items():
            here = now[kind].get(name, NOWHERE)
            if source["sha256"] != here["sha256"]:
                return f"{source['file'] or name} has changed since"
            if source.get("data_sha256") != here.get("data_sha256"):
                return f"the data of {name} have changed since"
    return None


def given_as_object(info: Mapping[str, Any]) -> list[str]:
    """The problems and optimizers of a run that only its own process had."""
    problems = (info.get("sources") or {"problems": {}})["problems"]
    return [name for name, source in problems.items() if source["sha256"] is None] + given_as_function(info)


def given_as_function(info: Mapping[str, Any]) -> list[str]:
    """The optimizers of a run that were given as functions."""
    return [name for name, source in (info.get("sources") or {}).get("optimizers", {}).items() if "given" in source]


def recorded_file(info: Mapping[str, Any], name: str) -> str | None:
    """Why the file of a run's problem is not the recorded one, in words; None where it is the same, or where an old
    record has no digest.

    `info` is the run's run.json.
    """
    source = (info.get("sources") or {"problems": {}})["problems"].get(name)
    if source is None:
        return None
    if source["sha256"] is None:
        return f"{name} was given as an object, which only its own process had"
    try:
        same = digest(problem_file(name)) == source["sha256"]
    except OSError:
        return f"{source['file']} is not here"
    return None if same else f"{source['file']} here is not the file of this run"


def recorded_problem(info: Mapping[str, Any], name: str) -> tuple[Problem | None, str]:
    """The problem of a run, whose run.json is `info`, loaded again; or None and why not, in words.

    It is not where its file or data are not the recorded ones or not here, or where it is a user's: a record must not
    make its reader run files that it names. A record without digests, of before there were any, has whatever its name
    means here.
    """
    from gradbench.inputs.plan import SweepPlan
    from gradbench.inputs.problem import load_problem, problem_names

    if why := recorded_file(info, name):
        return None, why
    try:
        if parse_spec(name, ProblemError).target not in problem_names():
            return None, f"{name} is not one of gradbench's own problems, and a record's files are not run"
        problem = load_problem(name)
    except ProblemError as error:
        return None, str(error)
    source = (info.get("sources") or {"problems": {}})["problems"].get(name)
    if source and source["data_sha256"] != fingerprint(_data(problem), SweepPlan.from_dict(info["plan"]).dtype):
        return None, f"the data of {name} here are not those of this run"
    return problem, ""


def problem_file(spec: str) -> Path:
    """The file that a problem's spec names."""
    from gradbench.inputs.problem import problem_path

    return problem_path(parse_spec(spec, ProblemError).target)


def _data(problem: Problem) -> Any:
    """What a run reads of a problem."""
    return problem.data if problem.holdout is None else (problem.data, problem.holdout)


def _problem_source(spec: str) -> dict[str, Any]:
    target, file = parse_spec(spec, ProblemError).target, problem_file(spec)
    return _source(file, target if is_path(target) else file.name)


def _optimizer_source(spec: str) -> dict[str, Any]:
    place, colon, _ = parse_spec(spec, OptimizerError).target.rpartition(":")
    if not colon:
        return NOWHERE
    if is_path(place):
        return _source(user_path(place), place)
    file = importlib.import_module(place).__file__
    return NOWHERE | {"file": place} if file is None else _source(Path(file), place)


def _source(file: Path, name: str) -> dict[str, Any]:
    """`name` is what the user calls the file: a record does not keep where it was."""
    return {"file": name, "sha256": digest(file)}


def digest(file: Path) -> str:
    """The sha256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fingerprint(data: Any, dtype: str) -> str:
    """The sha256 of a pytree of arrays as a run in `dtype` reads them: places in the tree, shapes, types and bytes.

    So the last bit of a float64 sum, in which machines differ, is not another problem of a float32 run.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        array = np.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.floating):
            with np.errstate(over="ignore"):
                array = array.astype(jnp.dtype(dtype))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()
