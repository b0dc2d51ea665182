"""One run of the quick study in eager PyTorch, written the usual way: loops over time and autograd.

Same data, initial values, batch order, optimizer and measurements as the library's run; none of its
recurrent code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .loops import loop_forward

RECURRENT = "weight_hh"


class EagerNetwork:
    """Leaky rate network (T, B, m) -> logits (B, classes) of the last step, as plain tensors."""

    def __init__(self, state: dict[str, Tensor], *, nonlinearity: str, leak: float) -> None:
        self.rnn = {
            name: state[f"rnn.{name}_l0"].detach().clone().requires_grad_()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        self.weight = state["readout.weight"].detach().clone().requires_grad_()
        self.bias = state["readout.bias"].detach().clone().requires_grad_()
        self.options: dict[str, Any] = {"nonlinearity": nonlinearity, "leak": leak}

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.rnn.values(), self.weight, self.bias]

    def __call__(self, x: Tensor, rule: str = "bptt") -> Tensor:
        params: Any = tuple(self.rnn.values())
        y = loop_forward(params, x, rule=rule, **self.options)
        return torch.nn.functional.linear(y[-1], self.weight, self.bias)


@dataclass
class Measurements:
    """What a run measured along the way beside the full training loss and gradient quality.

    products: {iteration: [(all parameters?, number of Hessian products), ...]}.
    tests: iterations at which the two test sets were evaluated.
    """

    products: dict[int, list[tuple[bool, int]]] = field(default_factory=dict)
    tests: list[int] = field(default_factory=list)


class EagerRun:
    """Trains an `EagerNetwork` by BPTT or EProp (detach) and measures what the study measures."""

    def __init__(
        self, net: EagerNetwork, settings: Any, data: Any, rule: str, batches: Iterable[Any]
    ) -> None:
        self.net, self.settings, self.data, self.rule = net, settings, data, rule
        self.batches = iter(batches)
        self.optimizer = torch.optim.SGD(
            net.parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.l2
        )
        self.loss_fn: Callable[[Tensor, Tensor], Tensor] = data.train.loss_fn
        self.losses: list[float] = []
        self.log: list[dict[str, float]] = []

    def step(self, iteration: int) -> None:
        x, target = next(self.batches)
        if iteration % self.settings.alignment_every == 0:
            self.alignment(x, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_fn(self.net(x, self.rule), target)
        self.losses.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def alignment(self, x: Tensor, target: Tensor) -> float:
        """rho: projection of the rule's gradient on the true one."""
        both = []
        for rule in {"bptt", self.rule}:
            loss = self.loss_fn(self.net(x, rule), target)
            g = torch.autograd.grad(loss, self.net.parameters)
            both.append(torch.cat([t.reshape(-1) for t in g]))
        true, rule_gradient = both[0], both[-1]
        return float(rule_gradient @ true / (true @ true))

    @torch.no_grad()
    def evaluate(self, task: Any) -> tuple[float, float]:
        loss = correct = 0.0
        for x, target in task.loader(500):
            out = self.net(x)
            loss += float(self.loss_fn(out, target)) * len(target)
            correct += float((out.argmax(-1) == target).sum())
        return loss / len(task), correct / len(task)

    def leading_eigenvalue(self, everything: bool, products: int) -> float:
        """Power iteration by double backward; the gradient's graph is built once."""
        x, target = self.data.train.batch(slice(0, self.settings.curvature_batch))
        params = self.net.parameters if everything else [self.net.rnn[RECURRENT]]
        loss = self.loss_fn(self.net(x), target)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        v = [torch.randn_like(p) for p in params]
        value = 0.0
        for _ in range(products):
            norm = torch.sqrt(sum(t.square().sum() for t in v))  # type: ignore[arg-type]
            v = [t / norm for t in v]
            hv = torch.autograd.grad(grads, params, v, retain_graph=True)
            value = float(sum((a * b).sum() for a, b in zip(v, hv, strict=True)))
            v = list(hv)
        return value

    def train(self, iterations: int, taken: Measurements) -> None:
        """`iterations` steps with the same measurements as another run took."""
        for i in range(iterations + 1):
            end = i == iterations
            if end or i % self.settings.eval_every == 0:
                row = {"iteration": i, "train_loss": self.evaluate(self.data.train)[0]}
                for _ in range(taken.tests.count(i)):
                    row["test_loss"] = self.evaluate(self.data.test)[0]
                    row["shift_loss"] = self.evaluate(self.data.shift)[0]
                for everything, products in taken.products.get(i, []):
                    self.leading_eigenvalue(everything, products)
                self.log.append(row)
            if not end:
                self.step(i)
