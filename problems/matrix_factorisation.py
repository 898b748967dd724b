"""Matrix factorisation: loss = mean (u_i . v_j - r_ij)^2 / 2 over known ratings r_ij of item j by user i.

Every user and item has `rank` numbers, looked up as embeddings. Starts normal with standard deviation 0.1. Source:
Koren, Bell and Volinsky, Matrix Factorization Techniques for Recommender Systems (2009). The ratings are synthetic:
products of true factors, of variance 1, and noise of standard deviation 0.3; pairs are drawn at random. A tenth is held
out. Solved is the loss of the true factors, half the mean square of the noise drawn. A user's gradient is a mean over
all ratings, so gradient descent needs learning rates of about as many as there are users.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradbench import Problem, datasets

GROUP = "networks"


def problem(users: int = 200, items: int = 100, rank: int = 4, ratings: int = 8000) -> Problem:
    if min(users, items, rank) < 1 or ratings < 10:
        raise ValueError("need users, items and rank of at least 1, and at least 10 ratings")
    draw = np.random.default_rng(0)
    scale = rank**-0.25  # so that a product has variance 1
    true_users, true_items = draw.normal(0, scale, (users, rank)), draw.normal(0, scale, (items, rank))
    user, item = draw.integers(users, size=ratings), draw.integers(items, size=ratings)
    noise = draw.normal(0, 0.3, ratings)
    rating = np.sum(true_users[user] * true_items[item], axis=1) + noise
    train, holdout = datasets.split({"user": user, "item": item, "rating": rating, "noise": noise}, share=0.1)
    target = 0.5 * float(np.mean(train.pop("noise") ** 2))
    del holdout["noise"]

    def init(key):
        first, second = jax.random.split(key)
        return {
            "users": 0.1 * jax.random.normal(first, (users, rank)),
            "items": 0.1 * jax.random.normal(second, (items, rank)),
        }

    def loss(params, data):
        predicted = jnp.sum(params["users"][data["user"]] * params["items"][data["item"]], axis=1)
        return 0.5 * jnp.mean((predicted - data["rating"]) ** 2)

    return Problem(
        init,
        loss,
        train,
        examples=len(train["rating"]),
        target=target,
        holdout=holdout,
        metrics={"rmse": lambda params, data: jnp.sqrt(2 * loss(params, data))},
    )
