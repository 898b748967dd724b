"""Frozen suites of problems, search spaces, budgets and measured targets; their records; who stands where in them."""
