"""gradbench's default data: the bowl's 100 curvatures; breast cancer, standardised, with an intercept."""

import numpy as np
from benchopt import BaseDataset


class Dataset(BaseDataset):
    name = "data"
    parameters = {"kind": ["quadratic_bowl", "logistic_regression"]}  # noqa: RUF012

    def get_data(self):
        if self.kind == "quadratic_bowl":
            return {"kind": self.kind, "arrays": [np.geomspace(0.01, 1, 100).astype(np.float32)]}
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
        design = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
        return {"kind": self.kind, "arrays": [design.astype(np.float32), np.where(y == 1, 1, -1).astype(np.float32)]}
