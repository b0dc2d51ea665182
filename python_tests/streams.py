"""Problems and oracles of streaming mode."""

import torch
from torch.autograd.functional import jacobian
from torch.func import functional_call

import rtrl_ext as rx
from rtrl_ext._alif_layer import first_spikes

N, M, B = 5, 3, 2
TYPES = torch.tensor([0, 1, 0, 1, 2])

#: name -> (class, options), every form of every cell
CELLS = {
    "rate": (rx.LeakyRNN, {"leak": 0.3}),
    "rate, no leak": (rx.LeakyRNN, {}),
    "rate, leaks trained": (
        rx.LeakyRNN,
        {"leak": torch.linspace(0.2, 0.9, N), "nonlinearity": "softplus", "learn_leak": True},
    ),
    "voltage": (rx.LeakyRNN, {"leak": 0.3, "form": "voltage"}),
    "voltage, leaks": (rx.LeakyRNN, {"leak": torch.linspace(0.2, 0.9, N), "form": "voltage"}),
    "voltage, leak trained": (
        rx.LeakyRNN,
        {"leak": 0.3, "form": "voltage", "learn_leak": True, "autapses": False},
    ),
    "GRU": (rx.GRU, {}),
    "GRU, masked": (rx.GRU, {"mask": torch.ones(N, N).tril(1).bool(), "bias": False}),
    "LSTM": (rx.LSTM, {}),
    "LIF": (rx.LIF, {"tau_v": 5.0, "bias": True}),
    "LIF, reset to zero": (rx.LIF, {"tau_v": 5.0, "reset": "zero", "autapses": True}),
    "LIF, trained": (rx.LIF, {"tau_v": 5.0, "input_scaling": True, "learn_tau": True, "v_th": 0.3}),
    "ALIF": (rx.ALIF, {"tau_v": 5.0, "tau_a": 9.0, "beta": 0.3, "refractory": 2, "bias": True}),
    "ALIF, trained": (
        rx.ALIF,
        {
            "tau_v": 5.0, "tau_a": 9.0, "beta": torch.tensor([0.3, 0.0, 0.2, 0.4, 0.1]),
            "learn_tau": True, "learn_beta": True, "reset": "zero", "surrogate": "arctan",
        },
    ),
    "LRU": (rx.LRU, {"output_size": N, "r_min": 0.5, "r_max": 0.95}),
}  # fmt: skip
SPIKING = [name for name in CELLS if "LIF" in name]


def network(name, rule, layers=1, **changes):
    """A module of `CELLS`, in float64."""
    cls, options = CELLS[name]
    torch.manual_seed(3)
    more = {} if layers == 1 else {"num_layers": layers}
    return cls(M, N, **options, **more, **changes, rule=rule, dtype=torch.float64)


def operands(steps, outputs=N, batch=B):
    """Inputs that make spiking units spike, and a gradient of every output."""
    torch.manual_seed(4)
    x = 3 * torch.randn(steps, batch, M, dtype=torch.float64)
    return x, torch.randn(steps, batch, outputs, dtype=torch.float64)


def gradients(net):
    return {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in net.named_parameters()}


def sequence(net, x, gy):
    """Outputs, and gradients by name, of sequence mode."""
    net.zero_grad()
    y, _ = net(x)
    y.backward(gy)
    return y.detach(), gradients(net)


def stream(net, x, gy, every=1, state=None):
    """The same step by step: ``backward`` after every ``every``-th step, for all since."""
    net.zero_grad()
    state = net.init_state(x.shape[1]) if state is None else state
    ys, waiting = [], []
    for t in range(x.shape[0]):
        y, state = net.step(x[t], state)
        ys.append(y.detach())
        waiting.append((y * gy[t]).sum())
        if (t + 1) % every == 0 or t + 1 == x.shape[0]:
            sum(waiting).backward()
            waiting = []
    return torch.stack(ys), gradients(net)


