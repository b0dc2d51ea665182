"""GRU and LSTM as functions of all their tensors, by the module and by a loop in plain PyTorch."""

import torch
from gated_oracle import advance, handed, network, received
from leaky_oracle import assert_close
from torch.func import functional_call

T, B, N, M, K, R = 4, 2, 3, 2, 5, 3  # K directions, R replicas


class Case:
    """A network with a readout as functions of a dict: parameters, inputs, initial states."""

    drive = True

    def __init__(self, cell, layers=1, lengths=(3, 4), **options):
        self.net = network(cell, N, M, layers, **options)
        self.lengths = None if lengths is None else torch.tensor(lengths)
        self.readout = torch.randn(N)
        self.at = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.at["x"] = torch.randn(T, B, M)
        if self.drive:
            self.at["drive"] = 0.3 * torch.randn(T, B, self.net.gates * N)
        self.at |= {name: torch.randn(layers, B, N) for name in self.net.state_names}
        self.tangents = {name: torch.randn(K, *t.shape) for name, t in self.at.items()}

    def tangent(self, k=0):
        return {name: t[k] for name, t in self.tangents.items()}

    def run(self, p):
        """Outputs and final states, by the module."""
        p = dict(p)
        x, drive = p.pop("x"), p.pop("drive", None)
        first = handed([p.pop(name) for name in self.net.state_names])
        call = {"drive": drive, "lengths": self.lengths}
        y, states = functional_call(self.net, p, (x, first), call)
        return y, *received(states)

    def loop(self, p):
        """The same by a loop over torch's own operations."""
        net, rows, ends = self.net, p["x"], []
        for layer in range(net.num_layers):
            w_ih, w_hh, b_ih, b_hh = (
                p[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if net.mask is not None:
                w_hh = torch.where(net.mask.repeat(net.gates, 1), w_hh, 0.0)
            state, outputs = [p[name][layer] for name in net.state_names], []
            for t in range(T):
                u = rows[t] @ w_ih.T + b_ih
                if layer == 0 and self.drive:
                    u = u + p["drive"][t]
                new = advance(net.cell, u, state[0] @ w_hh.T + b_hh, state)
                if self.lengths is not None:
                    on = (self.lengths > t).unsqueeze(1)
                    outputs.append(torch.where(on, new[0], 0.0))
                    state = [torch.where(on, a, b) for a, b in zip(new, state, strict=True)]
                else:
                    outputs.append(new[0])
                    state = new
            rows = torch.stack(outputs)
            ends.append(state)
        return rows, *(torch.stack(s) for s in zip(*ends, strict=True))

    def loss(self, run):
        def loss(p):
            y, *ends = run(p)
            total = (y * self.readout).sum(-1).pow(2).sum()
            for state in ends:
                total = total + state.pow(3).sum()
            return total

        return loss

    def both(self, transform):
        """A transform of the loss by the module and by the loop."""
        return transform(self.loss(self.run)), transform(self.loss(self.loop))


def close(found, expected, tolerance=1e-11):
    leaves = torch.utils._pytree.tree_leaves
    assert_close(leaves(found), leaves(expected), tolerance)
