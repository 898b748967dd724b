"""What a gradient of the wrong scale says about the fault."""

from __future__ import annotations

import math


def meaning(beta: float, examples: int | None, tolerance: float) -> str:
    """What a scale beta = <g, g*>/<g*, g*> other than 1 says, or the empty string."""
    if not math.isfinite(beta):
        return ""
    named = {
        -1.0: "the sign is flipped",
        0.0: "blocked: a stop_gradient, or the leaf is zeroed",
        2.0: "a factor counted twice?",
        0.5: "a factor 1/2 too many?",
        -2.0: "the sign is flipped and a factor counted twice?",
    }
    if examples and examples > 2:
        n = examples
        named |= {
            float(n): f"a sum over the {n} examples where a mean is meant?",
            1.0 / n: f"divided by the {n} examples twice?",
            n / (n - 1): f"divided by n-1 instead of n = {n}?",
            (n - 1) / n: f"divided by n+1, or one of the {n} examples lost?",
        }
    for value, text in sorted(named.items(), key=lambda item: abs(item[0] - beta)):
        if abs(beta - value) <= max(tolerance, 1e-4 * abs(value)) and abs(value - 1) > 2 * tolerance:
            return text
        break
    if abs(beta) > 1.005:
        return f"{beta:.4g} times too large"
    return f"{beta:.4g} of what it should be" if 0.005 < abs(beta) < 0.995 else ""