def worst(found, expected):
    """The largest relative error of a block."""
    assert found.keys() == expected.keys()
    return max(
        float((found[k] - expected[k]).norm() / expected[k].norm().clamp(min=1e-300))
        for k in expected
    )


def owned(net, states, reach=None):
    """For `Forward`: the states of the units that a parameter's own unit reaches.

    reach: bool (n, n), [i, j] True where unit i is among those that the parameters of unit j keep;
    None for the unit itself alone.
    """
    reach = torch.eye(N, dtype=torch.bool) if reach is None else reach
    keep = {}
    for name, p in net.named_parameters():
        owner = torch.arange(p.shape[0]) % N
        owner = owner.repeat_interleave(p.numel() // p.shape[0])
        keep[name] = reach[:, owner].repeat(states, 1)
    return keep


class Forward:
    """Influence matrices by the chain rule in its plainest form, with autograd's own Jacobians of
    one step of the module in sequence mode.

    keep: (S n, entries of a parameter) by name, True where an entry of the influence matrix stays;
    None for all. Parameters may change between steps.
    """

    def __init__(self, net, keep=None, batch=B):
        self.net, self.keep = net, keep
        self.names = [name for name, _ in net.named_parameters()]
        self.state = None
        self.influence = []
        self.batch = batch

    def _after(self, x, state, parameters):
        """States (S n,) after a step from those before it; x (m,)."""
        net = self.net
        parts = tuple(s.reshape(1, 1, N) for s in state.chunk(state.numel() // N))
        first = parts[0] if net.state_names == ("h0",) else parts
        rule, net.rule = net.rule, "bptt"
        _, h = functional_call(net, parameters, (x.reshape(1, 1, -1), first))
        net.rule = rule
        h = h if isinstance(h, tuple) else (h,)
        return torch.cat([s.flatten() for s in h])

    def _output(self, state, parameters):
        """Outputs (n,) that belong to states."""
        net, parts = self.net, state.split(N)
        if isinstance(net, rx.LIF | rx.ALIF):
            beta = None
            if isinstance(net, rx.ALIF):
                beta = parameters.get("beta_l0", net.beta)
            a = parts[1][None] if beta is not None else None
            return first_spikes(parts[0][None], a, None, beta, net._settings)[0][0]
        if getattr(net, "form", "rate") == "voltage":
            return torch.tanh(parts[0])
        return parts[0]

    def reset(self, row):
        """One row starts anew."""
        self.state[row] = 0
        for m in self.influence[row].values():
            m.zero_()

    def step(self, x, gy):
        """The gradient of ``gy · y_t`` by name; x (B, m), gy (B, n)."""
        values = {k: p.detach() for k, p in self.net.named_parameters()}
        if self.state is None:
            size = len(self.net.state_names) * N
            self.state = x.new_zeros(self.batch, size)
            self.influence = [
                {k: x.new_zeros(size, p.numel()) for k, p in values.items()}
                for _ in range(self.batch)
            ]
        total = {k: torch.zeros_like(p) for k, p in values.items()}
        for b in range(self.batch):

            def after(s, *ps, row=x[b]):
                return self._after(row, s, dict(zip(self.names, ps, strict=True)))

            def output(s, *ps):
                return self._output(s, dict(zip(self.names, ps, strict=True)))

            size = self.state.shape[1]
            by_state, *immediate = jacobian(after, (self.state[b], *values.values()))
            self.state[b] = after(self.state[b], *values.values()).detach()
            read, *direct = jacobian(output, (self.state[b], *values.values()))
            for k, i, d in zip(self.names, immediate, direct, strict=True):
                m = by_state @ self.influence[b][k] + i.reshape(size, -1)
                m = m if self.keep is None else torch.where(self.keep[k], m, 0.0)
                self.influence[b][k] = m
                total[k] += (gy[b] @ (read @ m + d.reshape(N, -1))).reshape(total[k].shape)
        return total
