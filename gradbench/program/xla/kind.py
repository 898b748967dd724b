"""What a loss is made of, as far as it decides how several trials are computed on a CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from gradbench.program.xla.jaxprs import equations

# What XLA:CPU leaves to LAPACK. Batches of them gain nothing, since a batch's matrices are taken one after another; and
# with several devices jax 0.10's wait for each other's threads for good.
FACTORISATIONS = {
    *("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu", "qr", "schur", "svd"),
    *("symmetric_product", "triangular_solve", "tridiagonal", "tridiagonal_solve"),
}


class Kind(NamedTuple):
    """
    products: there are matrix products or convolutions.
    matrices: all that is multiplied are matrices and vectors, as of examples and features: what a layout with examples
        last is for. With more axes, as of a sequence or an image, or products in batches, as of attention, features
        fill the vectors, and a product in another order costs the transposes that what lies between needs.
    alone: trials side by side gain nothing: matrices are factorised, or rows of parameters looked up, whose derivative
        XLA scatters entry by entry, more slowly for several trials than for each.
    """

    products: bool
    matrices: bool
    alone: bool

    @classmethod
    def of(cls, loss: Any, params: Any) -> Kind:
        """Of a traced loss and its parameters' shapes."""
        found = list(equations(loss))
        names = {equation.primitive.name for equation in found}
        products = [equation for equation in found if equation.primitive.name == "dot_general"]
        convolutions = "conv_general_dilated" in names
        tables = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim}
        looks_up = any(e.primitive.name == "gather" and e.invars[0].aval.shape in tables for e in found)
        return cls(
            products=bool(products) or convolutions,
            matrices=all(map(_of_matrices, products)) and not convolutions,
            alone=looks_up or not FACTORISATIONS.isdisjoint(names),
        )


def _of_matrices(product: Any) -> bool:
    _, (batch, _) = product.params["dimension_numbers"]
    return not batch and all(v.aval.ndim <= 2 for v in product.invars)
