"""Specs: `name[key=value,key=value]`, the one way problems and optimizers are named."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import os
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gradbench.errors import GradbenchError, error_text, nearest

# optax.sgd and the names that stand for it with settings; here, so that readers of records do not wait for JAX.
SGD: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}
_WORDS = {"true": True, "false": False, "none": None}
FILE_MODULE = "gradbench_file_"  # begins the names in sys.modules of problem and optimizer files
_module_number = itertools.count()


@dataclass(frozen=True)
class Spec:
    """A parsed spec: `target` is a name, a path or `path:function`; `settings` its keyword arguments."""

    text: str
    target: str
    settings: Mapping[str, Any]


def parse_spec(text: str, error: type[GradbenchError]) -> Spec:
    """Read `target[key=value,...]`. Values are Python literals, true/false/none, or else plain strings."""
    text = text.strip()
    target, bracket, rest = text.partition("[")
    if not target:
        raise error(f"{text!r}: a name is missing; write name or name[key=value]")
    if "]" in target or (bracket and not rest.endswith("]")):
        raise error(f"{text!r}: the brackets do not match; write {target.rstrip(']')}[key=value,key=value]")
    settings: dict[str, Any] = {}
    for item in _split(rest[:-1], text, error) if bracket else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise error(f"{text!r}: {item.strip()!r} is not key=value")
        if key in settings:
            raise error(f"{text!r}: {key} is given twice")
        settings[key] = value_of(value)
    return Spec(text, target, settings)


def is_path(target: str) -> bool:
    """Whether a spec's target is a path to a file, not a name or a module."""
    return target.endswith(".py") or "/" in target


def _split(text: str, whole: str, error: type[GradbenchError]) -> list[str]:
    """Cut at commas that stand outside any bracket."""
    items, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            break
        if character == "," and depth == 0:
            items.append(text[start:position])
            start = position + 1
    if depth != 0:
        raise error(f"{whole!r}: the brackets do not match")
    return [*items, text[start:]] if text.strip() else []


def value_of(text: str) -> Any:
    """A setting's value: a Python literal, true, false or none, or else the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def check_settings(spec: Spec, function: Callable[..., Any], error: type[GradbenchError], reserved: tuple = ()) -> None:
    """Refuse settings that `function` does not take, and numbers where its defaults are of another kind."""
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [
        name
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in reserved
    ]
    for key, value in spec.settings.items():
        if key not in known:
            if takes_any and key not in reserved:
                continue
            has = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise error(f"{spec.text!r}: {spec.target} has no setting {key!r}{nearest(key, known)} ({has})")
        default = parameters[key].default
        wrong = (
            (isinstance(default, bool) and not isinstance(value, bool))
            or (type(default) is int and (type(value) is float or isinstance(value, bool | str)))
            or (type(default) is float and isinstance(value, bool | str))
            or (isinstance(value, str) and _is_numeric(parameters[key].annotation))
        )
        if wrong:
            kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
            example = f", such as {key}={default}" if isinstance(default, int | float) else ""
            raise error(f"{spec.text!r}: {key}={value} should be {kind}{example}")


def _is_numeric(annotation: Any) -> bool:
    """Whether an annotation takes numbers and no text."""
    kinds = typing.get_args(annotation) or (annotation,)
    return (int in kinds or float in kinds) and not {str, Any} & set(kinds)


def load_file(path: Path, error: type[GradbenchError]) -> ModuleType:
    """Run a Python file as a module of its own; whatever it raises becomes one line."""
    if not os.path.isfile(path):  # False also of a name that is too long, of which Path.is_file raises
        raise error(f"{path}: no such file")
    name = f"{FILE_MODULE}{next(_module_number)}_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise error(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and typing look their module up
    try:
        module_spec.loader.exec_module(module)
    except GradbenchError:
        raise
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        raise error(f"{path}: could not be loaded: {error_text(fault)}") from fault
    return module
