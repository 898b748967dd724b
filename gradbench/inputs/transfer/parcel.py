"""A plan's problems and optimizers on their way to another process: files by their content, objects pickled."""

from __future__ import annotations

import importlib
import os
import pickle
import secrets
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradbench.errors import GradbenchError, OptimizerError, PlanError, ProblemError, one_line
from gradbench.inputs.optimizer import Optimizer, load_optimizer
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, load_problem
from gradbench.inputs.specs.spec import is_path, parse_spec
from gradbench.paths import user_path


@dataclass(frozen=True)
class Parcel:
    """`files` are those that the specs of a plan name, problems, optimizers and data, by their paths there; `pickled`
    the problems and optimizers that were given as objects. What has a name of its own, such as mlp or
    package.module:make, is looked up where the parcel is opened."""

    problems: tuple[str, ...]
    optimizers: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]
    pickled: bytes = b""

    @classmethod
    def of(cls, plan: SweepPlan, objects: Mapping[str, Problem], functions: Mapping[str, Optimizer]) -> Parcel:
        """Raises PlanError for objects that cannot be sent."""
        problems = {name: list(_paths(name, ProblemError)) for name in plan.problems if name not in objects}
        optimizers = {name: list(_paths(name, OptimizerError)) for name in plan.optimizers if name not in functions}
        paths = sorted({path for named in (problems, optimizers) for of in named.values() for path in of})
        return cls(
            tuple(name for name, of in problems.items() if of),
            tuple(name for name, of in optimizers.items() if of),
            tuple((path, user_path(path).read_bytes()) for path in paths),
            _pickled(objects, functions),
        )

    def open(self, only: Container[str] | None = None) -> tuple[dict[str, Problem], dict[str, Optimizer]]:
        """The problems and optimizers in it, or `only` those of these names in the plan, loaded, by their names. Runs
        the code that is in it."""
        problems, optimizers = pickle.loads(self.pickled) if self.pickled else ({}, {})
        with tempfile.TemporaryDirectory(prefix="gradbench-") as folder:
            places = {path: Path(folder) / str(n) / Path(path).name for n, (path, _) in enumerate(self.files)}
            for path, content in self.files:
                places[path].parent.mkdir()
                places[path].write_bytes(content)
            for name in _chosen(self.problems, only):
                problems[name] = replace(load_problem(_moved(name, places)), name=name)
            for name in _chosen(self.optimizers, only):
                optimizers[name] = replace(load_optimizer(_moved(name, places)), spec=name)
        return problems, optimizers


class Kept:
    """In place of a parcel, for this process: nothing is sent, files are read where they are."""

    def __init__(self, problems: Mapping[str, Problem], optimizers: Mapping[str, Optimizer]):
        self.problems, self.optimizers, self.name = problems, optimizers, secrets.token_hex(8)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """As another process, or a digest, would have it: this very one."""
        return str, (self.name,)

    def open(self, only: Container[str] | None = None) -> tuple[dict[str, Problem], dict[str, Optimizer]]:
        return dict(self.problems), dict(self.optimizers)


def _chosen(names: tuple[str, ...], only: Container[str] | None) -> list[str]:
    return [name for name in names if only is None or name in only]


def _paths(text: str, error: type[GradbenchError]) -> Iterator[str]:
    """The files that a spec names: its own, and those that are values of its settings."""
    spec = parse_spec(text, error)
    own = spec.target.rpartition(":")[0] or spec.target
    if is_path(own):
        if not _is_file(own):
            raise error(f"{own}: no such file")
        yield own
    yield from (value for value in spec.settings.values() if isinstance(value, str) and _is_file(value))


def _is_file(text: str) -> bool:
    return os.path.isfile(user_path(text))  # False also of a text that is too long for a name


def _moved(text: str, places: Mapping[str, Path]) -> str:
    """The spec with its files where they are now."""
    target, bracket, settings = text.partition("[")
    own, colon, function = target.rpartition(":") if ":" in target else (target, "", "")
    target = f"{places.get(own.strip(), own)}{colon}{function}"
    for path, place in places.items():
        settings = settings.replace(f"={path}", f"={place}")
    return f"{target}{bracket}{settings}"


def _pickled(objects: Mapping[str, Problem], functions: Mapping[str, Optimizer]) -> bytes:
    if not objects and not functions:
        return b""
    names = ", ".join([*objects, *functions])
    try:
        dumps: Callable[[Any], bytes] = importlib.import_module("cloudpickle").dumps
    except ImportError:
        raise PlanError(
            f"{names}: given as objects, which only cloudpickle can send to workers: pip install cloudpickle"
        ) from None
    try:
        return dumps((dict(objects), dict(functions)))
    except Exception as error:
        raise PlanError(
            f"{names}: given as objects that cannot be sent to workers: {one_line(error)}; put them into a file"
        ) from error
