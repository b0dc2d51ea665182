"""E-prop on evidence accumulation with spiking units, online.

    python examples/evidence_eprop.py --updates 400 --plot evidence.png

Cues come from the left or from the right, then a pause, then the network has to say on which side
there were more: it must hold a count over the pause, which adaptive thresholds can (Bellec et al.
2018, 2020). Units are stepped one by one; steps without a loss cost little, the traces are brought
up to date when the decision is asked for. Beside it the same network without credit through time
(`Immediate`).
"""

import argparse

import torch
from torch import nn

import rtrl_ext as rx

CUES, LENGTH, GAP, PAUSE, DECISION = 5, 6, 3, 30, 5  # steps
INPUTS = 20  # left, right, "decide", background: a quarter of the lines each


def episodes(batch: int, noise: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Input spikes (T, B, INPUTS) and the side with more cues (B,)."""
    sides = torch.randint(2, (CUES, batch), generator=noise)
    steps = CUES * (LENGTH + GAP) + PAUSE + DECISION
    rate = torch.zeros(steps, batch, 4)
    rate[:, :, 3] = 0.1
    for i, side in enumerate(sides):
        start = i * (LENGTH + GAP)
        rate[start : start + LENGTH, torch.arange(batch), side] = 0.4
    rate[-DECISION:, :, 2] = 0.4
    rate = rate.repeat_interleave(INPUTS // 4, 2)
    return (torch.rand(rate.shape, generator=noise) < rate).float(), (
        sides.sum(0) > CUES / 2
    ).long()


def train(rule: str, updates: int, batch: int, lr: float) -> list[float]:
    """Share of right decisions of every update's episodes."""
    torch.manual_seed(0)
    noise = torch.Generator().manual_seed(1)
    half = torch.zeros(60)
    half[30:] = 0.3  # half of the units adapt, half don't
    net = rx.ALIF(INPUTS, 60, tau_v=10.0, tau_a=80.0, beta=half, v_th=0.6, rule=rule)
    with torch.no_grad():
        net.weight_ih_l0.mul_(4)
    readout = nn.Linear(60, 2)
    optimizer = torch.optim.Adam([*net.parameters(), *readout.parameters()], lr=lr)
    shares = []
    for _ in range(updates):
        x, side = episodes(batch, noise)
        state = net.init_state(batch)
        total, votes = torch.zeros(()), torch.zeros(batch, 2)
        for t in range(len(x)):
            z, state = net.step(x[t], state)
            if t >= len(x) - DECISION:
                logits = readout(z)
                total = total + nn.functional.cross_entropy(logits, side) / DECISION
                votes += logits.detach().softmax(1)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        shares.append(float((votes.argmax(1) == side).float().mean()))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--plot", help="a PNG of the share of right decisions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for rule in ("eprop", "immediate"):
        found[rule] = shares = train(rule, args.updates, args.batch, args.lr)
        first, last = (sum(part) / len(part) for part in (shares[:20], shares[-20:]))
        print(
            f"{rule:<9} right decisions {first:.3f} in the first 20 updates, {last:.3f} in the last"
        )
    if args.plot:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4))
        for rule, shares in found.items():
            axes.plot(torch.tensor(shares).unfold(0, 10, 1).mean(1), label=rule)
        axes.axhline(0.5, color="grey", linestyle=":")
        axes.set_xlabel("update")
        axes.set_ylabel("right decisions (mean of 10 updates)")
        axes.legend()
        figure.savefig(args.plot, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
