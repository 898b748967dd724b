"""Data for problems: scikit-learn's bundled sets, synthetic ones, and a user's CSV, LIBSVM or npz file."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np

from gradbench.errors import ProblemError, one_line


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


def load_table(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read features (n, d) and a target (n,), both float64, from a file.

    CSV (.csv, .tsv, .txt): numbers, the last column is the target, a header line is skipped. LIBSVM (.svm, .libsvm):
    `target index:value ...`. npz: arrays `X` and `y`. Raises ProblemError that names the first bad place.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ProblemError(f"data={path}: no such file")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_csv, ".npz": _read_npz}
    readers |= {".svm": _read_libsvm, ".libsvm": _read_libsvm, ".svmlight": _read_libsvm}
    if path.suffix not in readers:
        raise ProblemError(f"data={path}: cannot tell the format; the name should end in {', '.join(sorted(readers))}")
    try:
        features, target = readers[path.suffix](path)
        if np.iscomplexobj(features) or np.iscomplexobj(target):
            raise ProblemError(f"data={path}: holds complex numbers; needs real ones")
        features, target = np.asarray(features, np.float64), np.asarray(target, np.float64)
    except ProblemError:
        raise
    except Exception as error:
        raise ProblemError(f"data={path}: {one_line(error)}") from error
    if features.ndim != 2 or target.shape != features.shape[:1] or features.size == 0:
        raise ProblemError(f"data={path}: need X (n, d) and y (n,), got {features.shape} and {target.shape}")
    bad = ~np.isfinite(np.column_stack([features, target]))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ProblemError(f"data={path}: example {row + 1}, column {column + 1} is not a finite number")
    return features, target


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    delimiter = next((d for d in (",", ";", "\t") if d in first), None)
    try:
        [float(cell) for cell in first.split(delimiter)]
        header = 0
    except ValueError:
        header = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty file is reported below, in our words
        try:
            table = np.loadtxt(path, delimiter=delimiter, skiprows=header, ndmin=2, encoding="utf-8")
        except ValueError as error:
            raise ProblemError(f"data={path}: {_bad_place(path, delimiter, header) or one_line(error)}") from error
    if table.size == 0 or table.shape[1] < 2:
        raise ProblemError(f"data={path}: needs rows with at least one feature column and a target column")
    return table[:, :-1], table[:, -1]


def _bad_place(path: Path, delimiter: str | None, header: int) -> str | None:
    """The first line of a CSV file that has another number of cells than the first, or a cell that is no number."""
    cells = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            row = line.partition("#")[0].strip("\r\n").split(delimiter)
            if number <= header or row in ([], [""]):
                continue
            cells = cells or len(row)
            if len(row) != cells:
                return f"line {number} has {len(row)} columns, the first has {cells}"
            for column, cell in enumerate(row, 1):
                try:
                    float(cell)
                except ValueError:
                    return f"line {number}, column {column}: {cell.strip()!r} is not a number"
    return None


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
    """Labels of any two values as -1.0 (the smaller) and +1.0."""
    classes = np.unique(target)
    if len(classes) != 2:
        raise ProblemError(f"the target column has {len(classes)} different values; two classes are needed")
    return np.where(target == classes[1], 1.0, -1.0)


def synthetic(examples: int, features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features (n, d) and a linear target with unit noise (n,), float64."""
    if examples < 2 or features < 1:
        raise ProblemError(f"examples={examples}, features={features}: need at least 2 examples and 1 feature")
    generator = np.random.default_rng(seed)
    design = generator.standard_normal((examples, features))
    weights = generator.standard_normal(features)
    return design, design @ weights + generator.standard_normal(examples)


def table(data: str | None, examples: int | None, features: int | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The data a regression problem's settings ask for, or None for its own default set."""
    if data is not None and (examples is not None or features is not None):
        raise ProblemError("give data=PATH or examples= and features=, not both")
    if data is not None:
        return load_table(data)
    if examples is None and features is None:
        return None
    if not (isinstance(examples, int) and isinstance(features, int)):
        raise ProblemError("a synthetic set needs both examples= and features=, whole numbers")
    return synthetic(examples, features)


def logistic_minimum(design: np.ndarray, labels: np.ndarray, l2: float) -> float:
    """The lowest mean log loss + l2/2 |w|², by Newton's method with step halving in float64.

    Stops at a Newton decrement of 1e-15 (Boyd and Vandenberghe, Convex Optimization, 9.5), where the gap is half of
    it. Needs l2 > 0 for separable data; raises ProblemError if 100 steps do not get there.
    """
    weights = np.zeros(design.shape[1])

    def value(w: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -labels * (design @ w)).mean() + 0.5 * l2 * w @ w)

    best = value(weights)
    for _ in range(100):
        margin = labels * (design @ weights)
        probability = 0.5 * (1.0 - np.tanh(0.5 * margin))  # sigmoid(-margin), without overflow
        gradient = -design.T @ (labels * probability) / len(labels) + l2 * weights
        spread = probability * (1.0 - probability) / len(labels)
        hessian = (design.T * spread) @ design + l2 * np.eye(len(weights))
        direction = np.linalg.lstsq(hessian, -gradient, rcond=None)[0]
        if -gradient @ direction <= 1e-15:
            return best
        size = 1.0
        while (trial := value(weights + size * direction)) > best and size > 1e-10:
            size /= 2
        if trial > best:
            return best  # no step lowers it in float64
        weights, best = weights + size * direction, trial
    raise ProblemError("Newton's method did not find the minimum in 100 steps; with separable data set l2 above 0")
