"""A band has room for every right way to differentiate what the reference computes."""

import jax
import jax.numpy as jnp
import pytest
from jax.lax import stop_gradient
from sampling import sample

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
    (logsumexp, lambda x: jax.nn.logsumexp(x, axis=-1), "float32", "n=65,d=67,random,410416"),
    (jax.nn.softmax, softmax, "bfloat16", "n=88,d=3,random,47247"),
    (softmax, jax.nn.softmax, "float32", "n=10,d=123,random,753430"),
    (softmax, jax.nn.softmax, "bfloat16", "n=10,d=123,random,807478"),
    (jax.nn.softmax, softmax, "float32", "n=88,d=3,random,561359"),
]


def ruled(function, backward):
    made = jax.custom_vjp(function)
    made.defvjp(lambda x: (function(x), (x, function(x))), lambda saved, ct: (backward(*saved, ct),))
    return made


def log_softmax(x):
    x = x - jnp.max(x, axis=-1, keepdims=True)
    return x - jnp.log(jnp.sum(jnp.exp(x), axis=-1, keepdims=True))


def norm(x):
    return jnp.sqrt(jnp.sum(x * x, axis=-1))


def scaled_norm(x, scale=lambda m: m, power=1):
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    return scale(largest[:, 0]) ** power * jnp.sqrt(jnp.sum((x / largest) ** 2, axis=-1))


ruled_softmax = ruled(softmax, lambda x, y, ct: y * (ct - jnp.sum(ct * y, axis=-1, keepdims=True)))
ruled_log_softmax = ruled(log_softmax, lambda x, y, ct: ct - jnp.exp(y) * jnp.sum(ct, axis=-1, keepdims=True))


def total(function):
    """Of a softmax it is 1, and its derivative 0."""
    return lambda x: jnp.sum(function(x, axis=-1) if function is jax.nn.softmax else function(x), axis=-1)


# Each was accused, by 1.1 to 6.5 bands: the maximum cancels in `mine`, and a rule of the reference, or a form without
# it, does not round there; or what cancels leaves nothing.
CANCELLING = [
    (softmax, ruled_softmax, "float32", "n=14,d=106,random,877826"),
    (scaled_norm, norm, "float64", "n=8,d=111,random,922359"),
    (total(softmax), total(ruled_softmax), "bfloat16", "n=1,d=133,random,934895"),
    (log_softmax, ruled_log_softmax, "bfloat16", "n=35,d=31,random,316318"),
    (scaled_norm, norm, "bfloat16", "n=8,d=111,random,635595"),
    (total(softmax), total(jax.nn.softmax), "float32", "n=10,d=123,random,21902"),
    (total(softmax), total(jax.nn.softmax), "bfloat16", "n=1,d=200,random,565622"),
]


def session(mine, reference, letters, dtype="float32"):
    source, _ = from_letters(letters, dtype)
    layout = Layout.of(source.case(source.base(), "random", 0).arguments, ("x",))
    flats, device = (layout.flat(mine), layout.flat(reference)), jax.devices()[0]
    return Session(*flats, source, layout, dtype, "highest", device, ("mine", "reference"))


@pytest.mark.parametrize(("mine", "reference", "dtype", "case"), sample(PAIRS, 2))
def test_a_gradient_through_the_maximum_and_one_without_are_both_right(mine, reference, dtype, case):
    judge = session(mine, reference, "x: f32[n,d]", dtype)
    judge.derivatives(judge.reference.at(judge.source.one(case), judge.layout, judge.device))
    assert {f.check: f.verdict for f in judge.findings} == dict.fromkeys(["vjp", "jvp", "vjp against jvp"], "PASS")


@pytest.mark.parametrize(("mine", "reference", "dtype", "case"), sample(CANCELLING, 3))
def test_the_rounding_of_a_derivative_that_cancels_is_no_fault(mine, reference, dtype, case):
    judge = session(mine, reference, "x: f32[n,d]", dtype)
    expected = judge.reference.at(judge.source.one(case), judge.layout, judge.device)
    judge.derivatives(expected)
    assert judge.findings
    assert [(f.check, f.reason) for f in judge.findings if f.off > 1] == []
    assert "FAIL" not in {f.verdict for f in judge.findings}


@pytest.mark.parametrize(
    ("mine", "reference"),
    sample(
        [
            (softmax, ruled(softmax, lambda x, y, ct: 1.001 * y * (ct - jnp.sum(ct * y, axis=-1, keepdims=True)))),
            (lambda x: scaled_norm(x, lambda m: m + 1e-3 * (m - stop_gradient(m))), norm),
            (lambda x: scaled_norm(x, power=1.001), norm),
            (ruled(softmax, lambda x, y, ct: 1.001 * y * (ct - jnp.sum(ct * y, axis=-1, keepdims=True))), softmax),
            (lambda x: scaled_norm(x, stop_gradient), norm),
        ],
        3,
    ),
)
def test_a_derivative_through_the_maximum_that_does_not_cancel_is_a_fault(mine, reference):
    judge = session(mine, reference, "x: f32[n,d]")
    judge.derivatives(judge.reference.at(judge.source.one("random,0"), judge.layout, judge.device))
    assert "FAIL" in {f.verdict for f in judge.findings}


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


def shifted_coarsely(x):
    """A logsumexp whose maximum, and so what is added up of its derivative, is in bfloat16."""
    top = jnp.max(x, axis=-1, keepdims=True).astype(jnp.bfloat16)
    first, rest = jnp.exp((x - top.astype(x.dtype))[:, :1]), jnp.exp(x[:, 1:] - top.astype(x.dtype))
    return top.astype(x.dtype)[:, 0] + jnp.log(first[:, 0] + jnp.sum(rest, axis=-1))


def scaled_coarsely(x):
    """A norm scaled by the cube of its maximum in bfloat16."""
    top = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.bfloat16).astype(x.dtype)
    return top[:, 0] ** 3 * jnp.sqrt(jnp.sum((x / top / top / top) ** 2, axis=-1))


@pytest.mark.parametrize(
    ("mine", "reference", "inputs"),
    sample(
        [
            (scaled_coarsely, lambda x: jnp.sqrt(jnp.sum(x * x, axis=-1)), "x: f32[n,d] in 1..2"),
            (shifted_coarsely, lambda x: jax.nn.logsumexp(x, axis=-1), "x: f32[n,d]"),
        ]
    ),
)
def test_a_maximum_in_a_coarser_format_gets_no_room(mine, reference, inputs):
    judge = session(mine, reference, inputs)
    judge.derivatives(judge.reference.at(judge.source.one("random,0"), judge.layout, judge.device))
    assert "FAIL" in {f.verdict for f in judge.findings}
