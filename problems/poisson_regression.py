"""Poisson regression: loss(w) = mean exp(x.w) - y x.w, the likelihood of counts; here, what demand does as prices move.

From log prices, w holds the elasticities: a price 1 % higher sells |w| % less. The loss leaves out log y!, which no w
changes; convex, its minimum is from Newton's method in float64. Source: Cameron and Trivedi, Regression Analysis of
Count Data (2013), chapter 3. The default data are synthetic: sales in `examples` store-weeks with true elasticities
-1.8 (own price), 0.7 (the rival's) and 0.5 (income), and 0.3 for a promotion; a fifth is held out. data=PATH is a
table of your own, its columns as they are (take logarithms before) but centred; its label holds the counts.
"""

import jax.numpy as jnp
import numpy as np

from gradbench import Problem, datasets

GROUP = "convex"
ELASTICITIES = np.array([-1.8, 0.7, 0.5, 0.3, np.log(8.0)])  # the last: eight sales at mean prices


def sales(weeks: int) -> tuple[np.ndarray, np.ndarray]:
    """Centred log own price, log rival's price, log income and promotion (weeks, 4), and units sold (weeks,)."""
    draw = np.random.default_rng(0)
    own, rival, income = draw.normal(0, (0.4, 0.4, 0.3), (weeks, 3)).T
    columns = np.column_stack([own, rival + 0.5 * own, income, draw.random(weeks) < 0.25])  # prices move together
    columns = columns - columns.mean(axis=0)
    return columns, draw.poisson(np.exp(columns @ ELASTICITIES[:4] + ELASTICITIES[4]))


def problem(data: str | None = None, label: str | int | None = None, examples: int = 1000) -> Problem:
    if examples < 10:
        raise ValueError(f"examples={examples}: need at least 10")
    columns, counts = sales(examples) if data is None else datasets.load_table(data, label)
    if counts.min() < 0 or counts.sum() == 0:
        raise ValueError("the label must hold counts: none below 0, not all 0")
    design = np.column_stack([columns - columns.mean(axis=0), np.ones(len(counts))])
    train, holdout = datasets.split({"X": design, "y": counts.astype(np.float64)})

    def loss(w, data):
        score = data["X"] @ w
        return jnp.mean(jnp.exp(score) - data["y"] * score)

    return Problem(
        init=lambda key: jnp.zeros(design.shape[1]),
        loss=loss,
        data=train,
        examples=len(train["y"]),
        minimum=datasets.poisson_minimum(train["X"], train["y"]),
        gradient=lambda w, data: data["X"].T @ (jnp.exp(data["X"] @ w) - data["y"]) / len(data["y"]),
        holdout=holdout,
        metrics={"rmse": lambda w, data: jnp.sqrt(jnp.mean((jnp.exp(data["X"] @ w) - data["y"]) ** 2))},
    )
