"""Spiking units by loops: oracles for the ALIF recurrence under every rule.

The step function is written for autograd: a spike has the surrogate as its derivative. `loop`
detaches at the edges that a rule cuts; `influence` runs nothing backwards, it carries the effect of
every parameter on every state along with the part of the Jacobian that a rule keeps. A refractory
period is kept by the number of silent steps that are left.
"""

import math

import torch

SHAPES = {  # the surrogate derivative s(x)
    0: lambda x: torch.clamp(1 - x.abs(), min=0),
    1: lambda x: (1 + x.abs()) ** -2,
    2: lambda x: 1 / (1 + math.pi**2 * x * x),
}
NAMES = ("pre", "w", "alpha", "rho", "beta", "z0", "v0", "a0")


class Problem:
    """Random operands of one call without leading dimensions, and learning signals."""

    def __init__(
        self, steps, batch, n=5, *, lif=False, scaling=False, reset=0, surrogate=0, refractory=0,
        seed=0,
    ):  # fmt: skip
        g = torch.Generator().manual_seed(seed + steps + 10 * batch)

        def normal(*size):
            return torch.randn(*size, generator=g, dtype=torch.float64)

        def uniform(low, high, *size):
            return low + (high - low) * torch.rand(*size, generator=g, dtype=torch.float64)

        self.steps, self.batch, self.n, self.lif = steps, batch, n, lif
        self.scaling, self.reset, self.surrogate = scaling, reset, surrogate
        self.refractory, self.v_th, self.gamma = refractory, 0.8, 0.9
        strength = 3.0 if scaling else 1.0
        self.pre = strength * (0.7 * normal(steps, batch, n) + 0.25)
        self.w = strength * normal(n, n) / n**0.5
        self.alpha, self.rho = uniform(0.5, 0.95, n), uniform(0.6, 0.98, n)
        self.beta = uniform(0.05, 0.5, n)
        self.z0 = (uniform(0, 1, batch, n) < 0.4).double()
        self.v0, self.a0 = 0.5 * normal(batch, n), uniform(0, 1, batch, n)
        counts = torch.randint(0, refractory + 1, (batch, n), generator=g).double()
        self.count0 = torch.where(self.z0 > 0, refractory + 1.0, counts)
        self.gz, self.gv, self.ga = normal(steps, batch, n), normal(batch, n), normal(batch, n)

    def operands(self):
        """The differentiable ones by name."""
        names = [x for x in NAMES if not (self.lif and x in ("rho", "beta", "a0"))]
        return {name: getattr(self, name) for name in names}

    def step(self, ops, pre, z, v, a, left, detached):
        """One step: new z, v, a, silent steps left, ψ. ``detached``: e-prop's cuts."""
        seen = z.detach() if detached else z
        drive = pre + seen @ ops["w"].T
        if self.scaling:
            drive = (1 - ops["alpha"]) * drive
        if self.reset:
            v = ops["alpha"] * (v * (1 - seen)) + drive
        else:
            v = ops["alpha"] * v + drive - self.v_th * seen
        threshold = self.v_th
        if not self.lif:
            a = ops["rho"] * a + z
            threshold = self.v_th + ops["beta"] * a
        x = (v - threshold) / self.v_th
        silent = left > 0
        psi = (self.gamma / self.v_th * SHAPES[self.surrogate](x) * ~silent).detach()
        fired = ((x > 0) & ~silent).double().detach()
        # the value of a step function, the slope ψ
        z = fired + psi * ((v - threshold) - (v - threshold).detach())
        left = torch.where(fired > 0, float(self.refractory), torch.clamp(left - 1, min=0))
        return z, v, a, left, psi, silent

    def first_left(self):
        return torch.clamp(self.count0 - 1, min=0)

    def loop(self, *, detached=False, window=0, decay=0.0):
        """Gradients by name by autograd, and the values (z, psi, v, a, v_n, a_n, count_n)."""
        ops = {k: x.clone().requires_grad_() for k, x in self.operands().items()}
        z, v, a = ops["z0"], ops["v0"], ops.get("a0")
        left, readout, total = self.first_left(), torch.zeros_like(self.v0), 0.0
        values = []
        for t in range(self.steps):
            if window and t and (self.steps - t) % window == 0:
                z, v, a = (None if s is None else s.detach() for s in (z, v, a))
            z, v, a, left, psi, silent = self.step(ops, ops["pre"][t], z, v, a, left, detached)
            readout = decay * readout + z  # a leaky readout of the spikes
            total = total + (self.gz[t] * readout).sum()
            values.append((z, psi, v, z if a is None else a))
        total = total + (self.gv * v).sum()
        if a is not None:
            total = total + (self.ga * a).sum()
        found = torch.autograd.grad(total, list(ops.values()), allow_unused=True)
        count = torch.where(z > 0, self.refractory + 1.0, torch.where(silent, left + 1, 0.0))
        sequences = [torch.stack(x).detach() for x in zip(*values, strict=True)]
        return dict(zip(ops, found, strict=True)), (*sequences, v, a, count)

    def influence(self, kind, *, hop=None, mu=0.0, taps=0):
        """Gradients by name by forward accumulation; those of z0, v0 and a0 by row of the batch.

        kind: "full" (RTRL), "diagonal" (SnAp-1: all states of the unit that owns a parameter),
        "local" (e-prop), "state" (that and μ c W from voltage to voltage). ``hop`` (n, n), ``mu``,
        ``taps``: learning signals through μ^{s-1} hop^s on the traces of s steps ago.
        """
        ops, n = self.operands(), self.n
        names = [x for x in ops if x not in ("pre", "z0", "v0", "a0")]
        theta = {k: ops[k] for k in names} | {"pre": torch.zeros(n, dtype=torch.float64)}
        states = 2 if self.lif else 3
        owner = torch.cat([torch.arange(n).repeat_interleave(theta[k].numel() // n) for k in theta])
        owner = torch.cat([owner, torch.arange(n).repeat(states)])  # z0, v0, a0
        keep = torch.arange(n).repeat(states).unsqueeze(1) == owner

        def run(theta, flat, pre, left):
            z, v, *a = flat.chunk(states)
            out = self.step(theta, pre + theta["pre"], z, v, a[0] if a else None, left,
                            kind in ("local", "state"))  # fmt: skip
            return torch.cat(out[: 2 if self.lif else 3]), (out[3], out[4])

        jacobian = torch.func.jacrev(run, (0, 1), has_aux=True)
        rows, total = [], 0
        for b in range(self.batch):
            flat = torch.cat([self.z0[b], self.v0[b], *([] if self.lif else [self.a0[b]])])
            left = self.first_left()[b]
            m = torch.zeros(states * n, owner.numel(), dtype=torch.float64)
            m[:, -states * n :] = torch.eye(states * n, dtype=torch.float64)
            traces, gradient = [m[:n]], 0
            for t in range(self.steps):
                (by_theta, by_flat), (new_left, psi) = jacobian(theta, flat, self.pre[t, b], left)
                if kind == "state":
                    c = 1 - self.alpha if self.scaling else torch.ones(n, dtype=torch.float64)
                    by_flat[n : 2 * n, n : 2 * n] += mu * c[:, None] * self.w
                    # and so from the voltage to the spikes and the threshold behind it
                    by_flat[:n, n : 2 * n] += psi[:, None] * (mu * c[:, None] * self.w)
                direct = torch.cat([x.reshape(states * n, -1) for x in by_theta.values()], 1)
                m = by_flat @ m
                m[:, : direct.shape[1]] += direct
                m = m * keep if kind == "diagonal" else m
                flat, left = run(theta, flat, self.pre[t, b], left)[0], new_left
                traces.append(m[:n])
                gradient = gradient + self.gz[t, b] @ m[:n]
                sent = torch.eye(n, dtype=torch.float64)
                for lag in range(1, min(taps, t + 1) + 1):
                    sent = sent @ hop
                    heard = (self.gz[t, b] * psi) @ sent
                    gradient = gradient + (mu ** (lag - 1)) * (heard @ traces[-1 - lag])
            gradient = gradient + self.gv[b] @ m[n : 2 * n]
            if not self.lif:
                gradient = gradient + self.ga[b] @ m[2 * n :]
            rows.append(gradient[-states * n :].view(states, n))
            total = total + gradient
        out, at = {}, 0
        for name, x in theta.items():
            out[name] = total[at : at + x.numel()].view_as(x)
            at += x.numel()
        firsts = torch.stack(rows, 1)
        return out | dict(zip(("z0", "v0", "a0"), firsts, strict=False))


def relative(a, b):
    size = float(b.norm())
    return float((a - b).norm()) / size if size else float(a.norm())
