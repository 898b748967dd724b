"""Custom rules by themselves: against the primal differentiated natively, and by differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sample

import gradbench

X = np.array([0.3, -0.8, 1.2])


def reverse(function, backward):
    made = jax.custom_vjp(function)
    made.defvjp(lambda *x: (function(*x), x), backward)
    return made


def forward(function, rule):
    made = jax.custom_jvp(function)
    made.defjvp(rule)
    return made


def cube(x):
    return x * x * x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def power(x, n):
    return x**n


power.defvjp(lambda x, n: (x**n, x), lambda n, x, ct: (n * x ** (n - 1) * ct,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def always_two(x, n):
    return x**n


always_two.defvjp(lambda x, n: (x**n, x), lambda n, x, ct: (2 * x * ct,))


def in_a_scan(rule):
    """The rule inside a loop's body, where it is found too."""
    return lambda x: jax.lax.scan(lambda c, a: (0.5 * c + rule(a), c), jnp.zeros((), x.dtype), x)[0]


right_cube = reverse(cube, lambda saved, ct: (3 * saved[0] ** 2 * ct,))
wrong_cube = reverse(cube, lambda saved, ct: (3 * saved[0] * ct,))
RIGHT = {
    "reverse": (right_cube, (X,)),
    "forward": (forward(cube, lambda x, t: (cube(x[0]), 3 * x[0] ** 2 * t[0])), (X,)),
    "nondiff": (power, (X, 3)),
    "in a scan": (in_a_scan(right_cube), (X,)),
    "linear solve": (lambda a, b: jnp.linalg.solve(a, b), (np.eye(3) * 2 + np.ones((3, 3)), X)),
}
WRONG = {
    "reverse": (wrong_cube, (X,), "vjp"),
    "forward": (forward(cube, lambda x, t: (cube(x[0]), 2 * x[0] ** 2 * t[0])), (X,), "jvp"),
    "nondiff": (always_two, (X, 3), "vjp"),
    "in a scan": (in_a_scan(wrong_cube), (X,), "vjp"),
    "another value": (forward(cube, lambda x, t: (1.01 * cube(x[0]), 3 * x[0] ** 2 * t[0])), (X,), "jvp"),
    "structure": (reverse(cube, lambda saved, ct: ct), (X,), "vjp"),
    "dtype and shape": (reverse(cube, lambda saved, ct: (ct[:1],)), (X,), "vjp"),
}


@pytest.mark.parametrize("name", sample(RIGHT, 2))
def test_a_right_rule_passes(name):
    function, arguments = RIGHT[name]
    report = gradbench.check_function(function, *arguments, dtype="float32", case="random,0")
    assert report.verdict == "PASS", str(report)
    assert report.formula


@pytest.mark.parametrize("name", sample(WRONG, 2))
def test_a_wrong_rule_is_found(name):
    function, arguments, what = WRONG[name]
    report = gradbench.check_function(function, *arguments, dtype="float32", case="random,0")
    assert report.verdict == "FAIL"
    assert what in {row.check for row in report.rows if row.verdict == "FAIL"}
    if name not in ("structure", "dtype and shape"):
        assert "FAIL" in {test.verdict for test in report.formula}


def product(symbolic):
    """x y with a forward rule that is handed symbolic zeros, or that mistakes one for a tangent."""
    made = jax.custom_jvp(lambda x, y: x * y)

    def rule(primals, tangents):
        x, y = primals
        dx, dy = tangents
        none = jax.custom_derivatives.SymbolicZero
        if isinstance(dx, none) and isinstance(dy, none):
            return x * y, jnp.zeros_like(x)
        if isinstance(dx, none) or isinstance(dy, none):
            along = dy * x if isinstance(dx, none) else dx * y
            return x * y, along if symbolic else 2 * along
        return x * y, dx * y + dy * x

    made.defjvp(rule, symbolic_zeros=True)
    return made


def test_a_rule_is_tried_with_symbolic_zeros():
    assert gradbench.check_function(product(True), X, X + 1, dtype="float32", case="random,0").verdict == "PASS"
    report = gradbench.check_function(product(False), X, X + 1, dtype="float32", case="random,0")
    assert [r.program for r in report.rows if r.verdict == "FAIL"] == ["of x alone", "of y alone"]


@pytest.mark.thorough
def test_a_users_linear_solve():
    def solve(transpose):
        def run(a, b):
            def inverse(a):
                return lambda matvec, b: jnp.linalg.inv(a) @ b

            return jax.lax.custom_linear_solve(lambda x: a @ x, b, inverse(a), inverse(a.T if transpose else a))

        return run

    a = np.array([[2.0, 1.0], [0.5, 3.0]])
    options = {"dtype": "float32", "case": "given,0"}
    assert gradbench.check_function(solve(True), a, X[:2], **options).verdict == "PASS"
    report = gradbench.check_function(solve(False), a, X[:2], **options)
    assert next(test for test in report.formula if test.name == "finite differences").verdict == "FAIL"
