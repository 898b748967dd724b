"""The loss as a landscape with the paths of chosen learning rates on it, for two parameters or a plane of many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gradbench.errors import PlanError
from gradbench.inputs.plan import SweepPlan
from gradbench.inputs.problem import Problem, cast, shapes
from gradbench.program.program import numerics
from gradbench.theory.replay import at_once, flat_loss, losses_at, replay, replays

GRID = 81  # points per side
PATH_BYTES = 2**28  # of the params kept along the paths: fewer points where the parameters are many
FAR = 3.0  # a path that is this many half-widths from the picture's centre has left it


@dataclass(frozen=True)
class Landscape:
    """A plane of parameters and what is on it.

    x, y (G,): coordinates of the grid; loss (G, G), rows by y; slope (G, G, 2): the gradient within the plane; float64.
    paths: a dict each: optimizer, learning_rate, word, steps, x, y, loss (lists), left (whether it leaves the picture).
    axes: what x and y are; note: how the plane was chosen.
    """

    problem: str
    optimizer: str
    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    slope: np.ndarray
    paths: list[dict[str, Any]]
    axes: tuple[str, str]
    note: str


def landscape(
    problem: Problem,
    optimizer: str,
    rates: Mapping[float, str],
    plan: SweepPlan,
    *,
    others: Mapping[str, Mapping[float, str]] | None = None,
    seed: int = 0,
    grid: int = GRID,
    most_points: int = 200,
) -> Landscape:
    """Run the learning rates `rates` (rate -> a label, such as "right") again and draw their paths on a plane.

    The labelled paths determine the plane; those labelled "" are drawn too, and so are those of `others`, further
    optimizers with their rates. The picture shows the whole paths of the rates labelled "right". A path has at most
    `most_points` points.

    With two parameters the plane is the whole space. With more it goes through the start, the end of the lowest path,
    and the direction in which the paths deviate most from the line between the two (their principal direction), and
    the paths are projected on it. Raises PlanError for a problem of one parameter.
    """
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes(problem.plain, plan.dtype)[0]))
    if size < 2:
        raise PlanError(f"{problem.name}: a landscape needs two parameters at least, and it has one")
    most = max(len(chosen) for chosen in (rates, *(others or {}).values()))
    points = int(np.clip(PATH_BYTES // (8 * size * most), 8, most_points))
    steps = np.unique([0, *np.geomspace(1, plan.steps, points - 1).round().astype(int)])

    everyone = {optimizer: rates, **(others or {})}
    trials = {name: [(rate, seed) for rate in chosen] for name, chosen in everyone.items()}
    losses = losses_at(problem, plan)
    runs = replays(problem, trials, plan, steps.tolist(), losses)
    first = [i for i, word in enumerate(rates.values()) if word]
    origin, axes, names, note = _plane(runs[0].params[first].astype(np.float64), runs[0].losses[first], size)
    paths = [
        path
        for (name, chosen), run in zip(everyone.items(), runs)
        for path in _paths(name, chosen, steps, _project(run.params, origin, axes), run.losses)
    ]
    del runs
    centre, reach = _picture(paths)
    x, y = (np.linspace(c - r, c + r, grid) for c, r in zip(centre, reach))
    loss, slope = _surface(losses, origin, axes, x, y)
    cut = [_cut(path, centre, reach) for path in paths]
    return Landscape(problem.name, optimizer, x, y, loss, slope, cut, names, note)


def _project(params: np.ndarray, origin: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Coordinates (T, K, 2) on the plane, infinite where the params (T, K, P) are not finite."""
    flat = np.nan_to_num(params.astype(np.float64) - origin, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        return flat @ axes.T


def _paths(
    optimizer: str, rates: Mapping[float, str], steps: np.ndarray, places: np.ndarray, losses: np.ndarray
) -> Iterator[dict[str, Any]]:
    for (rate, word), place, loss in zip(rates.items(), places, losses, strict=True):
        at = {"steps": steps, "x": place[:, 0], "y": place[:, 1], "loss": loss}
        yield {"optimizer": optimizer, "learning_rate": rate, "word": word} | at


def _cut(path: dict[str, Any], centre: np.ndarray, reach: np.ndarray) -> dict[str, Any]:
    """The path up to where it leaves the picture: far away, or not finite."""
    place = np.stack([path["x"], path["y"]], axis=1)
    stays = np.isfinite(place).all(axis=1) & (np.abs(place - centre) <= FAR * reach).all(axis=1)
    end = len(stays) if stays.all() else int(np.argmin(stays))
    kept = {key: path[key][:end].tolist() for key in ("steps", "x", "y", "loss")}
    return path | kept | {"left": end < len(stays)}


def _plane(params: np.ndarray, losses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, str], str]:
    """(origin (P,), two orthonormal axes (2, P), their names, a note) for paths (T, K, P)."""
    if size == 2:
        return np.zeros(2), np.eye(2), ("first parameter", "second parameter"), "the whole of a two-parameter problem"
    fine = np.isfinite(params).all(axis=2) & np.isfinite(losses) & (losses <= losses[:, :1])
    start, best = params[0, 0], params[np.unravel_index(np.argmin(np.where(fine, losses, np.inf)), losses.shape)]
    first = start - best
    length = np.linalg.norm(first)
    first = first / length if length > 0 else np.eye(1, size)[0]
    aside = params[fine] - best
    aside = aside - np.outer(aside @ first, first)
    # The top right singular vector of (points × P), through the small points × points matrix.
    values, vectors = np.linalg.eigh(aside @ aside.T)
    second = vectors[:, -1] @ aside
    if values[-1] <= 1e-24 * max(length, 1.0) ** 2:  # the paths are straight: any other direction will do
        second = np.random.default_rng(0).standard_normal(size)
    second = second - (second @ first) * first
    second = second / np.linalg.norm(second)
    along = aside @ second
    second *= -np.copysign(1.0, along[np.argmax(np.abs(along))])  # the farthest below: rounding is not to mirror it
    note = "the plane through the start, the best point and the paths' principal direction; paths are projected on it"
    return best, np.stack([first, second]), ("from the best point to the start", "principal direction"), note


