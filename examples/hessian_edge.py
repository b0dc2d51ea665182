"""The edge of the Hessian's spectrum before and after training, beside the limit of stability 2/η.

    python examples/hessian_edge.py --iterations 500

A small network learns to report the sign of the sum of its noisy input by plain gradient descent.
"""

import argparse

import torch
from torch import nn

import rtrl_ext as rx


class Integrator(nn.Module):
    """Leaky units and a readout of the last step."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rnn = rx.LeakyRNN(1, 32, leak=0.2, rule=rule)
        self.readout = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.rnn(x)[0][-1])


def report(when: str, model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Print loss, both ends of the spectrum with residual norms, and the trace."""
    loss_fn = nn.functional.cross_entropy
    hessian = rx.curvature.Hessian(model, loss_fn, data)
    with torch.no_grad():
        print(f"{when}: loss {float(loss_fn(model(data[0]), data[1])):.4f}, P = {hessian.shape[0]}")
    for which, name in (("LA", "largest"), ("SA", "smallest")):
        found = hessian.eigsh(k=3, which=which, tol=1e-3)
        shown = ", ".join(
            f"{value:.4g} (residual {residual:.1g})"
            for value, residual in zip(found.values, found.residual_norms, strict=True)
        )
        print(f"  {name} eigenvalues: {shown}; {found.num_products} products")
    trace = hessian.trace(num_products=60, seed=0)
    print(f"  trace {trace.value:.4g}, standard error {trace.stderr:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--rule", default="bptt", help="bptt, eprop, snap1, ...")
    options = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(30, 256, 1)
    data = (x, (x.sum((0, 2)) > 0).long())
    model = Integrator(options.rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
    report("before training", model, data)
    for _ in range(options.iterations):
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    report(f"after {options.iterations} iterations by {options.rule}", model, data)
    print(f"BPTT at this rate is stable below 2/η = {2 / options.lr:.4g}")


if __name__ == "__main__":
    main()
