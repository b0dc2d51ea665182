"""A long copy task, online: exact RTRL against truncated backpropagation.

    python examples/copy_rtrl.py --steps 60000 --delay 20

A symbol is shown, and asked for after a pause. The stream never ends, and the networks are updated
at every step that has an answer. RTRL's gradient reaches back over any pause at the same memory;
TBPTT(k) sees k steps and has nothing to learn from where the pause is longer.
"""

import argparse

import torch
from torch import nn

import rtrl_ext as rx

SYMBOLS = 4


def train(rule: rx.rules.Rule, steps: int, delay: int, units: int, lr: float) -> list[float]:
    """Share of right answers of every answer's rows."""
    torch.manual_seed(0)
    batch = 16
    net, readout = rx.GRU(SYMBOLS + 1, units, rule=rule), nn.Linear(units, SYMBOLS)
    optimizer = torch.optim.Adam([*net.parameters(), *readout.parameters()], lr=lr)
    state, shares = net.init_state(batch), []
    symbol = torch.zeros(batch, dtype=torch.long)
    for t in range(steps):
        at = t % (delay + 2)
        x = torch.zeros(batch, SYMBOLS + 1)
        if at == 0:
            symbol = torch.randint(SYMBOLS, (batch,))
            x[torch.arange(batch), symbol] = 1
        if at == delay + 1:
            x[:, -1] = 1  # the question
        y, state = net.step(x, state)
        if at == delay + 1:
            logits = readout(y)
            loss = nn.functional.cross_entropy(logits, symbol)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shares.append(float((logits.argmax(1) == symbol).float().mean()))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--delay", type=int, default=20)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--k", type=int, default=5, help="of TBPTT")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--plot", help="a PNG of the share of right answers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for rule in (rx.rules.RTRL(), rx.rules.TBPTT(args.k)):
        shares = train(rule, args.steps, args.delay, args.units, args.lr)
        found[repr(rule)] = shares
        last = shares[-max(1, len(shares) // 10) :]
        print(f"{rule!r:<10} right answers {sum(last) / len(last):.3f} in the last tenth "
              f"(chance {1 / SYMBOLS:.3f})")  # fmt: skip
    if args.plot:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4))
        for name, shares in found.items():
            axes.plot(torch.tensor(shares).unfold(0, 20, 1).mean(1), label=name)
        axes.axhline(1 / SYMBOLS, color="grey", linestyle=":")
        axes.set_xlabel("answer")
        axes.set_ylabel("right answers (mean of 20)")
        axes.legend()
        figure.savefig(args.plot, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
