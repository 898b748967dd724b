"""Losses as users write them, all with right gradients: `ZOO[name].problem()`. Run by `python tests/run_zoo.py`."""

import importlib

from zoo.entries import ZOO

__all__ = ["ZOO"]

GROUPS = (
    "kinks",
    "scales",
    "recurrent",
    "convolutional",
    "attention",
    "likelihoods",
    "sorting",
    "factorisations",
    "embeddings",
    "physics",
    "structures",
)

for group in GROUPS:
    importlib.import_module(f"zoo.{group}")
