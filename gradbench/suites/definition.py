"""A suite: a TOML file of problems, search spaces, budgets and targets, and the plans that run it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradbench.errors import OptimizerError, PlanError, ProblemError, nearest, one_line
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.specs import checks
from gradbench.inputs.specs.rates import rates_as_kept
from gradbench.inputs.specs.spec import parse_spec
from gradbench.paths import user_path

TUNED, SELF_TUNING = "tuned", "self-tuning"
RULESETS = (TUNED, SELF_TUNING)
BUILT_IN = Path(__file__).parent / "built_in"
OF_TARGETS = ("targets", "holdout", "measured")  # tables that gradbench suite freeze writes
_TABLES = {"problems", "optimizers", "reduced", *OF_TARGETS}
_OF_SUITE = {"name", "about", "learning_rates", "references", "meant_for"}
_REDUCED = {"steps", "trials", "seeds"}
_OF_PROBLEMS = {"specs", "trials", "steps", "batch_size"}
_OF_OPTIMIZERS = {"specs", "ruleset", "learning_rates", "learning_rate"}
_OTHERS = {"learning_rates", "design", "problems", "optimizers", "targets", "target_loss", "search", "budget", "axes"}


@dataclass(frozen=True)
class Group:
    """Specs that share their settings: problems with the same steps, optimizers with the same search space."""

    specs: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """What a suite's file says.

    settings: of every plan, by SweepPlan's fields, such as dtype and seeds.
    problems: groups, each with `steps`, perhaps `batch_size`, and `trials`: how many settings each optimizer tries.
    optimizers: groups, each with a ruleset. "tuned": `trials` settings are drawn from its search space, the
        `learning_rates` low:high (log-uniform) and the axes of its spec. "self-tuning": one trial, at the
        `learning_rate` stated, which is the optimizer's own default.
    learning_rates: the search space of an optimizer that the suite does not name.
    references: the optimizers with which its targets are measured.
    targets: the training loss that counts as reached, by problem; holdout: the held-out loss it was derived from;
        measured: the conditions under which targets were measured (suites/targets.py).
    meant_for: the kind of device, gpu or tpu; on others a run is reduced to the steps, trials and seeds of `reduced`.
    few: the suite that a reduced run belongs to, with targets of its own.
    """

    name: str
    about: str
    settings: Mapping[str, Any]
    problems: tuple[Group, ...]
    optimizers: tuple[Group, ...]
    learning_rates: str
    references: tuple[str, ...]
    targets: Mapping[str, float] = field(default_factory=dict)
    holdout: Mapping[str, float] = field(default_factory=dict)
    meant_for: str | None = None
    reduced: Mapping[str, int] = field(default_factory=dict)
    measured: tuple[Mapping[str, Any], ...] = ()
    few: Suite | None = None

    @property
    def sha256(self) -> str:
        """Of its content except `about`, `measured` and the file's layout: any other change gives another hash."""
        content = {
            "settings": dict(self.settings),
            "problems": [[list(group.specs), dict(group.settings)] for group in self.problems],
            "optimizers": [[list(group.specs), dict(group.settings)] for group in self.optimizers],
            "rest": [self.name, self.learning_rates, list(self.references)],
            "targets": [dict(self.targets), dict(self.holdout)],
            "reduced": [self.meant_for, dict(self.reduced)],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def version(self) -> str:
        """Its name and the start of its hash, for people."""
        return f"{self.name} {self.sha256[:8]}"

    @property
    def all_problems(self) -> tuple[str, ...]:
        return tuple(spec for group in self.problems for spec in group.specs)

    @property
    def all_optimizers(self) -> tuple[str, ...]:
        return tuple(spec for group in self.optimizers for spec in group.specs)

    def mark(self, ruleset: str) -> dict[str, str]:
        """Its entry in run.json."""
        return {"name": self.name, "sha256": self.sha256, "ruleset": ruleset}

    def at(self, reduced: bool) -> Suite:
        """Itself, or with `reduced` the suite of its reduced runs. Raises PlanError where it has none."""
        if not reduced:
            return self
        if self.few is None:
            raise PlanError(f"{self.name}: has no [reduced] table, with steps, trials or seeds of a reduced run")
        return self.few

    def plans(self, problems: Sequence[str] = (), optimizers: Sequence[Group] = ()) -> Iterator[tuple[str, SweepPlan]]:
        """(ruleset, plan) of every group of problems with every group of optimizers. Raises PlanError, as below."""
        self.check_problems(problems)
        for of_problems in self.problems:
            chosen = tuple(spec for spec in of_problems.specs if not problems or spec in problems)
            for of_optimizers in optimizers or self.optimizers:
                if chosen:
                    yield of_optimizers.settings["ruleset"], self._plan(chosen, of_problems.settings, of_optimizers)

    def check_problems(self, names: Sequence[str]) -> None:
        """Raises PlanError for a problem that the suite does not have."""
        for name in names:
            if name not in self.all_problems:
                raise PlanError(f"{self.name}: no problem {name!r}{nearest(name, self.all_problems)}")

    def groups_of(self, specs: Sequence[str], ruleset: str = TUNED, rates: str | None = None) -> list[Group]:
        """A group for each of these optimizers: the suite's, by the whole spec or else by its name alone; for one that
        it does not name, or if `rates` are given, a new one. A new self-tuning group has the given rate or the
        optimizer's default."""
        found = []
        for spec in specs:
            alike = [group for group in self.optimizers if group.settings["ruleset"] == ruleset and rates is None]
            target = parse_spec(spec, OptimizerError).target
            known = [group for group in alike if spec in group.specs]
            known += [group for group in alike if target in group.specs]
            if known:
                found.append(Group((spec,), known[0].settings))
            elif ruleset == TUNED:
                found.append(Group((spec,), {"ruleset": ruleset, "learning_rates": rates or self.learning_rates}))
            else:
                rate = default_rate(spec) if rates is None else _one_rate(self.name, rates)
                found.append(Group((spec,), {"ruleset": ruleset, "learning_rate": rate}))
        return found

    def _plan(self, specs: tuple[str, ...], of_problems: Mapping[str, Any], optimizers: Group) -> SweepPlan:
        values = {key: value for key, value in of_problems.items() if key != "trials"}
        if optimizers.settings["ruleset"] == TUNED:
            trials = of_problems["trials"]
            rates = f"{optimizers.settings['learning_rates']}:{max(trials, 2)}"
            values |= {"learning_rates": rates, "design": f"random:{trials}"}
        else:
            values |= {"learning_rates": (optimizers.settings["learning_rate"],)}
        targets = {name: self.targets[name] for name in specs if name in self.targets}
        values |= {"problems": specs, "optimizers": optimizers.specs, "targets": targets or None}
        return SweepPlan.from_dict({**self.settings, **values}, where=self.name)


def chosen_groups(suite: Suite, specs: Sequence[str], ruleset: str, rates: str | None) -> list[Group]:
    """The optimizers that a user asks for, in groups that share a search space; none for all of the suite's. Raises
    PlanError for `rates` or a ruleset without an optimizer, and for `rates` that are no search space."""
    checks.one_of(RULESETS)("ruleset", ruleset)
    if not specs:
        if rates is not None or ruleset != TUNED:
            raise PlanError(
                "learning rates and a ruleset are for optimizers that are given; name one with -o, optimizers="
            )
        return []
    if rates is not None and ruleset == TUNED:
        rates = _space(rates, "learning_rates")
    merged: dict[str, Group] = {}
    for group in suite.groups_of(specs, ruleset, rates):
        key = str(sorted(group.settings.items()))
        merged[key] = Group((*(merged[key].specs if key in merged else ()), *group.specs), group.settings)
    return list(merged.values())


def _one_rate(where: str, text: Any) -> float:
    """One learning rate. Raises PlanError for anything else."""
    rates = rates_as_kept(text)
    if isinstance(rates, str) or len(rates) != 1:
        raise PlanError(f"{where}: a self-tuning optimizer has one learning rate, got {text}")
    return rates[0]


def default_rate(spec: str) -> float:
    """The learning rate that an optimizer has where none is given. Raises PlanError where it has none."""
    from gradbench.inputs.optimizer import load_optimizer  # JAX

    function = load_optimizer(spec).function
    assert function is not None
    parameter = inspect.signature(function).parameters.get("learning_rate")
    if parameter is None or not isinstance(parameter.default, int | float):
        raise PlanError(
            f"{spec}: has no default learning rate, which self-tuning takes; give one, such as --lr 1, learning_rates=1"
        )
    return float(parameter.default)


def short_names(problems: Iterable[str]) -> dict[str, str]:
    """Spec -> the problem's name without settings, or the whole spec where two would have the same name."""
    bare = {spec: parse_spec(spec, ProblemError).target for spec in problems}
    counts = Counter(bare.values())
    return {spec: name if counts[name] == 1 else spec for spec, name in bare.items()}


def built_in_suites() -> list[str]:
    """The names of the suites that come with gradbench."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def suite_path(name: str | Path) -> Path:
    """The file of a suite given by its path, or by its name if it is built in. Raises PlanError for neither."""
    path = user_path(name)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return path
    if str(name) not in built_in_suites():
        known = built_in_suites()
        raise PlanError(f"no suite {str(name)!r}{nearest(str(name), known)} ({', '.join(known)}, or a .toml file)")
    return BUILT_IN / f"{name}.toml"


def load_suite(name: str | Path) -> Suite:
    """Read a suite, built in or a file, and check it whole. Raises PlanError with the place of what is wrong."""
    path = suite_path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: not TOML: {one_line(error)}") from error
    return suite_from(values, str(name), path.stem)


def suite_from(values: Mapping[str, Any], where: str, name: str) -> Suite:
    """A suite from its TOML's content."""
    settings = {key: value for key, value in values.items() if key not in _TABLES | _OF_SUITE}
    if taken := settings.keys() & _OTHERS:
        raise PlanError(f"{where}: {min(taken)} is not a setting of a suite (it has problems, optimizers and targets)")
    problems = _groups(values, "problems", _OF_PROBLEMS, where)
    optimizers = _groups(values, "optimizers", _OF_OPTIMIZERS, where)
    space = _space(values.get("learning_rates", "1e-4:10"), where)
    references = _references(values.get("references", []), where)
    table = values.get("reduced", {})
    if not isinstance(table, dict):
        raise PlanError(f"{where}: reduced: need a table of {', '.join(sorted(_REDUCED))}, got {table!r}")
    if others := table.keys() - _REDUCED - set(OF_TARGETS):
        raise PlanError(f"{where}: reduced: no setting {min(others)!r} ({', '.join(sorted(_REDUCED))})")
    reduced = {key: checks.whole(1, 2**30)(f"{where}: reduced: {key}", table[key]) for key in table if key in _REDUCED}
    meant_for = values.get("meant_for")
    if meant_for is not None:
        meant_for = checks.device(f"{where}: meant_for", meant_for)
    suite = Suite(
        _text(values, "name", name, where),
        _text(values, "about", "", where),
        settings,
        tuple(_checked_problems(group, where) for group in problems),
        tuple(_checked_optimizers(group, where) for group in optimizers),
        space,
        references,
        meant_for=meant_for,
        reduced=reduced,
    )
    few = _with_targets(_reduced(suite), table, f"{where}: reduced") if table else None
    suite = _with_targets(dataclasses.replace(suite, few=few), values, where)
    for _ in (plan for of in (suite, few) if of for plan in of.plans()):  # each is checked as it is made
        pass
    tuned = [spec for group in suite.optimizers if group.settings["ruleset"] == TUNED for spec in group.specs]
    if others := [spec for spec in references if spec not in tuned]:
        raise PlanError(f"{where}: references: no tuned optimizer {others[0]!r}{nearest(others[0], tuned)}")
    return suite


def _reduced(suite: Suite) -> Suite:
    """The suite at the steps, trials and seeds of its reduced runs."""
    of_problems = {key: value for key, value in suite.reduced.items() if key != "seeds"}
    of_all = {key: value for key, value in suite.reduced.items() if key == "seeds"}
    problems = tuple(Group(group.specs, {**group.settings, **of_problems}) for group in suite.problems)
    changed = {"name": f"{suite.name} reduced", "settings": {**suite.settings, **of_all}, "problems": problems}
    return dataclasses.replace(suite, **changed, meant_for=None, reduced={})


def _with_targets(suite: Suite, values: Mapping[str, Any], where: str) -> Suite:
    """The suite with the targets in a table of its file, and the conditions they were measured under."""
    targets, holdout = (checks.losses(f"{where}: {key}", values.get(key, {})) for key in ("targets", "holdout"))
    measured = values.get("measured", [])
    if not isinstance(measured, list) or not all(isinstance(of, dict) and "specs" in of for of in measured):
        raise PlanError(f"{where}: need [[measured]] tables with specs = [...], as gradbench suite freeze writes them")
    for of in measured:
        specs, seeds = of["specs"], of.get("seeds")
        if not isinstance(specs, list) or not all(isinstance(spec, str) for spec in specs):
            raise PlanError(f"{where}: measured: specs: need a list of problems, got {specs!r}")
        if seeds is not None:
            checks.whole(1, 2**30)(f"{where}: measured: seeds", seeds)
        try:
            json.dumps(of)
        except TypeError as error:  # dates and times
            raise PlanError(f"{where}: measured: need numbers, texts, lists and tables: {one_line(error)}") from error
    named = suite.all_problems
    if others := [problem for problem in {**targets, **holdout} if problem not in named]:
        raise PlanError(f"{where}: targets: no problem {others[0]!r}{nearest(others[0], named)}")
    return dataclasses.replace(suite, targets=targets, holdout=holdout, measured=tuple(measured))


def _text(values: Mapping[str, Any], key: str, default: str, where: str) -> str:
    found = values.get(key, default)
    if not isinstance(found, str):
        raise PlanError(f"{where}: {key}: need a text, got {found!r}")
    return found


def _references(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PlanError(f'{where}: references: need a list of optimizers, such as ["sgd", "adam"], got {value!r}')
    return checks.specs_of("optimizer", "adam")(f"{where}: references", value) if value else ()


def _groups(values: Mapping[str, Any], key: str, known: set[str], where: str) -> list[Group]:
    tables = values.get(key)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise PlanError(f"{where}: need at least one [[{key}]] table, with specs = [...]")
    found = []
    for table in tables:
        if others := [name for name in table if name not in known]:
            raise PlanError(f"{where}: {key}: no setting {others[0]!r}{nearest(others[0], known)}")
        specs = checks.specs_of(key.rstrip("s"), "mlp" if key == "problems" else "adam")(
            f"{where}: {key}: specs", table.get("specs", ())
        )
        found.append(Group(specs, {name: value for name, value in table.items() if name != "specs"}))
    return found


def _checked_problems(group: Group, where: str) -> Group:
    trials = checks.whole(1, 10**6)(f"{where}: trials of {group.specs[0]}", group.settings.get("trials", 20))
    return Group(group.specs, {**group.settings, "trials": trials})


def _checked_optimizers(group: Group, where: str) -> Group:
    settings = {"ruleset": TUNED, **group.settings}
    checks.one_of(RULESETS)(f"{where}: ruleset of {group.specs[0]}", settings["ruleset"])
    if settings["ruleset"] == TUNED:
        if "learning_rates" not in settings:
            instead = (
                "learning_rates = low:high, such as 1e-4:1; the suite's own is for optimizers that it does not name"
            )
            raise PlanError(f"{where}: {group.specs[0]}: its [[optimizers]] table needs {instead}")
        settings["learning_rates"] = _space(settings["learning_rates"], f"{where}: {group.specs[0]}")
    elif "learning_rate" not in settings:
        raise PlanError(f"{where}: {group.specs[0]}: need learning_rate, the one that it has by default")
    return Group(group.specs, settings)


def _space(text: Any, where: str) -> str:
    """A search space of learning rates, low:high."""
    if isinstance(text, str) and text.count(":") == 1:
        with contextlib.suppress(PlanError):
            rates_as_kept(f"{text}:2")
            return text
    need = "need learning_rates = low:high, above 0 and low below high, such as 1e-4:1"
    raise PlanError(f"{where}: {need}, got {text!r}")
