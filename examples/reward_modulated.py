"""Learning from reward alone: eligibility traces times a reward-prediction error.

    python examples/reward_modulated.py --updates 400 --plot reward.png

A cue is shown, a delay passes, then the network acts; only the reward, 1 or 0, tells whether the
action fitted the cue. Every synapse keeps e-prop's eligibility trace, the policy's log-probability
gives the learning signal, and one number for the whole network, reward minus its running average,
is the third factor (Bellec et al. 2020; Williams 1992). The readout is fixed: what is learned is
learned in the recurrent network. In the control the third factors of a batch's episodes are dealt
out at random: same numbers, no learning.
"""

import argparse

import torch
from torch import nn

import rtrl_ext as rx

ACTIONS = 3
CUE, DELAY = 3, 8  # steps


class Policy(nn.Module):
    """Leaky units and a fixed readout of the last step, as logits of the actions."""

    def __init__(self, units: int = 64) -> None:
        super().__init__()
        self.rnn = rx.LeakyRNN(ACTIONS + 1, units, leak=0.2)
        self.readout = nn.Linear(units, ACTIONS, bias=False).requires_grad_(False)
        nn.init.normal_(self.readout.weight, std=units**-0.5)

    def forward(self, x: torch.Tensor) -> torch.distributions.Categorical:
        output, _ = self.rnn(x)  # x (T, B, ACTIONS + 1)
        return torch.distributions.Categorical(logits=self.readout(output[-1]))


def episodes(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (T, B, ACTIONS + 1), noisy: a cue, a delay, a go signal; and the cues (B,)."""
    cues = torch.randint(ACTIONS, (batch,))
    x = 0.1 * torch.randn(CUE + DELAY + 1, batch, ACTIONS + 1)
    x[:CUE, torch.arange(batch), cues] += 1
    x[-1, :, -1] += 1
    return x, cues


def train(updates: int, batch: int, lr: float, shuffled: bool) -> list[float]:
    """Mean reward of every update's episodes."""
    torch.manual_seed(0)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.rnn.parameters(), lr=lr)
    baseline, rewards = 1 / ACTIONS, []
    for _ in range(updates):
        x, cues = episodes(batch)
        with torch.no_grad():  # play: the reward comes after the action
            actions = policy(x).sample()
        reward = (actions == (cues + 1) % ACTIONS).float()
        error = reward - baseline
        if shuffled:
            error = error[torch.randperm(batch)]
        policy.rnn.rule = rx.rules.EProp(modulator=error.expand(len(x), batch))
        optimizer.zero_grad()
        (-policy(x).log_prob(actions).mean()).backward()  # learn: traces and third factor
        optimizer.step()
        rewards.append(float(reward.mean()))
        baseline += 0.1 * (rewards[-1] - baseline)
    return rewards


def smooth(values: list[float], width: int) -> torch.Tensor:
    """Running means over ``width`` updates, or over all if there are fewer."""
    return torch.tensor(values).unfold(0, min(width, len(values)), 1).mean(-1)


def plot(curves: dict[str, list[float]], path: str) -> None:
    """Reward by update, as a picture; needs matplotlib (the extra [curvature])."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 3.5), layout="constrained")).subplots()
    for name, rewards in curves.items():
        axes.plot(smooth(rewards, 20), label=name)
    axes.axhline(1 / ACTIONS, color="#8a8f98", linestyle=":", label="chance")
    axes.set(xlabel="update", ylabel="mean reward", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64, help="episodes for each update")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--plot", metavar="FILE", help="draw the rewards (needs matplotlib)")
    options = parser.parse_args()
    curves = {}
    for name in ("reward-prediction error", "shuffled (control)"):
        shuffled = name.startswith("shuffled")
        curves[name] = train(options.updates, options.batch, options.lr, shuffled)
        first, *_, last = smooth(curves[name], 20).tolist() * 2
        print(f"{name}: mean reward {first:.3f} in the first 20 updates, {last:.3f} in the last 20")
    print(f"chance: {1 / ACTIONS:.3f}")
    if options.plot:
        plot(curves, options.plot)
        print(f"written: {options.plot}")


if __name__ == "__main__":
    main()
