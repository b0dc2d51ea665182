"""Regression on a stream that never ends: constant memory, an update at every step.

    python examples/endless_stream.py --steps 1000000 --out endless

A fixed random network, the teacher, turns noise into a target that depends on inputs of many steps
ago. A smaller network of leaky units learns it online by RFLO (`EProp`): one step, one loss, one
update, for as long as one likes. Interrupted (Ctrl-C) or finished, it leaves a checkpoint from
which the same command goes on; `--plot` draws loss and memory over steps.
"""

import argparse
import json
import pathlib
import resource
import time

import torch
from torch import nn

import rtrl_ext as rx


def resident() -> float:
    """Memory of the process now, in MiB (its peak where the system doesn't tell)."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20


class Stream:
    """Teacher, learner and where they are."""

    def __init__(self, units: int, rule: str, batch: int) -> None:
        torch.manual_seed(0)
        self.batch = batch
        self.teacher = rx.LeakyRNN(4, 64, leak=0.1)
        self.target = nn.Linear(64, 1)
        for p in [*self.teacher.parameters(), *self.target.parameters()]:
            p.requires_grad_(False).mul_(2)
        self.net = rx.LeakyRNN(4, units, leak=0.1, rule=rule)
        self.readout = nn.Linear(units, 1)
        self.parameters = [*self.net.parameters(), *self.readout.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.02, momentum=0.9)
        self.states = [m.init_state(batch) for m in (self.teacher, self.net)]
        self.noise = torch.Generator().manual_seed(1)
        self.log: list[tuple[int, float, float, float]] = []  # step, loss, MiB, µs a step

    def step(self) -> float:
        x = torch.randn(self.batch, 4, generator=self.noise)
        with torch.no_grad():
            z, self.states[0] = self.teacher.step(x, self.states[0])
            target = self.target(z)
        y, self.states[1] = self.net.step(x, self.states[1])
        loss = (self.readout(y) - target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()  # this step's gradient, from traces that reach back to the beginning
        self.optimizer.step()
        return float(loss.detach())

    def save(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            "net": self.net.state_dict(), "readout": self.readout.state_dict(),
            "optimizer": self.optimizer.state_dict(), "noise": self.noise.get_state(),
            "states": [s.state_dict() for s in self.states], "log": self.log,
        }  # fmt: skip
        part = path.with_suffix(".part")
        torch.save(saved, part)
        part.replace(path)

    def load(self, path: pathlib.Path) -> None:
        saved = torch.load(path, weights_only=True)
        self.net.load_state_dict(saved["net"])
        self.readout.load_state_dict(saved["readout"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.noise.set_state(saved["noise"])
        self.log = saved["log"]
        modules = (self.teacher, self.net)
        self.states = [
            m.init_state(self.batch).load_state_dict(s)
            for m, s in zip(modules, saved["states"], strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000, help="to have made in the end")
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--rule", default="eprop", help="any rule that streams")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--every", type=int, default=1000, help="steps between lines of the log")
    parser.add_argument("--out", default="endless", help="folder of the checkpoint and the log")
    parser.add_argument("--plot", help="a PNG of loss and memory over steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stream = Stream(args.units, args.rule, args.batch)
    out = pathlib.Path(args.out)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        stream.load(checkpoint)
        print(f"going on at step {stream.states[1].steps}")
    try:
        while stream.states[1].steps < args.steps:
            count = min(args.every, args.steps - stream.states[1].steps)
            start, total = time.perf_counter(), 0.0
            for _ in range(count):
                total += stream.step()
            micro = 1e6 * (time.perf_counter() - start) / count
            stream.log.append((stream.states[1].steps, total / count, resident(), micro))
            step, loss, memory, _ = stream.log[-1]
            share = 100 * step / args.steps
            print(
                f"step {step:>9} ({share:3.0f}%)  loss {loss:.4f}  {memory:.0f} MiB  {micro:.0f} µs"
            )
            if len(stream.log) % 20 == 0:
                stream.save(checkpoint)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here")
    stream.save(checkpoint)
    (out / "log.json").write_text(json.dumps(stream.log))
    if args.plot:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        steps, losses, memory, _ = zip(*stream.log, strict=True)
        figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5))
        top.semilogy(steps, losses)
        top.set_ylabel("squared error")
        bottom.plot(steps, memory)
        bottom.set_ylim(0, 1.2 * max(memory))
        bottom.set_ylabel("memory of the process (MiB)")
        bottom.set_xlabel("step")
        figure.savefig(args.plot, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
