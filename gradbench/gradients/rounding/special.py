"""The rounding error of special functions, of products of many factors and of what runs along an axis.

A special function is computed by a series or a fraction in at least float32.
`amplitude` gives it in units of roundoff of the format of the computation, up to the factor ELEMENTARY_UNITS of
`primitives`; narrower formats round the result once more. A law says how the error grows with the arguments. Its size
depends on the library's series, and is measured: over 600,000 points for each function, in float32 on a
CPU with jax 0.10.1 (`python tests/benchmarks/special_functions.py`), the largest error is 0.23 to 1.43 times the law,
and 10.1 times for igamma_grad_a, where x is near a. MARGIN and GRADIENT_MARGIN are about twice that. The laws:

- a function f of a rounded argument: |f| + |x f'(x)|, the second part because each begins by forming something of its
  argument (1 - x^2 of erf_inv, pi x of a reflection) that is rounded. lgamma and digamma add up terms that are not
  small where the result is (Lanczos's sum, Press et al., Numerical Recipes, section 6.1): 1 + |x| and 1 more. So does
  bessel_i1e, x times a sum of Chebyshev polynomials: |x| / 16 up to x = 8.
- the incomplete gamma functions: a prefactor exp(a log x - x - log Gamma(a)) times a series for P, or a fraction for
  Q = 1 - P where x > 1 and x > a (section 6.2). The exponent's absolute error, L = 1 + |a log x| + x + a + |log
  Gamma(a)|, is a relative one of the part that is computed so, and the other is 1 minus it: both are off by L times
  that part. Derivatives by a are of the same terms: times the derivative of the exponent, plus as much again, 1 +
  |log x| + |digamma(a)|.
- the incomplete beta function: likewise, with x^a (1 - x)^b / B(a, b) and the fraction for I where
  x < (a + 1) / (a + b + 2), for 1 - I elsewhere (section 6.4). It takes O(sqrt(max(a, b))) iterations, each of which
  rounds: 24 + sqrt(max(a, b)) in place of the 1, where 24 is what small a and b take.

What runs along an axis is made of steps whose errors all later results share (`accumulated`): results y_j of terms x_j,

- sums: step j is off by u|y_j|, and so are all later results;
- products, also those of a whole axis: each step is off by u of its result, and by what that loses by underflow (no
  more than all of it), and all later results by as much of theirs; half of the variance is drawn by x_j, for a product
  of equal factors in any order has equal errors in its equal parts;
- logarithms of sums of exponentials: y_j = M + log1p(exp(-|d|)), where M is the larger of y_(j-1) and x_j, is off by
  u(|y_j| + 1) + 16u(y_j - M): u of the sum 1 + exp(-|d|), 8u of the exponential, which moves the logarithm by
  exp(-|d|) / (1 + exp(-|d|)) <= y_j - M, and 8u of the logarithm. Half of the variance is shared by steps that add
  nearly the same number below the spacing of the result, and round the same way. Later results are off by
  exp(y_j - y_i) of that. Taken at once, as m + log(sum exp(x_j - m)), where m is the largest term of all, or of those
  so far, y_i has u|y_i| + 16u(y_i - M_i + m - M_i) once more, M_i the largest so far, and 8u where m > M_i: then no
  exponential is that of 0, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from gradbench.gradients.rounding.numbers import noise
from gradbench.gradients.rounding.numbers.arrays import jnp
from gradbench.gradients.rounding.numbers.formats import Format

_OF_ROUNDED = frozenset(["lgamma", "digamma", "erf_inv", "bessel_i0e", "bessel_i1e", "polygamma", "zeta"])
_GRADIENTS = frozenset(["igamma_grad_a", "random_gamma_grad"])
_GAMMA = frozenset(["igamma", "igammac"]) | _GRADIENTS
MARGIN, GRADIENT_MARGIN = 3.0, 20.0
STEP_UNITS = 16.0
IN_STEPS = frozenset(["cumsum", "cumprod", "cumlogsumexp", "reduce_prod"])
SPECIAL = _OF_ROUNDED | _GAMMA | {"regularized_incomplete_beta"}


def amplitude(name: str, bind: Callable[[Sequence[Any]], Any], operands: Sequence[Any], result: Any) -> Any:
    """The error, in the shape of `result`. `bind(operands)` runs the primitive; all are float64 without noise."""
    margin = GRADIENT_MARGIN if name in _GRADIENTS else MARGIN
    return margin * law(name, bind, operands, result)


def law(name: str, bind: Callable[[Sequence[Any]], Any], operands: Sequence[Any], result: Any) -> Any:
    """The same without the margin."""
    if name in _OF_ROUNDED:
        *orders, x = operands  # polygamma(n, x) and zeta(s, x)
        if name == "zeta":  # JAX has no derivative of it
            slope = orders[0] * x * bind([orders[0] + 1, x])
        else:
            slope = jax.jvp(lambda moved: bind([*orders, moved]), (x,), (x,))[1]
        added = {"lgamma": 1 + jnp.abs(x), "digamma": 1.0, "bessel_i1e": jnp.minimum(jnp.abs(x), 8) / 16}
        return jnp.abs(result) + jnp.abs(slope) + added.get(name, 0.0)
    if name in _GAMMA:
        a, x = operands
        exponent = 1 + jnp.abs(a * lax.log(x)) + x + a + jnp.abs(lax.lgamma(a))
        off = exponent * jnp.where((x > 1) & (x > a), lax.igammac(a, x), lax.igamma(a, x))
        if name in _GRADIENTS:
            off = off * (1 + jnp.abs(lax.log(x)) + jnp.abs(lax.digamma(a)))
        if name == "random_gamma_grad":  # divided by the density
            off = off * lax.exp(x + lax.lgamma(a) - (a - 1) * lax.log(x))
        return jnp.abs(result) + jnp.where(x > 0, off, 0.0)
    a, b, x = operands
    gammas = sum(t + jnp.abs(lax.lgamma(t)) for t in (a, b, a + b))
    turns = 24 + jnp.sqrt(jnp.maximum(a, b))
    exponent = turns + jnp.abs(a * lax.log(x)) + jnp.abs(b * lax.log1p(-x)) + gammas
    part = jnp.where(x < (a + 1) / (a + b + 2), result, 1 - result)
    return jnp.abs(result) + jnp.where((x > 0) & (x < 1), exponent * part, 0.0)


def accumulated(
    name: str, params: dict[str, Any], terms: Any, exact: Any, form: Format, underflow: float, draw: Callable[..., Any]
) -> Any:
    """The errors of results that run along an axis, or of products, from those of their steps, which all later results
    share: `draw(of, amplitude, *picks)` gives noise of that amplitude, drawn by each of `picks` in equal parts, where
    `of` is finite and not 0."""
    if name == "cumsum":
        size = form.unit * jnp.where((terms == 0) | (exact == terms), 0.0, jnp.abs(exact))
        if jnp.iscomplexobj(exact):
            return _running(jnp.cumsum, params, draw(exact, size, exact))
        place = noise.place_on_grid(exact, terms, jnp.zeros_like(exact), form.digits)  # multiples of their spacing
        return _running(jnp.cumsum, params, draw(exact, size * noise.direction(exact), exact, place))
    if name in ("cumprod", "reduce_prod"):
        if name == "reduce_prod":
            terms = _in_line(terms, params["axes"])
            so_far = jnp.cumprod(terms, axis=-1)
        shifts = (jnp.abs(jnp.frexp(jnp.real(terms))[0]) == 0.5) & (jnp.imag(terms) == 0)
        if name == "reduce_prod":
            size = jnp.where(so_far == terms, 0.0, jnp.where(shifts, 0.0, form.unit) + _lost(so_far, underflow))
            steps = jnp.sum(draw(jnp.ones_like(terms), size, terms, noise.places(terms)), axis=-1)
            return jnp.where(jnp.isfinite(exact), exact * steps, 0.0)
        size = jnp.where(exact == terms, 0.0, jnp.where(shifts, 0.0, form.unit) + _lost(exact, underflow))
        steps = draw(jnp.where(exact == 0, 1.0, exact), size, exact, terms)
        return jnp.where(jnp.isfinite(exact), exact * _running(jnp.cumsum, params, steps), 0.0)
    before = _running(_shifted, params, exact)
    gained = jnp.where(jnp.isfinite(exact), exact - jnp.maximum(before, terms), 0.0)
    size = jnp.where(exact == terms, 0.0, form.unit * (jnp.abs(exact) + 1 + STEP_UNITS * gained))
    axis = params["axis"] - params["rank"]
    largest = jnp.max(jnp.where(jnp.isfinite(exact), exact, -np.inf), axis=axis, keepdims=True, initial=-np.inf)
    weight = jnp.where(jnp.isfinite(exact), jnp.exp(exact - jnp.where(jnp.isfinite(largest), largest, 0.0)), 0.0)
    lost = gained < 2 * form.unit * jnp.abs(exact)  # what is added to multiples of a larger spacing
    drawn = draw(jnp.where(exact == 0, 1.0, exact), size, exact, jnp.where(lost, noise.leading(gained), terms))
    summed = _running(jnp.cumsum, params, drawn * weight)
    return jnp.where(weight > 0, summed / jnp.where(weight > 0, weight, 1.0), drawn)


def from_largest(params: dict[str, Any], terms: Any, exact: Any) -> Any:
    """How far logarithms of running sums of exponentials lie above the largest term so far, and that below the largest
    of all, where it does with half a one more: the error of all exponentials, the largest so far included."""
    so_far = lax.cummax(jnp.asarray(terms), axis=params["axis"], reverse=params["reverse"])
    so_far = so_far if isinstance(exact, jax.Array) else np.asarray(so_far)
    finite = jnp.isfinite(exact) & jnp.isfinite(so_far)
    largest = jnp.max(
        jnp.where(jnp.isfinite(terms), terms, -np.inf), axis=params["axis"], keepdims=True, initial=-np.inf
    )
    below = jnp.where(finite, largest - jnp.where(finite, so_far, 0.0), 0.0)
    return jnp.where(finite, exact - so_far, 0.0) + below + jnp.where(below > 0, 0.5, 0.0)


def _lost(product: Any, underflow: float) -> Any:
    """What a product may lose by underflow, of itself."""
    size = jnp.abs(product)
    return jnp.minimum(underflow, size) / jnp.maximum(size, 1e-320)


def _in_line(terms: Any, axes: Sequence[int]) -> Any:
    """The terms with those of these axes along the last one."""
    kept = [axis for axis in range(terms.ndim) if axis not in axes]
    return jnp.transpose(terms, (*kept, *axes)).reshape(*(terms.shape[axis] for axis in kept), -1)


def _running(function: Callable[..., Any], params: dict[str, Any], values: Any) -> Any:
    """`function(values, axis=)` along the axis of a running primitive, in its direction; samples lead."""
    axis = params["axis"] - params["rank"]
    turned = jnp.flip(values, axis) if params["reverse"] else values
    found = function(turned, axis=axis)
    return jnp.flip(found, axis) if params["reverse"] else found


def _shifted(values: Any, axis: int) -> Any:
    """Each entry the one before it, the first -inf."""
    first = jnp.full_like(jnp.take(values, jnp.arange(min(1, values.shape[axis])), axis=axis), -np.inf)
    return jnp.concatenate([first, jnp.take(values, jnp.arange(values.shape[axis] - 1), axis=axis)], axis=axis)
