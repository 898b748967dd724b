"""Data for problems: scikit-learn's bundled sets, synthetic ones, and a user's CSV, LIBSVM or npz file."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from gradbench.errors import ProblemError, nearest, one_line
from gradbench.paths import user_path


def bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's `diabetes` (unscaled), `breast_cancer` or `digits`: features (n, d) float64 and target (n,).

    Read from its files, as its loaders do: importing it takes longer than compiling a program. Where the files are
    not as expected, by those loaders.
    """
    try:
        spec = importlib.util.find_spec("sklearn")
        folder = Path(str(spec and spec.origin)).parent / "datasets" / "data"
        if name == "diabetes":
            return np.loadtxt(folder / "diabetes_data_raw.csv.gz"), np.loadtxt(folder / "diabetes_target.csv.gz")
        file, header = {"breast_cancer": ("breast_cancer.csv", 1), "digits": ("digits.csv.gz", 0)}[name]
        table = np.loadtxt(folder / file, delimiter=",", skiprows=header)
        return table[:, :-1], table[:, -1].astype(np.int64)
    except (OSError, ValueError):
        import sklearn.datasets

        settings = {"scaled": False} if name == "diabetes" else {}
        return getattr(sklearn.datasets, f"load_{name}")(return_X_y=True, **settings)