def _picture(paths: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(centre, half width) of the picture: every optimizer's best path with a margin. Where none ends below its start,
    the points of the labelled paths that are no higher than the start."""
    best = [path for path in paths if path["word"] == "right" and path["loss"][-1] <= path["loss"][0]]
    shown = best or [path for path in paths if path["word"]]
    places = np.concatenate([np.stack([path["x"], path["y"]], axis=1) for path in shown])
    low = np.concatenate([(path["loss"] <= path["loss"][0]) | bool(best) for path in shown])
    points = places[np.isfinite(places).all(axis=1) & low]
    low, high = points.min(axis=0), points.max(axis=0)
    reach = 0.65 * (high - low)
    widest = reach.max() if reach.max() > 0 else 1.0
    return (low + high) / 2, np.maximum(reach, 0.3 * widest)


def _surface(
    losses: Callable[[np.ndarray], np.ndarray], origin: np.ndarray, axes: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (G, G) at the grid's points, and their gradients (G, G, 2) within the plane by differences, of second
    order at the edges too: a program for the gradient would take longer to compile than all of this."""
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    rows = at_once(len(origin))
    found = [losses(origin + points[k : k + rows] @ axes) for k in range(0, len(points), rows)]
    loss = np.concatenate(found).astype(float).reshape(len(y), len(x))
    with np.errstate(invalid="ignore"):  # where the loss is not finite
        slope = np.stack(np.gradient(loss, y, x, edge_order=2)[::-1], axis=-1)
    return loss, slope


def valleys(problem: Problem, plan: SweepPlan, trials: Sequence[tuple[str, float, int]]) -> list[dict[str, Any]]:
    """Which valley each trial (optimizer, learning_rate, seed) of a two-parameter problem ends in.

    Rows of optimizer, learning_rate, seed, valley, x, y, loss, in the trials' order.

    A valley is identified by its lowest point, found by BFGS from the trial's end; ends that lead to points within 1e-3
    share a valley, numbered from the lowest. valley is None (with no x, y, loss) for a diverged trial.
    """
    import scipy.optimize  # a third of a second, and few pages have valleys

    ends = np.empty((len(trials), 2))
    for optimizer in dict.fromkeys(name for name, _, _ in trials):
        mine = [i for i, trial in enumerate(trials) if trial[0] == optimizer]
        ends[mine] = replay(problem, optimizer, plan, [trials[i][1:] for i in mine], [plan.steps]).params[:, 0]
    loss = flat_loss(problem, "float64")
    with numerics("float64", "highest"):
        data = cast(problem.plain.data, "float64")
        value_and_grad = jax.jit(jax.value_and_grad(loss))

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            value, grads = value_and_grad(point, data)
            return float(value), np.asarray(grads)

        found = [
            scipy.optimize.minimize(objective, end, jac=True, method="BFGS") if np.isfinite(end).all() else None
            for end in ends
        ]
    lowest: list[Any] = []
    for result in sorted((r for r in found if r is not None), key=lambda r: r.fun):
        if not any(np.abs(result.x - known.x).max() < 1e-3 for known in lowest):
            lowest.append(result)
    rows = []
    for (optimizer, rate, seed), result in zip(trials, found, strict=True):
        row: dict[str, Any] = {"optimizer": optimizer, "learning_rate": rate, "seed": seed}
        row |= dict.fromkeys(("valley", "x", "y", "loss"))
        if result is not None:
            number = next(i for i, known in enumerate(lowest) if np.abs(result.x - known.x).max() < 1e-3)
            floor = lowest[number]
            row |= {"valley": number, "x": float(floor.x[0]), "y": float(floor.x[1]), "loss": float(floor.fun)}
        rows.append(row)
    return rows
