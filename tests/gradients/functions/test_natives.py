"""A band has room for every right way to differentiate what the reference computes."""

import jax
import jax.numpy as jnp
import pytest
from jax.lax import stop_gradient

from gradbench.gradients.functions import programs
from gradbench.gradients.functions.cases import from_letters
from gradbench.gradients.functions.programs import Layout
from gradbench.gradients.functions.session import Session


def softmax(x):
    e = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return e / jnp.sum(e, axis=-1, keepdims=True)


def logsumexp(x):
    largest = jnp.max(x, axis=-1)
    return largest + jnp.log(jnp.sum(jnp.exp(x - largest[:, None]), axis=-1))


@jax.custom_jvp
def relative_growth(x):
    return jnp.expm1(x) / x


@relative_growth.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return relative_growth(x), t * (0.5 + x / 3 + x**2 / 8)  # natively a difference of 1 / x and 1 / x


# Each was accused, by 2 to 9 bands: of a sum over a row that cancels to 0, or of a difference of nearly equal numbers.
PAIRS = [
    (softmax, jax.nn.softmax, "float32", "n=10,d=123,random,753430"),
    (softmax, jax.nn.softmax, "bfloat16", "n=10,d=123,random,807478"),
    (jax.nn.softmax, softmax, "float32", "n=88,d=3,random,561359"),
    (jax.nn.softmax, softmax, "bfloat16", "n=88,d=3,random,47247"),
    (logsumexp, lambda x: jax.nn.logsumexp(x, axis=-1), "float32", "n=65,d=67,random,410416"),
]


def session(mine, reference, letters, dtype="float32"):
    source, _ = from_letters(letters, dtype)
    layout = Layout.of(source.case(source.base(), "random", 0).arguments, ("x",))
    flats, device = (layout.flat(mine), layout.flat(reference)), jax.devices()[0]
    return Session(*flats, source, layout, dtype, "highest", device, ("mine", "reference"))


@pytest.mark.parametrize(("mine", "reference", "dtype", "case"), PAIRS)
def test_a_gradient_through_the_maximum_and_one_without_are_both_right(mine, reference, dtype, case):
    judge = session(mine, reference, "x: f32[n,d]", dtype)
    judge.derivatives(judge.reference.at(judge.source.one(case), judge.layout, judge.device))
    assert {f.check: f.verdict for f in judge.findings} == dict.fromkeys(["vjp", "jvp", "vjp against jvp"], "PASS")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * stop_gradient(jnp.sin(x)),
        lambda x: x + stop_gradient(jnp.round(x) - x),
        lambda x: x * jnp.max(x),
        lambda x: relative_growth(1e-3 * x),
    ],
)
def test_another_derivative_widens_no_band(function, monkeypatch):
    def spread():
        judge = session(function, function, "x: f32[n]")
        return judge.reference.at(judge.source.one("n=9,random,0"), judge.layout, judge.device).parts["vjp"].spread

    found = spread()
    monkeypatch.setattr(programs, "natives", lambda flat, trace: [])
    wanted = spread()
    assert (found.norm, found.along) == (wanted.norm, wanted.along)
    assert [x.tolist() for x in found.sigma] == [x.tolist() for x in wanted.sigma]


def test_a_fault_of_the_largest_entry_alone_is_found():
    mine = jax.custom_vjp(softmax)

    def backward(y, ct):
        right = y * (ct - jnp.sum(y * ct, axis=-1, keepdims=True))
        return (jnp.where(y == jnp.max(y, axis=-1, keepdims=True), 1.001 * right, right),)

    mine.defvjp(lambda x: (softmax(x),) * 2, backward)
    judge = session(mine, jax.nn.softmax, "x: f32[n,d]")
    judge.derivatives(judge.reference.at(judge.source.one("random,0"), judge.layout, judge.device))
    assert [f.verdict for f in judge.findings] == ["FAIL"]