def load_table(
    path: str | Path, label: str | int | None = None, classes: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read features (n, d) and a label (n,), both float64, from a file; with `classes` the label may be text.

    CSV (.csv, .tsv, .txt), cells apart by commas, semicolons, tabs or spaces: one example per line, numbers but for the
    label, which is the last column or the one that `label` says, by its name or its number from 1. A first line with
    text among the features is a header. A first column without a name, as pandas writes its index, is left out; empty
    lines and what follows a # are too. LIBSVM (.svm, .libsvm): `label index:value ...`. npz: arrays `X` and `y`.

    Raises ProblemError that names the first bad place.
    """
    path = user_path(path)
    if not os.path.isfile(path):
        raise ProblemError(f"data={path}: no such file")
    readers = {".npz": _read_npz, ".svm": _read_libsvm, ".libsvm": _read_libsvm, ".svmlight": _read_libsvm}
    known = sorted([*readers, ".csv", ".tsv", ".txt"])
    if path.suffix not in known:
        raise ProblemError(f"data={path}: cannot tell the format; the name should end in {', '.join(known)}")
    if path.suffix in readers and label is not None:
        raise ProblemError(f"data={path}: label= names a column of a CSV file; a {path.suffix} file says which it is")
    try:
        features, target = readers[path.suffix](path) if path.suffix in readers else _read_csv(path, label, classes)
        if np.iscomplexobj(features) or np.iscomplexobj(target):
            raise ProblemError(f"data={path}: holds complex numbers; needs real ones")
        features = np.asarray(features, np.float64)
        if not (classes and target.dtype.kind in "US"):
            target = np.asarray(target, np.float64)
    except ProblemError:
        raise
    except Exception as error:
        raise ProblemError(f"data={path}: {one_line(error)}") from error
    if features.ndim != 2 or target.shape != features.shape[:1] or features.size == 0:
        raise ProblemError(f"data={path}: need X (n, d) and y (n,), got {features.shape} and {target.shape}")
    numbers = features if target.dtype.kind in "US" else np.column_stack([features, target])
    if not np.isfinite(numbers).all():
        row, column = np.argwhere(~np.isfinite(numbers))[0]
        raise ProblemError(f"data={path}: example {row + 1}, column {column + 1} is not a finite number")
    return features, target


def load_text(path: str | Path, length: int) -> np.ndarray:
    """A UTF-8 text as rows of `length` characters (n, length), int64: each its number in the text's alphabet.

    What is left after the last whole row is left out. Raises ProblemError if there are fewer than ten.
    """
    path = user_path(path)
    try:
        text = list(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"data={path}: cannot be read as UTF-8 text: {one_line(error)}") from error
    rows = len(text) // length
    if rows < 10:
        raise ProblemError(f"data={path}: has {len(text):,} characters; needs {10 * length:,}, ten rows of {length}")
    return np.unique(text, return_inverse=True)[1][: rows * length].reshape(rows, length)


_MISSING = {"", "?", "na", "n/a", "nan", "none", "null"}  # cells without a value, in any case


def _read_csv(path: Path, label: str | int | None, classes: bool) -> tuple[np.ndarray, np.ndarray]:
    with path.open(encoding="utf-8-sig") as file:
        lines = [(number, text) for number, line in enumerate(file, 1) if (text := line.partition("#")[0].strip())]
    if not lines:
        raise ProblemError(f"data={path}: is empty; needs rows with at least one feature column and a label column")
    delimiter = max(",;\t", key=lines[0][1].count)
    delimiter = delimiter if delimiter in lines[0][1] else None
    texts = [text for _, text in lines]
    rows = csv.reader(texts, delimiter=delimiter, skipinitialspace=True) if delimiter else map(str.split, texts)
    first = [cell.strip() for cell in next(rows)]
    place = _label_column(path, label, first)
    words = [cell for column, cell in enumerate(first) if column != place and not _is_number(cell)]
    header = isinstance(label, str) or any(cell.lower() not in _MISSING for cell in words)
    kept = [column for column in range(len(first)) if column != place and not (header and first[column] == "")]
    if not kept or len(lines) == header:
        raise ProblemError(f"data={path}: needs rows with at least one feature column and a label column")
    names = [f"column {n}" + (f" ({cell})" if header and cell else "") for n, cell in enumerate(first, 1)]
    features, labels = [], []
    for (number, _), cells in zip(lines[header:], rows if header else [first, *rows]):
        if len(cells) != len(first):
            raise ProblemError(f"data={path}: line {number} has {len(cells)} columns, the first has {len(first)}")
        try:
            values = [float(cells[column]) for column in kept]
            sound = math.isfinite(sum(values)) and cells[place].strip().lower() not in _MISSING
        except ValueError:
            sound = False
        if not sound or not (classes or _is_number(cells[place])):
            told = f"data={path}: line {number}, "
            raise ProblemError(told + _bad_cell([cell.strip() for cell in cells], names, kept, place, classes))
        features.append(values)
        labels.append(cells[place].strip())
    target = np.array(labels)
    return np.array(features), target.astype(np.float64) if all(map(_is_number, labels)) else target


def _bad_cell(cells: list[str], names: list[str], kept: list[int], place: int, classes: bool) -> str:
    """The first cell of a line that has no number, or no label."""
    for column in sorted([*kept, place]):
        if cells[column].lower() in _MISSING:
            return f"{names[column]} is missing" + (f": {cells[column]!r}" if cells[column] else "")
        if not (_is_number(cells[column]) or (classes and column == place)):
            return f"{names[column]}: {cells[column]!r} is not a finite number"
    return "its numbers are too large"


def _is_number(cell: str) -> bool:
    """Whether a cell is a finite number."""
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _label_column(path: Path, label: str | int | None, first: list[str]) -> int:
    """The place of the label among the columns, from 0; `first` is the first line's cells."""
    if isinstance(label, str):
        if label not in first:
            raise ProblemError(f"data={path}: no column {label!r}{nearest(label, first)} in line 1: {', '.join(first)}")
        return first.index(label)
    if label is not None and not 1 <= label <= len(first):
        raise ProblemError(f"data={path}: label={label}, but its columns are 1 to {len(first)}")
    return len(first) - 1 if label is None else label - 1


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        if not {"X", "y"} <= set(arrays.files):
            raise ProblemError(f"data={path}: needs arrays X and y, has {', '.join(arrays.files) or 'none'}")
        return arrays["X"], arrays["y"]


def _read_libsvm(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_svmlight_file

    features, target = load_svmlight_file(str(path))
    return features.toarray(), target


def standardise(columns: np.ndarray) -> np.ndarray:
    """Each column to mean 0 and standard deviation 1; a constant column to 0."""
    centred = columns - columns.mean(axis=0)
    scale = columns.std(axis=0)
    constant = scale <= 1e-12 * np.abs(columns).max(axis=0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, scale))


def design_matrix(features: np.ndarray) -> np.ndarray:
    """Standardised features (n, d) and a last column of ones, the intercept: (n, d + 1)."""
    return np.column_stack([standardise(features), np.ones(len(features))])


def curvature(design: np.ndarray) -> tuple[float, float]:
    """The extreme eigenvalues (smallest, largest) of XᵀX/n, the Hessian of half the mean squared error."""
    eigenvalues = np.linalg.eigvalsh(design.T @ design / len(design))
    return max(float(eigenvalues[0]), 0.0), float(eigenvalues[-1])


def two_classes(target: np.ndarray) -> np.ndarray:
    """Labels of any two values, numbers or text, as -1.0 (the first in order) and +1.0."""
    classes = np.unique(target)
    if len(classes) != 2:
        shown = ", ".join(map(str, classes[:4])) + (", ..." if len(classes) > 4 else "")
        many = f"{len(classes)} different values" if len(classes) > 1 else "one value only"
        raise ProblemError(f"the label has {many} ({shown}); two classes are needed")
    return np.where(target == classes[1], 1.0, -1.0)


def synthetic(examples: int, features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features (n, d) and a linear target with unit noise (n,), float64."""
    if examples < 2 or features < 1:
        raise ProblemError(f"examples={examples}, features={features}: need at least 2 examples and 1 feature")
    generator = np.random.default_rng(seed)
    design = generator.standard_normal((examples, features))
    weights = generator.standard_normal(features)
    return design, design @ weights + generator.standard_normal(examples)


def table(
    data: str | None,
    examples: int | None,
    features: int | None,
    label: str | int | None = None,
    classes: bool = False,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The data a regression problem's settings ask for, or None for its own default set; see `load_table`."""
    if label is not None and data is None:
        raise ProblemError("label= says which column of data=PATH is the label; give data= too")
    if data is not None and (examples is not None or features is not None):
        raise ProblemError("give data=PATH or examples= and features=, not both")
    if data is not None:
        return load_table(data, label, classes)
    if examples is None and features is None:
        return None
    if not (isinstance(examples, int) and isinstance(features, int)):
        raise ProblemError("a synthetic set needs both examples= and features=, whole numbers")
    return synthetic(examples, features)


def split(data: Mapping[str, np.ndarray], share: float = 0.2, seed: int = 0) -> tuple[dict, dict]:
    """The rows of equally long arrays in two parts, to train on and held out: dicts like `data`.

    `share` of the rows, drawn without replacement by the seed, are held out.
    """
    rows = len(next(iter(data.values())))
    order = np.random.default_rng(seed).permutation(rows)
    held = round(share * rows)
    train, holdout = ({name: array[part] for name, array in data.items()} for part in (order[held:], order[:held]))
    return train, holdout


def heat_rod(positions: np.ndarray, times: np.ndarray, conductivity: float, source: float) -> np.ndarray:
    """The temperatures (times, positions) of a rod of length 1 by its exact solution, float64.

    u_t = conductivity u_xx + source sin(pi x), cooled to 0 at both ends, from u = sin(pi x) + sin(3 pi x)/2. Each sine
    is an eigenfunction of the rod, so its height follows an equation of its own (Carslaw and Jaeger, Conduction of
    Heat in Solids, 1959, section 3.3).
    """
    rate = conductivity * np.pi**2
    first, third = np.exp(-rate * times), np.exp(-9 * rate * times)
    height = first + source / rate * (1 - first)
    return np.outer(height, np.sin(np.pi * positions)) + 0.5 * np.outer(third, np.sin(3 * np.pi * positions))


def newton(
    start: np.ndarray,
    value: Callable[[np.ndarray], float],
    derivatives: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    advice: str,
) -> tuple[np.ndarray, float]:
    """Where a convex function is lowest and how low, by Newton's method with step halving in float64.

    `derivatives` are the gradient (d,) and the Hessian (d, d). Stops at a Newton decrement of 1e-15 (Boyd and
    Vandenberghe, Convex Optimization, 9.5), where the gap is half of it. Raises ProblemError, with `advice`, if 100
    steps do not get there.
    """
    point, best = start, value(start)
    for _ in range(100):
        gradient, hessian = derivatives(point)
        direction = -_solve(hessian, gradient)
        if -gradient @ direction <= 1e-15:
            return point, best
        size = 1.0
        while not (trial := value(point + size * direction)) <= best and size > 1e-10:
            size /= 2
        if not trial <= best:
            return point, best  # no step lowers it in float64
        point, best = point + size * direction, trial
    raise ProblemError(f"Newton's method did not find the minimum in 100 steps; {advice}")


def _solve(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Of the solutions the shortest, where the Hessian is singular to working precision."""
    try:
        inverse = np.linalg.inv(np.linalg.cholesky(hessian))  # a third of the time of an SVD at d = 31, a 50th at 650
        return inverse.T @ (inverse @ gradient)
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(hessian, gradient, rcond=None)[0]


def logistic_minimum(design: np.ndarray, labels: np.ndarray, l2: float) -> float:
    """The lowest mean log loss + l2/2 |w|², by `newton`. Needs l2 > 0 for separable data."""

    def value(w: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -labels * (design @ w)).mean() + 0.5 * l2 * w @ w)

    def derivatives(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        margin = labels * (design @ w)
        probability = 0.5 * (1.0 - np.tanh(0.5 * margin))  # sigmoid(-margin), without overflow
        spread = probability * (1.0 - probability) / len(labels)
        gradient = -design.T @ (labels * probability) / len(labels) + l2 * w
        return gradient, (design.T * spread) @ design + l2 * np.eye(len(w))

    return newton(np.zeros(design.shape[1]), value, derivatives, "with separable data set l2 above 0")[1]


def softmax_minimum(design: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> float:
    """The lowest mean softmax cross-entropy + l2/2 |W|², W (d, classes), by `newton`; labels from 0 to classes - 1."""
    rows, features = design.shape
    hit = np.eye(classes)[labels]

    def log_softmax(w: np.ndarray) -> np.ndarray:
        scores = design @ w.reshape(classes, features).T
        scores = scores - scores.max(axis=1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    def value(w: np.ndarray) -> float:
        return float(-(hit * log_softmax(w)).sum() / rows + 0.5 * l2 * w @ w)

    def derivatives(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = np.exp(log_softmax(w))
        gradient = ((p - hit).T @ design).ravel() / rows + l2 * w
        weighted = (p[:, :, None] * design[:, None, :]).reshape(rows, -1)
        hessian = -weighted.T @ weighted / rows + l2 * np.eye(len(w))
        for k in range(classes):
            block = slice(k * features, (k + 1) * features)
            hessian[block, block] += weighted[:, block].T @ design / rows
        return gradient, hessian

    return newton(np.zeros(classes * features), value, derivatives, "set l2 higher")[1]


def poisson_minimum(design: np.ndarray, counts: np.ndarray) -> float:
    """The lowest mean of exp(x.w) - y x.w, by `newton` from the intercept that fits the mean, the last of w."""

    def value(w: np.ndarray) -> float:
        score = design @ w
        with np.errstate(over="ignore"):  # an infinite value halves the step
            return float((np.exp(score) - counts * score).mean())

    def derivatives(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rate = np.exp(design @ w)
        return design.T @ (rate - counts) / len(counts), (design.T * rate) @ design / len(counts)

    start = np.zeros(design.shape[1])
    start[-1] = np.log(counts.mean())
    return newton(start, value, derivatives, "are some counts 0 wherever a feature is present?")[1]
