"""How often the test that adds seeds until a race is decided is right: races drawn with a known truth.

    python tests/benchmarks/race_sequential.py [--races 10000]

Prints, for each number of problems and spread of the seeds: false claims between equals, looked at after every unit of
seeds from the first on, and at the looks of `--until`; and for a true ratio how many races are decided for the right
optimizer, after how many seeds (median), and the share of intervals that hold the truth where the race stopped. At most
100 seeds, in twos as for a swept rate. Last, what the test takes for granted: false claims where two optimizers of one
setting have the same mean, but one has three times the spread of the other, and skewed, so that it is lopsided.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from simulated import race

from gradbench.analysis.races.records import Units
from gradbench.analysis.races.sequential import LEVEL, Sequential, log_fortunes
from gradbench.inputs.specs.races import SEEDS, round_ends, unit_seeds

SETTINGS = 7  # of a simulated sweep
SIZE = unit_seeds(SETTINGS)
ENDS = round_ends(SETTINGS, SEEDS)
CASES = ((1, 0.3), (1, 1.0), (4, 0.3), (4, 1.0))  # problems, spread of the seeds
RATIOS = (1.1, 1.2, 1.5)


def unit_values(rng, problems, speeds, **settings):
    """Of one race, (SEEDS / SIZE,)."""
    found = race(rng, SEEDS, problems, speeds, **settings)
    return Units.of(list(found.values()), SIZE, ENDS[0]).values


def stopped(values, looks):
    """Of races' values (races, N) the number of units at the first of the looks at which each is decided, or 0."""
    reached = log_fortunes(np.array(values))[:, looks - 1] >= LEVEL
    return np.where(reached.any(axis=1), looks[reached.argmax(axis=1)], 0)


def false_claims(races, problems, seed=0, **settings):
    """The shares of races between equals that claim a difference: looked at always, and as `--until` does."""
    rng, looks = np.random.default_rng(seed), np.array(ENDS) // SIZE
    drawn = [unit_values(rng, problems, [1.0, 1.0], **settings) for _ in range(races)]
    always = np.arange(1, SEEDS // SIZE + 1)
    return [np.mean(stopped(drawn, at) > 0) for at in (always, looks)]


def power(races, problems, ratio, seed=0, **settings):
    """The share of races decided for the faster one, the median of their seeds, and the share of all races' intervals,
    where they stopped, that hold the truth, which is the mean of all values."""
    rng, looks = np.random.default_rng(seed), np.array(ENDS) // SIZE
    drawn = [unit_values(rng, problems, [ratio, 1.0], **settings) for _ in range(races)]
    truth = np.mean(drawn)
    ends = stopped(drawn, looks).tolist()
    found = [Sequential.of(values[: end or looks[-1]]) for values, end in zip(drawn, ends)]
    right = np.array([of.decided and of.value > 0 for of in found])
    seeds = [SIZE * (end or np.inf) for end in ends]
    held = [not (of.low > truth or of.high < truth) for of in found]
    return right.mean(), float(np.median(seeds)), np.mean(held)


def lopsided(races, seed=0):
    """The share of false claims between two of one mean and setting, whose skewed noise is spread 3 : 1."""
    rng, looks = np.random.default_rng(seed), np.array(round_ends(1, SEEDS))
    noise = rng.gamma(4, 0.5, (races, 2, SEEDS)) - 2
    return np.mean(stopped(noise[:, 0] - noise[:, 1] / 3, looks) > 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=10_000)
    races = parser.parse_args().races
    print("problems  spread  always looked  as --until   ratio: decided rightly, seeds, coverage")
    for problems, spread in CASES:
        always, looked = false_claims(races, problems, spread=spread)
        print(f"{problems:8}  {spread:6}  {100 * always:12.2f}%  {100 * looked:9.2f}%", end="   ", flush=True)
        for ratio in RATIOS:
            right, seeds, held = power(races // 10, problems, ratio, spread=spread)
            print(f"{ratio}: {100 * right:.1f}%, {seeds:.0f}, {100 * held:.1f}%", end="; ", flush=True)
        print()
    print(f"lopsided: {100 * lopsided(races):.2f}%")


if __name__ == "__main__":
    main()
