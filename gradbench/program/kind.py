"""The properties of a loss that decide how several trials are computed on a CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from gradbench.program.xla.jaxprs import equations
from gradbench.program.xla.products import suits_images_last

# XLA:CPU calls LAPACK for these. Batching gains nothing, since a batch's matrices are taken one after another; and with
# several devices jax 0.10 deadlocks: they wait for each other's threads.
FACTORISATIONS = {
    *("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu", "qr", "schur", "svd"),
    *("symmetric_product", "triangular_solve", "tridiagonal", "tridiagonal_solve"),
}


class Kind(NamedTuple):
    """
    products: there are matrix products or convolutions.
    matrices: all products are of matrices and vectors, such as examples × features: a layout with examples last is for
        these. With more axes (a sequence, an image) or batches of products (attention) features fill the vector
        registers, and products in another order cost transposes for the operations between them.
    images: there are convolutions, which are taken with their images last (products.py), and other products are of
        matrices: the same layout, for one trial too.
    alone: batching trials gains nothing: matrices are factorised, or rows of parameters looked up, whose derivative XLA
        scatters entry by entry, more slowly in a batch than trial by trial.
    loops: there are loops of known length, as over a sequence (xla/loops.py).
    """

    products: bool
    matrices: bool
    images: bool
    alone: bool
    loops: bool = False

    @classmethod
    def of(cls, loss: Any, params: Any) -> Kind:
        """The kind of a loss traced on a batch, with its parameters' shapes."""
        found = list(equations(loss))
        names = {equation.primitive.name for equation in found}
        products = [equation for equation in found if equation.primitive.name == "dot_general"]
        convolutions = "conv_general_dilated" in names
        tables = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim}
        looks_up = any(e.primitive.name == "gather" and e.invars[0].aval.shape in tables for e in found)
        return cls(
            products=bool(products) or convolutions,
            matrices=all(map(_of_matrices, products)) and not convolutions,
            images=all(map(_of_matrices, products)) and suits_images_last(loss),
            alone=looks_up or not FACTORISATIONS.isdisjoint(names),
            loops="scan" in names,
        )

    def relayout(self, lanes: int, platform: str) -> bool:
        """Whether a program of so many trials side by side takes its products along the examples (layout.py)."""
        return platform == "cpu" and (self.images or (self.matrices and lanes > 1))


def _of_matrices(product: Any) -> bool:
    _, (batch, _) = product.params["dimension_numbers"]
    return not batch and all(v.aval.ndim <= 2 for v in product.invars)
