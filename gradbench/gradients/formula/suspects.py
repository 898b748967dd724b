"""What could be at fault in a wrong derivative: custom rules, and stop_gradients."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gradbench.errors import one_line
from gradbench.gradients.formula import oracle
from gradbench.program.xla.jaxprs import CustomRule, custom_rules

# (loss, params, data) -> a pytree, the loss's derivative.
Derivative = Callable[[Callable[[Any, Any], Any], Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Suspects:
    """The custom rules and stop_gradients of a loss, whose trace is `trace`, and the derivative without them.

    `derivative(loss, params, data)` is the derivative in question: the pytree of the gradient or of a Hessian-vector
    product.
    """

    trace: Any
    params: Any
    data: Any
    derivative: Derivative

    @classmethod
    def of(cls, trace: Any, point: oracle.Point) -> Suspects:
        return cls(trace, point.params, point.data, lambda loss, params, data: jax.grad(loss)(params, data))

    def judge(
        self, found: list[np.ndarray], names: list[str], agrees: Callable[[list[np.ndarray]], bool]
    ) -> tuple[str, str]:
        """(the finding, the culprit or ""): the culprit is what, taken out, makes `agrees` true.

        `found` are the flat leaves of the derivative with them.
        """
        findings, culprit = [], ""
        if rules := custom_rules(self.trace):
            try:
                native = self._native()
            except Exception as error:
                text = f"without its custom rules ({listed(rules)}) the loss has no derivative: {one_line(error)}"
                findings.append(text)
            else:
                differing = [n for n, a, b in zip(names, native, found) if not alike(a, b)]
                if differing:
                    text = f"without its custom rules ({listed(rules)}) the gradient of {', '.join(differing)} differs"
                    culprit = likely(rules) if agrees(native) else ""
                else:
                    text = f"without its custom rules ({listed(rules)}) the gradient is the same"
                findings.append(text)
        if "stop_gradient" in oracle.primitives(self.trace):
            findings.append("the loss has a stop_gradient")
            with contextlib.suppress(Exception):  # it may guard what has no derivative
                culprit = culprit or ("stop_gradient" if agrees(self._native(stops=False)) else "")
        return "; ".join(findings) or "no custom rule and no stop_gradient in the loss", culprit

    def _native(self, stops: bool = True) -> list[np.ndarray]:
        """The derivative with every custom rule stripped; without `stops`, stop_gradients too."""
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            params, data = oracle.float64(self.params), oracle.float64(self.data)

            def bare(params: Any, data: Any) -> Any:
                return oracle.widened(self.trace, (params, data), stops)[0]

            return [np.asarray(x) for x in jax.tree.leaves(self.derivative(bare, params, data))]


def listed(rules: Sequence[CustomRule]) -> str:
    return "; ".join(rule.name for rule in rules)


def likely(rules: Sequence[CustomRule]) -> str:
    """Of several rules the user's own, with their places; JAX's where there is no other."""
    own = [f"{rule.name} ({rule.place})" for rule in rules if rule.place]
    return " or ".join(own or [rule.name for rule in rules])


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to 1e-9 of the leaf's largest entry (the two ways round apart), NaN and infinity in the same places."""
    size = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
    return np.allclose(a, b, rtol=0, atol=1e-9 * size, equal_nan=True)
