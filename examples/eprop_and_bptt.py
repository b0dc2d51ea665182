"""e-prop beside BPTT on MNIST digits read row by row, and how well their gradients agree.

    python examples/eprop_and_bptt.py --iterations 400

Both networks start from the same weights and see the same batches. Needs the extra [study] for the
digits, or --data with a folder of MNIST's IDX files.
"""

import argparse

import torch
from torch import nn

import rtrl_ext as rx


class Classifier(nn.Module):
    """Leaky units that read a digit's rows, and a readout of the last step."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rnn = rx.LeakyRNN(28, 64, nonlinearity="relu", leak=0.5, rule=rule)
        self.readout = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(x)  # x (T, B, 28)
        return self.readout(output[-1])


def accuracy(model: nn.Module, task: rx.tasks.SequentialMNIST) -> float:
    """Share of the task's digits that the model names rightly."""
    with torch.no_grad():
        hits = sum(int((model(x).argmax(-1) == t).sum()) for x, t in task.loader(500))
    return hits / len(task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--data", help="folder of MNIST's IDX files")
    options = parser.parse_args()
    train = rx.tasks.SequentialMNIST("train", data=options.data)
    test = rx.tasks.SequentialMNIST("test", data=options.data)
    for rule in ("bptt", "eprop"):
        torch.manual_seed(0)
        model = Classifier(rule)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        batches = train.loader(64, shuffle=True, seed=0, drop_last=True).forever()
        print(f"{rule}: training for {options.iterations} iterations")
        for i in range(options.iterations + 1):
            x, target = next(batches)
            loss = train.loss_fn(model(x), target)
            if i % max(1, options.iterations // 4) == 0:
                found = rx.diagnostics.alignment(model, train.loss_fn, (x, target), rule="eprop")
                print(f"  {i:5d}  loss {float(loss.detach()):.3f}  e-prop against BPTT: "
                      f"rho {found.rho:.3f}, cosine {found.cosine:.3f}")  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        known, new = accuracy(model, train), accuracy(model, test)
        print(f"  accuracy: training {known:.3f}, test {new:.3f}")


if __name__ == "__main__":
    main()
