"""What there is to run: problems with their settings, optimizers, devices."""

from __future__ import annotations

import inspect
from typing import Any

from gradbench.errors import GradbenchError
from gradbench.tables import Column, check_format, render, to_json

TITLES = {"problems": "Problems", "optimizers": "Optimizers", "devices": "Devices"}
PROSE = ("settings", "about", "kind")


def inventory() -> dict[str, list[dict[str, Any]]]:
    """Rows of problems, optimizers and devices. Problem files are read, but no data is loaded."""
    from gradbench.inputs.built_in import grouped_names
    from gradbench.inputs.optimizer import optimizer_functions
    from gradbench.inputs.problem import problem_function
    from gradbench.machine.devices import describe, find_devices

    problems = []
    for group, name in ((group, name) for group, names in grouped_names().items() for name in names):
        function = problem_function(name)
        about = (inspect.getdoc(inspect.getmodule(function)) or "").split("\n", 1)[0]
        problems.append({"problem": name, "group": group, "settings": _settings(function), "about": about})
    optimizers = [{"optimizer": name, "settings": _settings(f)} for name, f in optimizer_functions().items()]
    devices: list[dict[str, Any]] = []
    find_devices(None)  # whether JAX starts at all
    for platform in ("cpu", "gpu", "tpu"):
        try:
            found = find_devices(platform)
        except GradbenchError:
            continue
        devices.append({"device": platform, "count": len(found), "kind": describe(found[0])})
    return {"problems": problems, "optimizers": optimizers, "devices": devices}


def _settings(function: Any) -> str:
    shown = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "learning_rate" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = parameter.default
        if default is parameter.empty:
            shown.append(f"{name}=")
        elif default is None or type(default) in (bool, int, float, str, tuple):
            shown.append(f"{name}={str(default).lower() if default is None or isinstance(default, bool) else default}")
    return ", ".join(shown)


def list_text(output_format: str) -> str:
    """The inventory as text; csv puts the three kinds under one heading."""
    check_format(output_format)
    found = inventory()
    if output_format == "json":
        return to_json(found)
    if output_format == "csv":
        rows = [
            {
                "kind": kind[:-1],
                "name": next(iter(row.values())),
                "settings": row.get("settings", ""),
                "group": row.get("group", ""),
            }
            for kind, rows in found.items()
            for row in rows
        ]
        return render(rows, (), "csv")
    blocks = []
    for kind, rows in found.items():
        columns = [Column(key, key, str, priority=int(key == "about"), prose=key in PROSE) for key in rows[0]]
        blocks.append(render(rows, columns, output_format, TITLES[kind]))
    return "\n\n".join(blocks)
