"""PyTorch: an eager loop, torch.func.vmap over stacked trials, torch.compile of that. On a GPU where it sees one."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cases import Case, JudgedOnly, Side, short
from .torch_losses import LOSSES
from .updates import start, update

torch.backends.cudnn.allow_tf32 = False  # of convolutions; those of matrix products are float32 by default


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, device=device())


def loss_of(case: Case) -> Callable:
    """The same loss: a function of a dict of params."""
    loss = LOSSES[short(case.problem_name)]
    data = {k: tensor(v.astype(np.int64) if v.dtype.kind == "i" else v) for k, v in case.named_data.items()}
    return lambda params: loss(params, data)


class TorchLoop(JudgedOnly):
    name = "PyTorch loop"

    def __init__(self, case: Case):
        super().__init__(case)
        self.loss = loss_of(case)

    def run(self) -> tuple[float, np.ndarray]:
        losses, spent = [], 0.0
        for rate in self.case.rates[self.indices].tolist():
            params = {k: tensor(v).requires_grad_() for k, v in self.case.named_params.items()}
            optimizer = {
                "sgd": lambda p, r: torch.optim.SGD(p, lr=r),
                "momentum": lambda p, r: torch.optim.SGD(p, lr=r, momentum=0.9),
                "adam": lambda p, r: torch.optim.Adam(p, lr=r),
            }[self.case.optimizer_name](list(params.values()), rate)
            wait()
            began = time.perf_counter()
            for _ in range(self.case.steps):
                optimizer.zero_grad()
                loss = self.loss(params)
                loss.backward()
                optimizer.step()
            wait()
            spent += time.perf_counter() - began
            losses.append(float(loss.detach()))
        return spent, np.array(losses)


class TorchVmap(Side):
    name = "torch.func vmap"

    def __init__(self, case: Case):
        super().__init__(case)
        gradient = torch.func.vmap(torch.func.grad_and_value(loss_of(case)))
        count, optimizer = len(case.rates), case.optimizer_name
        self.params = {k: tensor(np.repeat(v[None], count, 0)) for k, v in case.named_params.items()}
        self.rates = {k: tensor(case.rates).reshape(-1, *(1,) * (p.ndim - 1)) for k, p in self.params.items()}

        def step(params, state, rates, number):
            grads, losses = gradient(params)
            return *update(optimizer, params, grads, state, rates, number), losses

        self.step = self.prepared(step)
        self.numbers = list(torch.arange(1.0, case.steps + 1, device=device()).unbind())

    def prepared(self, step: Callable) -> Callable:
        return step

    def run(self) -> tuple[float, np.ndarray]:
        params, state = self.params, start(self.case.optimizer_name, self.params)
        wait()
        began = time.perf_counter()
        # vmap has no rule for the fused attention of a CPU, and would run one trial after another.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for number in self.numbers:
                params, state, losses = self.step(params, state, self.rates, number)
        wait()
        return time.perf_counter() - began, losses.cpu().numpy()


class TorchCompile(TorchVmap):
    name = "torch.compile"

    def prepared(self, step: Callable) -> Callable:
        torch._dynamo.reset()  # each build compiles anew
        return torch.compile(step, dynamic=False, fullgraph=True)
