"""torch.autograd.gradcheck and gradgradcheck, at their defaults, of JAX functions."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of arrays -> a tuple of arrays, all of one floating dtype.
Arrays = Callable[..., tuple[jax.Array, ...]]


def objects(function: Arrays, arrays: Sequence[Any], dtype: str, order: int = 1) -> bool | None:
    """Whether gradcheck (gradgradcheck, of `order` 2) does not accept the function's VJP (and its VJP's) at these
    arrays; None without torch, or where the function has no such derivative."""
    try:
        import torch
    except ImportError:
        return None
    kind = getattr(torch, dtype)
    derivative, given = function, [jax.ShapeDtypeStruct(np.shape(x), dtype) for x in arrays]
    try:
        for _ in range(order):
            outputs = jax.eval_shape(derivative, *given)
            derivative, given = _vjp(derivative, len(given)), [*given, *outputs]
        jax.eval_shape(derivative, *given)
    except (jax.errors.TracerArrayConversionError, ValueError):
        return None
    tensors = [torch.tensor(np.asarray(x, np.float64)).to(kind).requires_grad_() for x in arrays]
    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return not check(_ported(function, len(arrays), dtype).apply, tensors)
        except Exception:  # it raises GradcheckError, and RuntimeError where it refuses a dtype
            return True


def _vjp(function: Arrays, inputs: int) -> Arrays:
    """Of so many inputs and the cotangents of the outputs."""

    def vjp(*both: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(function, *both[:inputs])[1](tuple(both[inputs:]))

    return vjp


def _ported(function: Arrays, inputs: int, dtype: str) -> Any:
    """An autograd.Function that calls JAX, and whose backward pass is one of its VJP."""
    import torch

    call, kind = jax.jit(function), getattr(torch, dtype)

    @functools.cache
    def derivative(outputs: int) -> Any:
        return _ported(_vjp(function, inputs), inputs + outputs, dtype)

    class Ported(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            ctx.save_for_backward(*tensors)
            found = call(*(jnp.asarray(t.detach().to(torch.float64).numpy(), dtype) for t in tensors))
            return tuple(torch.tensor(np.asarray(x, np.float64)).to(kind) for x in found)

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            return derivative(len(cotangents)).apply(*ctx.saved_tensors, *cotangents)

    return Ported
