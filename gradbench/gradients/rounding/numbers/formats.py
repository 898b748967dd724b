"""Floating-point formats and precision classes: the units every tolerance of the check is made of."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.gradients.rounding.numbers.arrays import holds
from gradbench.inputs.specs.checks import PRECISIONS


@dataclasses.dataclass(frozen=True)
class Format:
    """A floating-point format by its numbers.

    Attributes:
        unit: the unit roundoff, the largest relative error of one rounding to nearest (2^-24 for float32).
        tiny: the smallest normal number.
        spacing: the distance between subnormal numbers.
        largest: the largest finite number.
        digits: significant bits, the hidden one included.
    """

    name: str
    unit: float
    tiny: float
    spacing: float
    largest: float
    digits: int


@functools.cache
def format_of(dtype: Any) -> Format:
    """The Format of a real or complex dtype (a complex one has the format of its parts)."""
    info = jnp.finfo(dtype)
    digits = int(info.nmant) + 1
    tiny = float(info.tiny)
    return Format(str(info.dtype), 2.0**-digits, tiny, tiny * 2.0 ** (1 - digits), float(info.max), digits)


# 10 explicit bits of significand and a hidden one (NVIDIA A100 white paper, 2020); bfloat16: 7 and a hidden one.
INPUT_UNIT = {"tf32": 2.0**-11, "bf16": 2.0**-8, "full": 0.0}


def input_class(precision: str, device: jax.Device) -> str:
    """How matrix products of float32 on `device` may round their inputs: "full", "tf32" or "bf16".

    A CPU multiplies in full float32 whatever is asked. A GPU may use TF32 for `tf32` and for `default` (it does from
    compute capability 8.0 on; before, it computes in full and is held to the wider band). A TPU's default is one
    bfloat16 pass, and its three-pass mode is at least as fine as TF32.
    """
    if precision == "highest" or device.platform == "cpu":
        return "full"
    if precision == "default" and device.platform == "tpu":
        return "bf16"
    return "tf32"


def precision_word(precision: Any) -> str:
    """ "highest", "tf32" or "default" from a primitive's precision parameter."""
    text = str(precision).upper()
    if "HIGHEST" in text or ("F32_F32" in text and "TF32" not in text and "BF16" not in text):
        return "highest"
    return "tf32" if "HIGH" in text or "TF32" in text else "default"


def has_few_digits(array: np.ndarray, form: Format) -> bool:
    """Whether each number, or each part of it, needs at most half the format's digits. A subnormal number has few
    digits left, so that few digits do not show that it is exact."""

    def one(part: np.ndarray) -> bool:
        return bool(np.all(holds(form.digits // 2, part) & ((np.abs(part) >= form.tiny) | (part == 0))))

    return one(array.real) and one(array.imag)


def precision_context(precision: str):
    """A context in which programs are traced with this precision class for matrix products."""
    return jax.default_matmul_precision(PRECISIONS[precision])


def x64_context(dtype: str):
    """float64 exists only where JAX's x64 mode is on; the other dtypes are traced as a user meets them."""
    return jax.enable_x64(dtype == "float64")


@functools.cache
def flushes_subnormals(dtype: str, device: jax.Device) -> bool:
    """True where `device` turns subnormal results of `dtype` into zero (XLA's CPU backend does for float32)."""
    with x64_context(dtype), jax.default_device(device):
        smallest = jnp.asarray(format_of(dtype).tiny, dtype)
        return not float(smallest * jnp.asarray(0.5, dtype)) > 0


def round_to(array: Any, dtype: str) -> np.ndarray:
    """`array` rounded to `dtype`, as a NumPy array of that dtype (float64 never passes through float32)."""
    with np.errstate(over="ignore"):  # too large becomes infinite, as on any device
        return np.asarray(array).astype(jnp.dtype(dtype))
