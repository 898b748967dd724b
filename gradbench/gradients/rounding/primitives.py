"""The rounding error of each primitive's result: the only place where it is modelled.

A result `y` computed in a format of unit roundoff u and smallest spacing s is modelled as y + e, where e is uniform in
[-a, a] and a is, by class of primitive:

- exact (copies, selections, comparisons, negation, integers): 0;
- one correctly rounded operation (add, sub, mul, a narrowing conversion): u|y| + s/2 (Higham, Accuracy and Stability of
  Numerical Algorithms, 2002, section 2.2), where s/2 is the underflow term, the smallest normal number on a device
  that flushes subnormals;
- two roundings (div, sqrt: a compiler may turn them into a reciprocal or an estimate and a multiplication): 2u|y|;
- a power by a whole number p: p multiplications, pu|y|; of one whose exponents are data the half of the variance that
  equal factors share, the same for all powers of a number, where they are whole;
- an elementary function: 8u|y|, that is 4 units in the last place, the largest error in the table of the CUDA C++
  Programming Guide (Mathematical Functions) over the single-precision functions used here; half of it is shared
  (below);
  Where the formula that XLA expands it to rounds within, so much more (`within`): 2^x is exp(x ln 2), sinh and cosh are
  exp(x - ln 2) far out, erfc is 1 - erf(x) and exp(-x^2) times something, and a sigmoid is 1 / (1 + exp(-x)), which is
  0 where exp(-x) is beyond the range (`tests/gradients/test_check_elementary.py` tries every number of 16 bits);
- a special function: the laws of `special`;
- a polynomial of degree n by Horner's rule: 2nu sum_i |c_i| |x|^i (Higham 2002, section 5.1);
- a sum S of k terms x_i: u sqrt(k (M + Q/6) + Q) + u|S|. Addition i rounds the partial sum S_i, so the error is
  sum_i d_i S_i with independent d_i of unit u (Higham and Mary, A new approach to probabilistic rounding error
  analysis, 2019) and its square is u^2 sum_i S_i^2. M is the mean of S_i^2 over a few partial sums taken in the order
  of the array, which sees a drift; kQ/6, with Q = sum_i x_i^2, is what a sequence in random order adds to it; the last
  Q is the rounding of each term. Terms that are all equal (S^2 = kQ) round the same way all through a binade: the d_i
  are then one d, and the error sqrt(k) times that. Of running sums each S_i is a result, and its error is that of the
  additions up to it, which later sums share; products and running logarithms of sums likewise (`special`);
- a convolution on an accelerator may be taken by transforms of tiles of the image (Winograd; FFT). Then each entry's
  error is that of products of whole transforms, whatever its own terms are, on entries that are 0 too: a second e, of a
  sum whose terms are the kernel's entries times the root mean square of the image. (An FFT x -> X of P points has
  sum |X|^2 = P sum x^2, so the inverse transform of products, each off by u |X| |W|, is off by
  u sqrt(sum x^2 sum w^2 / P); Higham 2002, section 24.1. Barabasz et al., Error analysis and improving the accuracy of
  Winograd convolution, 2020, find the like of small tiles.)

Errors e drawn entry by entry average out in a norm or a scale. Roundings that entries share do not:

- x / y may be x times the rounded reciprocal of y, so e has a second part u|x/y| drawn by y: a constant or a sum that
  divides every entry moves all of them alike, in every division by it;
- x + c lies between two numbers of the format as far as c does, for every x that is a multiple of their distance: all
  such sums of a binade have one error. So e has two parts, each of u|y|/sqrt(2): drawn by one operand and what the
  other leaves modulo the result's spacing, and the reverse;
- a compiler multiplies constants together, c1 (c2 x) = (c1 c2) x, and rounds their product once for all entries: a
  product with a constant that is no power of two has a part u|y| drawn by the constant. A program may do so with
  numbers that it is given, (x a) b = x (a b): a product with a number that many entries share, of what is a product
  with such a number already, has a part u|y| drawn by it (`orders.Folding`);
- a sum of sums may be added up in another order, whose partial sums are rounded instead: (x + a) + b is x + (a + b).
  Of k addends with Q = sum_i x_i^2 the j first in a random order have a mean square of
  Q j (k - j) / (k (k - 1)) + S^2 j (j - 1) / (k (k - 1)). Summed over j = 2 to k - 1 the first part is
  Q (k - 2) (k + 3) / (6 k); the second is that of a sum that grows in any order, the written one too. Each sum has as
  much of it as its operands do not have already, and once more for all entries if a number that many entries share is
  added to a sum with such a number (`orders.Folding`). Addends are followed through what only moves numbers
  (`orders.Sums`); of what a loop carries they are not known, and count as two that cancel;
- the error of an elementary function is a fixed function of its argument, and near arguments share it: half of the 8u
  are drawn by the exponent and the first four further bits of the result (measured over a million normal numbers on a
  CPU, the mean relative error of tanh, erf, atan and rsqrt is 0.1 to 0.5 u). Formats narrower than float32 compute it
  in float32, so there this part is float32's.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from jax import lax

from gradbench.gradients.rounding.numbers.arrays import jnp
from gradbench.gradients.rounding.numbers.formats import Format, format_of


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


EXACT = names(
    "neg abs sign copy copy_p reshape squeeze expand_dims broadcast_in_dim transpose slice dynamic_slice "
    "dynamic_update_slice concatenate pad rev select_n gather iota max min reduce_max reduce_min clamp stop_gradient "
    "real imag conj complex is_finite split sort argmax argmin and or not xor floor ceil round eq ne lt le gt ge "
    "eq_to le_to lt_to scatter reduce_and reduce_or reduce_xor population_count clz top_k device_put cummax cummin "
    "optimization_barrier name pvary reduce_precision reduce_window_max reduce_window_min shift_left "
    "shift_right_logical shift_right_arithmetic select_and_gather_add scatter_max scatter_min empty full "
    "scatter-max scatter-min random_bits random_wrap random_unwrap random_seed random_fold_in random_split "
    "random_clone threefry2x32 dynamic_gather tile nextafter lu_pivots_to_permutation sharding_constraint mesh_cast "
    "reshard convert_element_type bitcast_convert_type empty2 dce_sink create_token copysign unstack stack"
)
OF_MODULUS = frozenset(["abs", "sign"])  # exact of a real number; of a complex one they take sqrt(x^2 + y^2)
MODULUS_UNITS = 4.0  # two squares, a sum, a root, half of whose relative error is theirs; and the quotient of sign
ONE_ROUNDING = frozenset(["add", "sub", "mul", "add_any", "square", "rem"])
ADDITIONS = frozenset(["add", "sub", "add_any"])
TWO_ROUNDINGS = frozenset(["div", "sqrt"])
ELEMENTARY = names(
    "exp exp2 log log2 log1p expm1 tanh logistic sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc "
    "pow rsqrt cbrt"
)
EXPANDED = names("exp2 sinh cosh erfc logistic")  # of them, by XLA into formulas that round: `within`
SUMS = names(
    "reduce_sum dot_general conv_general_dilated scatter-add scatter_add scatter-sub scatter_sub cumsum "
    "reduce_window_sum select_and_scatter_add"
)
SCATTERS = SUMS & names("scatter-add scatter_add scatter-sub scatter_sub")
PRODUCTS = frozenset(["reduce_prod", "cumprod", "scatter_mul", "scatter-mul", "cumlogsumexp"])
# Backward stable: the result is exact for an input changed normwise by about sqrt(n) u (Higham 2002, chapters 8 to 10
# and 19). `fft` is stable normwise too (section 24.1), with log2(n) in place of sqrt(n), which is smaller.
BACKWARD_STABLE = names(
    "cholesky triangular_solve lu qr geqrf householder_product eigh svd eig schur tridiagonal_solve hessenberg "
    "tridiagonal fft"
)
DECISIONS = frozenset(["lt", "le", "gt", "ge", "sign", "floor", "ceil", "round", "eq", "ne"])
SELECTIONS = frozenset(["sort", "argmax", "argmin", "top_k"])  # their integer results tell what was selected

ELEMENTARY_UNITS = 8.0
SHARED_UNITS = 4.0  # the part of them that near arguments share
RECIPROCAL = 2**20  # the salt of every reciprocal: equal divisors are rounded alike wherever they divide
PARTIAL_SUMS = 4
COMBINERS = {
    "scatter": lambda old, new: new,
    "scatter_add": lax.add,
    "scatter_sub": lax.sub,
    "scatter_mul": lax.mul,
    "scatter_min": lax.min,
    "scatter_max": lax.max,
}


def units(name: str, params: dict[str, Any]) -> float | None:
    """The error of an elementwise primitive in units of roundoff of its result; None if it is not elementwise."""
    if name in ONE_ROUNDING:
        return 1.0
    if name in TWO_ROUNDINGS:
        return 2.0
    if name == "integer_pow":
        return float(abs(params["y"]))
    return ELEMENTARY_UNITS if name in ELEMENTARY else None


def within(name: str, x: Any, exact: Any, form: Format) -> Any:
    """What roundings within an elementary function's formula add to its error, absolute; 0 for most. `x` and `exact`
    are its argument and result, `form` the format that it is computed for, in float32 if that is narrower."""
    unit = min(form.unit, format_of(np.float32).unit)
    if name == "exp2":  # in 16 bits its product is rounded to them
        return 2 * math.log(2) * form.unit * jnp.abs(x) * jnp.abs(exact)
    if name in ("sinh", "cosh"):
        apart = 1.0 if jnp.iscomplexobj(exact) else 0.0  # (exp(x) - exp(-x)) / 2 also near 0
        return unit * (jnp.abs(x) * jnp.abs(exact) + apart)
    if name == "erfc":
        far = jnp.clip(x, 0.0, 40.0)  # it underflows before
        return unit * jnp.where(jnp.abs(x) < 1, 4 * jnp.abs(1 - exact), far * far * exact)
    return 1 / form.largest if name == "logistic" else 0.0


def factors(exponent: Any, digits: int) -> Any:
    """How many a product has that gives a power: 0 where the exponent is no whole number."""
    size = jnp.abs(exponent)
    return jnp.where((size == jnp.round(size)) & (size < 2.0**digits), size, 0.0)


def sum_terms(name: str, params: dict[str, Any], operands: list[Any]) -> float | None:
    """k: how many terms one entry of a sum has (for a scatter, at most); None where that is not known."""
    if name == "reduce_sum":
        return float(math.prod(operands[0].shape[axis] for axis in params["axes"]))
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return float(math.prod(operands[0].shape[axis] for axis in contracted))
    if name == "conv_general_dilated":
        kernel = operands[1].shape
        return float(math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]])
    if name == "cumsum":
        return float(operands[0].shape[params["axis"]])
    if name in ("reduce_window_sum", "select_and_scatter_add"):
        return float(math.prod(params["window_dimensions"]))
    if name in SCATTERS:
        return float(math.prod(operands[1].shape[:-1])) + 1
    return None


def sum_amplitude(name: str, bind: Any, params: dict[str, Any], operands: list[Any], total: Any) -> Any:
    """sqrt(k (M + Q/6) + Q) of the module's docstring, in the shape of `total`; to be multiplied by u.

    `bind(operands)` runs the primitive itself; `operands` and `total` are float64 arrays without noise.
    """
    if name in SCATTERS:
        operand, indices, updates = operands
        zero = jnp.zeros_like(operand)
        squares = operand * operand + jnp.abs(bind([zero, indices, updates * updates]))
        k = jnp.abs(bind([zero, indices, jnp.ones_like(updates)]))
        # Where the terms land is data, so no order is known: random order, M = S^2/3.
        independent = jnp.sqrt(
            k * (total * total / 3 + operand * operand + squares / 6) + jnp.where(k > 0, squares, 0.0)
        )
        return independent * _alike(total - operand, k, squares - operand * operand)
    if name == "select_and_scatter_add":
        k = sum_terms(name, params, operands) or 1.0
        squares = bind([operands[0] * operands[0], operands[1]])
        return jnp.sqrt(k * (total * total / 3 + squares / 6) + squares)
    if name == "cumsum":
        return jnp.sqrt(bind([operands[0] * operands[0]]))  # that of the partial sums: `Interpreter.accumulated`
    k = sum_terms(name, params, operands) or 1.0
    squares = bind([jnp.real(x * jnp.conj(x)) for x in operands])
    if k <= 1:
        return jnp.zeros_like(jnp.abs(total))
    mean = _mean_square_of_partial_sums(name, bind, params, operands)
    if mean is None:
        mean = jnp.abs(total) ** 2 / 3
    return jnp.sqrt((k - 1) * (mean + squares / 6) + squares) * _alike(total, k, squares)


def transform_amplitude(bind: Any, params: dict[str, Any], operands: list[Any]) -> Any:
    """The same for a convolution by transforms, in the shape of its result. Arguments as above."""
    numbers = params["dimension_numbers"]
    image, kernel = (jnp.real(x * jnp.conj(x)) for x in operands)
    mean = jnp.mean(image, axis=tuple(numbers.lhs_spec[2:]), keepdims=True)
    squares = bind([jnp.broadcast_to(mean, image.shape), kernel])
    most = jnp.max(squares, axis=tuple(numbers.out_spec[2:]), keepdims=True)  # a window at the border is smaller
    k = sum_terms("conv_general_dilated", params, operands) or 1.0
    return jnp.broadcast_to(jnp.sqrt((k - 1) * most / 6 + most), squares.shape)


def _alike(total: Any, k: Any, squares: Any) -> Any:
    """sqrt(k) where the k terms are all equal, else 1; 2^-40 is the rounding of these float64 sums."""
    return jnp.where(k * squares * (1 - 2.0**-40) <= jnp.abs(total) ** 2, jnp.sqrt(jnp.maximum(k, 1.0)), 1.0)


def _mean_square_of_partial_sums(name: str, bind: Any, params: dict[str, Any], operands: list[Any]) -> Any:
    """M: the mean square of PARTIAL_SUMS partial sums in the order of the first summed axis; None if it is not cut."""
    if name == "reduce_sum":
        axes = [params["axes"][0]] if params["axes"] else []
    elif name == "dot_general":
        (left, right), _ = params["dimension_numbers"]
        axes = [left[0], right[0]] if left else []
    else:
        return None
    if not axes or operands[0].shape[axes[0]] < PARTIAL_SUMS:
        return None
    size = operands[0].shape[axes[0]]
    edges = [round(i * size / PARTIAL_SUMS) for i in range(PARTIAL_SUMS + 1)]
    running, squares = 0.0, 0.0
    for start, stop in itertools.pairwise(edges):
        part = [x[(slice(None),) * axis + (slice(start, stop),)] for x, axis in zip(operands, axes)]
        running = running + bind(part)
        squares = squares + jnp.abs(running) ** 2
    return squares / PARTIAL_SUMS
