"""What is used of JAX and XLA beyond their public interfaces is there, on this JAX."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import gradbench
from gradbench.machine import internals
from gradbench.machine.internals import compiler_options, kernels_per_row, quick_compile, setting
from gradbench.program.xla import jaxprs


def test_settings_are_those_in_force():
    with jax.default_matmul_precision("tensorfloat32"), jax.enable_x64(True):
        assert setting("jax_default_matmul_precision") == "tensorfloat32"
        assert setting("jax_enable_x64") is True
    assert setting("jax_num_cpu_devices") == -1 or setting("jax_num_cpu_devices") >= 1


def test_only_options_that_the_compiler_knows_are_left():
    known = {"xla_backend_optimization_level": 1}
    assert compiler_options("cpu", **known, xla_no_such_option=True) == known
    assert jax.jit(jnp.negative, compiler_options=known)(1.0) == -1.0


def test_an_option_that_a_compiler_no_longer_knows_leaves_the_others(monkeypatch):
    known = {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(internals, "_OPTIONS", {"cpu": known | {"xla_no_such_option": True}})
    assert internals._known.__wrapped__("cpu") == set(known)


def test_what_is_compiled_quickly_gives_the_same_numbers():
    def loss(x):
        return jnp.log(jnp.sum(jnp.exp(jnp.tanh(x)), axis=1)).mean()

    x = jax.random.normal(jax.random.key(0), (50, 7))
    quick = jax.jit(jax.value_and_grad(loss), compiler_options=quick_compile("cpu"))(x)
    # A few roundings an entry: sums of 7 and of 50, and functions within 2 units in the last place.
    for got, usual in zip(quick, jax.jit(jax.value_and_grad(loss))(x)):
        assert jnp.allclose(got, usual, rtol=1e-5, atol=1e-8)
    assert quick_compile("gpu") == {}


def test_kernels_are_those_of_a_loops_body_whatever_its_length():
    def counted(length, orders):
        def body(x, _):
            for _ in range(orders):
                x = jnp.sort(jnp.sin(x))  # sorts are not fused with one another
            return x, None

        loop = jax.jit(lambda x: jnp.cos(jax.lax.scan(body, jnp.cos(x), length=length)[0]))
        return kernels_per_row(loop.lower(jnp.ones(8)).compile().as_text())

    few, more = counted(100, 1), counted(100, 5)
    assert few >= 1
    assert 4 <= more - few <= 3 * 4  # a sort, a sine and perhaps a copy each
    assert counted(1000, 5) == more
    assert kernels_per_row(jax.jit(jnp.cos).lower(1.0).compile().as_text()) == 0


@pytest.mark.parametrize("combine", ["add", "multiply"])
def test_a_scatter_takes_another_combiner(combine):
    """What it is bound with then decides: of an array of 3s, where 5 is scattered, the combiner that was put there."""
    traced = jax.make_jaxpr(lambda x: getattr(x.at[0], combine)(5.0))(jnp.full(2, 3.0))
    scatter = next(e for e in traced.jaxpr.eqns if e.primitive.name.startswith("scatter"))
    held = jaxprs.open_jaxpr(scatter.params["update_jaxpr"])[0]
    assert [e.primitive.name for e in held.eqns] == ["add" if combine == "add" else "mul"]
    other = jax.make_jaxpr(lambda a, b: a - b)(0.0, 0.0)
    changed = jaxprs.with_combiner(scatter.params, other)
    assert type(changed["update_jaxpr"]) is type(scatter.params["update_jaxpr"])
    assert [e.primitive.name for e in jaxprs.open_jaxpr(changed["update_jaxpr"])[0].eqns] == ["sub"]


def test_internals_of_jax_are_used_in_one_place():
    package = Path(gradbench.__file__).parent
    private = re.compile(r"jax\._src|config\.values|get_bind_params|\.ctx\.manager|primitive\.bind\(")
    for file in package.rglob("*.py"):
        if not file.relative_to(package).as_posix().startswith(("machine/internals.py", "program/xla/")):
            text = ast.unparse(ast.parse(file.read_text(encoding="utf-8")))  # without comments
            assert not private.search(text), file
