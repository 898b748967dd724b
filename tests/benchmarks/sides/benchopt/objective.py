"""The loss of gradbench's quadratic_bowl and logistic_regression, as a benchopt objective."""

import numpy as np
from benchopt import BaseObjective


class Objective(BaseObjective):
    name = "loss"

    def set_data(self, kind, arrays):
        self.kind, self.arrays = kind, arrays

    def get_one_result(self):
        return {"params": np.zeros(self.arrays[0].shape[-1], np.float32)}

    def evaluate_result(self, params):
        if self.kind == "quadratic_bowl":
            return {"value": float(np.sum(self.arrays[0] * params * params))}
        design, labels = self.arrays
        margins = labels * (design @ params)
        return {"value": float(np.logaddexp(0, -margins).mean() + 0.5e-3 * params @ params)}

    def get_objective(self):
        return {"kind": self.kind, "arrays": self.arrays}
