"""The picture in CONTRIBUTING.md is the real one: a folder imports only from those left of it, and stays small."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gradbench"
# Left to right. "" are the files on top that everyone may use; the front door, which loads names on first use, is none.
FOLDERS = (
    "",
    "inputs.specs",
    "inputs.losses",
    "inputs",
    "inputs.transfer",
    "machine",
    "program.xla",
    "program",
    "record",
    "theory",
    "analysis",
    "analysis.races",
    "analysis.settings",
    "search",
    "engine.slots",
    "engine",
    "archive",
    "suites",
    "reporting",
    "reporting.board",
    "gradients.rounding.numbers",
    "gradients.rounding",
    "gradients.formula",
    "gradients.execution",
    "gradients.second",
    "gradients.fuzz",
    "gradients.functions",
    "gradients.ports",
    "gradients",
    "library",
    "cli",
)
SELDOM = {"scipy", "sklearn", "pandas", "optuna", "distributed", "torch"}  # packages
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "problems")


def folder_of(module: str) -> str:
    """Of gradbench.<module>, the longest of FOLDERS that it lies in."""
    return max(
        (folder for folder in FOLDERS if module == folder or module.startswith(f"{folder}.")), key=len, default=""
    )


def imported(path: Path) -> list[str]:
    """Modules of gradbench that a file imports, anywhere in it, without the package's name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.removeprefix("gradbench.") for name in names if name.split(".")[0] == "gradbench"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_only_from_those_left_of_it(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    if module in ("__init__", "__main__"):
        return
    here = FOLDERS.index(folder_of(module))
    # The front door reaches everything, and a relative import is not seen below.
    assert "Problem" not in imported(path)
    backwards = [name for name in imported(path) if FOLDERS.index(folder_of(name)) > here]
    assert not backwards


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_no_function_is_long():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_what_few_runs_need_is_imported_where_it_is_needed():
    """scipy.stats alone takes half a second of every command's start."""
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {name.split(".")[0] for name in names} & SELDOM, path


def test_no_test_file_is_long():
    for path in Path(__file__).parent.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_no_folder_is_crowded():
    for folder in {path.parent for path in FILES}:
        assert len([path for path in folder.iterdir() if path.is_file()]) <= 9, folder


def test_every_folder_is_in_the_picture():
    found = {".".join(path.parent.relative_to(PACKAGE).parts) for path in FILES}
    assert found == set(FOLDERS)


def test_every_folder_is_in_the_wheel():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {f"gradbench.{folder}".rstrip(".") for folder in FOLDERS} | {"gradbench.problems"}
    assert folders == set(settings["tool"]["setuptools"]["packages"])
