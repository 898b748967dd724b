"""How often the statistics of a race are right: races drawn with a known truth.

    python tests/benchmarks/race_coverage.py [--races 10000]

Prints, for each number of seeds and problems: the share of 95 % intervals that hold the true ratio (coverage), and of
races between three equal optimizers that claim any difference (false claims). Learning rates are chosen in every race,
from noisy runs, as in a record; the truth is the mean over all races, since some runs do not reach the target.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from simulated import race

from gradbench.analysis.races.races import races_of

ONE_WIDE = (1.0, 0.1, 0.1, 0.1)
CASES = (  # seeds, problems, spread of the seeds: of all problems, or one for each
    (4, 4, 0.3),
    (4, 4, ONE_WIDE),
    (6, 1, 0.3),
    (6, 4, 0.3),
    (6, 4, ONE_WIDE),
    (10, 4, 0.3),
    (10, 4, 1.0),
    (10, 4, ONE_WIDE),
    (20, 4, 0.3),
    (20, 4, ONE_WIDE),
)


def coverage(races, seeds, problems, seed=0, **settings):
    """The share of intervals with the mean of all estimates in them, and that mean's ratio."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(races):
        [row] = races_of(race(rng, seeds, problems, [1.5, 1.0], **settings)).rows
        sign = 1 if row["faster"] == "a" else -1
        found.append([sign * math.log(row[key]) for key in ("ratio", "low", "high")])
    values, a, b = np.array(found, float).T
    truth = values.mean()
    return np.mean((np.minimum(a, b) <= truth) & (truth <= np.maximum(a, b))), math.exp(truth)


def false_claims(races, seeds, problems, optimizers=3, seed=0, **settings):
    """The share of races between equals in which any two are said to differ."""
    rng = np.random.default_rng(seed)
    drawn = (races_of(race(rng, seeds, problems, [1.0] * optimizers, **settings)) for _ in range(races))
    return np.mean([any(row["decided"] for row in found.rows) for found in drawn])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=10_000)
    races = parser.parse_args().races
    print("seeds  problems                spread  coverage  ratio  false claims")
    for seeds, problems, spread in CASES:
        right, ratio = coverage(races, seeds, problems, spread=spread, whole=True)
        wrong = false_claims(races, seeds, problems, spread=spread, whole=True)
        print(
            f"{seeds:5}  {problems:8}  {spread!s:>20}  {100 * right:7.2f}%  {ratio:5.3f}  {100 * wrong:11.2f}%",
            flush=True,
        )


if __name__ == "__main__":
    main()
