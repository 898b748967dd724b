"""The rounding error of a special function, which is computed by a series or a fraction in at least float32.

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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_OF_ROUNDED = frozenset(["lgamma", "digamma", "erf_inv", "bessel_i0e", "bessel_i1e", "polygamma", "zeta"])
_GRADIENTS = frozenset(["igamma_grad_a", "random_gamma_grad"])
_GAMMA = frozenset(["igamma", "igammac"]) | _GRADIENTS
MARGIN, GRADIENT_MARGIN = 3.0, 20.0
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
