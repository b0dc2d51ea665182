"""Sharpness along training within 5 % of its time, then the spectrum and a slice of the loss.

    python examples/sharpness_along_training.py --rule eprop --plot sharpness.png

A small network learns the sign of the sum of its noisy input. `SharpnessTracker` logs the Hessian's
leading eigenvalue λ₁, its trace, the factor ρ of the rule's gradient and ηρλ₁, which gradient
descent keeps below 2 where it is stable. `--budget 0` sets no limit of time.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2500)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--rule", default="bptt", help="bptt, eprop, snap1, ...")
    parser.add_argument("--budget", type=float, default=0.05, help="share of the training time")
    parser.add_argument("--plot", metavar="PNG", help="draw everything (matplotlib)")
    options = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(30, 256, 1)
    data = (x, (x.sum((0, 2)) > 0).long())
    model, loss_fn = Integrator(options.rule), nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
    part = (data[0][:, :64], data[1][:64])  # the smaller, the more often within the budget
    tracker = rx.curvature.SharpnessTracker(
        model, loss_fn, part, lr=optimizer, every=options.every, budget=options.budget or None,
        tol=0.05, trace_products=10,
    )  # fmt: skip
    for step in range(options.iterations):
        record = tracker.update(step)
        if record is not None:
            print(
                f"step {step:5d}  λ₁ {record['lambda1']:8.4f}  trace {record['trace']:8.4f} ± "
                f"{record['trace_stderr']:.2g}  ρ {record['rho']:.3f}  "
                f"ηρλ₁ {record['eta_rho_lambda1']:.3f}"
            )
        loss = loss_fn(model(data[0]), data[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    share = tracker.measuring_seconds / max(tracker.training_seconds, 1e-9)
    print(f"measured {len(tracker.records)} times, {share:.1%} of the training time")

    density = rx.curvature.Hessian(model, loss_fn, data).spectral_density(8, 40, seed=0)
    low, high = density.quantile(0.05), density.quantile(0.95)
    print(f"{density}: nine tenths of the eigenvalues lie between {low:.3g} and {high:.3g}")
    plane = rx.curvature.landscape(model, loss_fn, data, "eigenvectors", 15, span=2.0)
    print(plane)
    if options.plot:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
        tracker.plot(axes[:, :2])
        density.plot(axes[0, 2])
        plane.plot(axes[1, 2])
        figure.savefig(options.plot, dpi=120)
        print(f"drawn: {options.plot}")


if __name__ == "__main__":
    main()
