"""A PyTorch function against a JAX reference: the same cases and bands, with torch's own programs and derivatives.

Arrays cross by DLPack. Integers arrive as int64, by which torch indexes; floats in the dtype under test.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbench.errors import ProblemError, error_text
from gradbench.gradients.functions.cases import Case
from gradbench.gradients.functions.expected import Expected
from gradbench.gradients.functions.session import Session
from gradbench.gradients.second.products import OVER

EAGER, COMPILED = "eager", "torch.compile"
_MODES = ("vjp", "jvp", OVER[1])  # what torch's autograd is asked for


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ProblemError("torch: PyTorch is not installed (pip install torch)") from error


class TorchFunction:
    """A function of tensors, or an nn.Module, as `check_function` takes it: `check_function(TorchFunction(f), x,
    reference=plain)`.

    A module is called with its own parameters, in the dtype under test; or, if the first argument is a dict of arrays
    by its parameters' names, with those, which are then differentiated too. Raises ProblemError where PyTorch is not
    installed or a module's class cannot be called without arguments.
    """

    def __init__(self, function: Any):
        self._torch = _torch()
        if isinstance(function, type):
            try:
                function = function()
            except Exception as error:
                raise ProblemError(
                    f"{function.__name__}: cannot be made without arguments: {error_text(error)}"
                ) from error
        self._module = function
        self._run: Callable[..., Any] = self._plain
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        with contextlib.suppress(TypeError, ValueError):
            self.__signature__ = inspect.signature(getattr(function, "forward", function))

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)

    def _plain(self, *arguments: Any) -> Any:
        module = self._module
        if isinstance(module, self._torch.nn.Module) and arguments and isinstance(arguments[0], dict):
            return self._torch.func.functional_call(module, arguments[0], arguments[1:])
        return module(*arguments)

    def session(self, **options: Any) -> TorchSession:
        """The session that judges it; options as of `Session`."""
        return TorchSession(self, **options)

    def cast(self, dtype: Any) -> Any:
        """The function; for a module a copy whose parameters have this torch dtype."""
        is_module = isinstance(self._module, self._torch.nn.Module)
        return copy.deepcopy(self._module).to(dtype) if is_module else self._module

    @contextlib.contextmanager
    def by(self, how: str, function: Any, precision: str) -> Generator[None]:
        """Calls within go through program `how` of `function`, as `cast` gave it, with a module's parameters on its
        device and float32 products of this precision. All is restored afterwards."""
        before = self._module, self._torch.get_float32_matmul_precision()
        try:
            if how == COMPILED:
                self._run = self._compiled
            elif how != EAGER and isinstance(function, self._torch.nn.Module):
                function = copy.deepcopy(function).to(how)
            self._module = function
            self._torch.set_float32_matmul_precision("highest" if precision == "highest" else "high")
            yield
        finally:
            self._run, (self._module, products) = self._plain, before
            self._torch.set_float32_matmul_precision(products)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        return self._torch.compile(self._plain)


class TorchSession(Session):
    """A torch function in one dtype. Its programs are eager, torch.compile and, where there is a GPU, eager there."""

    def __init__(self, function: TorchFunction, *, dtype: str, **options: Any):
        self._torch, self._function = _torch(), function
        self._cast = function.cast(getattr(self._torch, dtype))
        super().__init__(dtype=dtype, **options)

    def _trace(self, base: Case) -> Any:
        return None  # nothing of it is JAX's

    def _has(self, mode: str, base: Case) -> bool:
        """Whether torch has this derivative: tried once, with ones."""
        if mode not in _MODES:
            self.skipped[mode] = "not done with PyTorch"
            return False
        expected = self.reference.at(base, self.layout, self.device)
        try:
            self._call(mode, EAGER, expected)
        except Exception as error:
            text = error_text(error)
            # Where torch would differentiate it but raises, its rule is at fault.
            if mode == "vjp" and self._differentiable(base):
                self._fail(self._finding(mode, EAGER, base), f"its backward raises {text}")
            else:
                self.skipped[mode] = f"{self.names[0]} has none: {text}"
            return False
        return True

    def _differentiable(self, base: Case) -> bool:
        as_given = self._function.by(EAGER, self._cast, self.precision)
        with self._context(), as_given, contextlib.suppress(Exception):
            floats, others = self._place(base)
            return any(x.requires_grad for x in self.mine([x.requires_grad_() for x in floats], others))
        return False

    def _every_program(self, expected: Expected) -> None:
        """torch.compile and the GPU, at the first case."""
        programs = ["cuda"] if self._torch.cuda.is_available() else []
        try:
            if not self.fast:
                self._call("value", COMPILED, expected)
                programs.append(COMPILED)
        except Exception as error:  # no compiler, or code that it cannot compile
            self.skipped[COMPILED] = error_text(error)
        for how in programs:
            for check in (check for check in self.checks[:2] if check in expected.parts):
                self.judge(check, how, expected)

    def _build(self, check: str, how: str, only: int | None) -> Callable[..., Any]:
        run = {"value": self._value, "vjp": self._vjp, "jvp": self._jvp, OVER[1]: self._product}[check]

        def program(floats: list[Any], rest: Any) -> list[np.ndarray]:
            where = "cpu" if how in (EAGER, COMPILED) else how

            def there(x: Any) -> Any:
                return (x if isinstance(x, self._torch.Tensor) else self._tensor(x)).to(where)

            with self._function.by(how, self._cast, self.precision), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's warnings about itself
                return [self._host(x) for x in run(*jax.tree.map(there, (floats, rest)))]

        return program

    def _value(self, floats: list[Any], others: list[Any]) -> list[Any]:
        with self._torch.no_grad():
            return self.mine(floats, others)

    def _outputs(self, floats: list[Any], others: list[Any]) -> list[Any]:
        return [x for x in self.mine(floats, others) if x.is_floating_point()]

    def _vjp(self, floats: list[Any], rest: Any) -> list[Any]:
        own = [x.detach().requires_grad_() for x in floats]
        outputs = self._outputs(own, rest[0])
        return [*outputs, *self._back(outputs, own, rest[1])]

    def _jvp(self, floats: list[Any], rest: Any) -> list[Any]:
        def of(*own: Any) -> tuple[Any, ...]:
            return tuple(self._outputs(list(own), rest[0]))

        outputs, along = self._torch.func.jvp(of, tuple(floats), tuple(rest[1]))
        return [*outputs, *along]

    def _product(self, floats: list[Any], rest: Any) -> list[Any]:
        """Reverse over reverse."""
        others, (cotangents, tangents) = rest
        own = [x.detach().requires_grad_() for x in floats]
        gradient = self._back(self._outputs(own, others), own, cotangents, create_graph=True)
        return self._back(gradient, own, tangents)

    def _back(self, outputs: list[Any], own: list[Any], cotangents: list[Any], create_graph: bool = False) -> list[Any]:
        """The cotangents of `own`; 0 where no output depends on it."""
        pairs = [(o, c) for o, c in zip(outputs, cotangents) if o.requires_grad]
        if not pairs:
            raise TypeError("no output depends on a float argument in a way that torch differentiates")
        found = self._torch.autograd.grad(
            [o for o, _ in pairs], own, [c for _, c in pairs], create_graph=create_graph, allow_unused=True
        )
        return [self._torch.zeros_like(x) if g is None else g for g, x in zip(found, own)]

    def _place(self, case: Case) -> tuple[list[Any], list[Any]]:
        return jax.tree.map(self._tensor, self.layout.split(case.arguments))

    def _tensor(self, x: Any) -> Any:
        """A new tensor with the numbers of an array."""
        array = np.asarray(x)
        given = jnp.asarray(array) if array.dtype == jnp.bfloat16 else np.array(array)  # NumPy's has no DLPack
        tensor = self._torch.from_dlpack(given).clone()
        whole = not tensor.is_floating_point() and tensor.dtype != self._torch.bool
        return tensor.to(self._torch.int64) if whole else tensor

    def _host(self, array: Any) -> np.ndarray:
        """A tensor's numbers as NumPy's."""
        tensor = self._torch.as_tensor(array).detach().cpu().resolve_conj().contiguous()
        narrow = tensor.dtype == self._torch.bfloat16
        return np.asarray(jax.dlpack.from_dlpack(tensor)) if narrow else tensor.numpy()
