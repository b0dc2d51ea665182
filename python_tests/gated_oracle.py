"""GRU and LSTM as loops that torch differentiates, and by forward accumulation: oracles of the
rules.

A rule is written into the forward pass: ``detach`` stops what it drops, and ``null(x)``, zero in
value, lets through what it adds. Nothing here runs backwards in time by hand.
"""

from typing import Any, NamedTuple

import torch
from leaky_oracle import null
from oracles import relative

import rtrl_ext as rx

CELLS = {"GRU": ("h0",), "LSTM": ("h0", "c0")}  # names of the states
#: T, B, n
SIZES = [(1, 1, 3), (2, 3, 7), (7, 3, 5), (33, 1, 4)]


class Operands(NamedTuple):
    """x (T, B, m), initial states (layers, B, n), gradients of the outputs and final states."""

    x: torch.Tensor
    first: tuple[torch.Tensor, ...]
    gy: torch.Tensor
    finals: tuple[torch.Tensor, ...]


def network(cell, n=5, m=3, layers=1, seed=0, **options):
    """A float64 module, its recurrent weights large enough for credit to travel."""
    torch.manual_seed(seed)
    net = getattr(rx, cell)(m, n, layers, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.startswith("weight_hh"):
                p.mul_(3)
    return net


def operands(net, steps=7, batch=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    n, layers, states = net.hidden_size, net.num_layers, len(net.state_names)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    x, gy = normal(steps, batch, net.input_size), normal(steps, batch, n)
    first, finals = ([normal(layers, batch, n) for _ in range(states)] for _ in range(2))
    return Operands(x, tuple(first), gy, tuple(finals))


def handed(states):
    """States as a module takes them."""
    return states[0] if len(states) == 1 else tuple(states)


def received(states):
    """States as a module returns them, as a tuple."""
    return states if isinstance(states, tuple) else (states,)


def names(net):
    return [name for name, p in net.named_parameters() if p.requires_grad]


def gradients(net, ops, **call):
    """The module's own gradients by name: x, h0, c0, parameters, and a drive among ``call``."""
    x, *first = (t.clone().requires_grad_() for t in (ops.x, *ops.first))
    wanted = {"x": x, **dict(zip(net.state_names, first, strict=True))}
    if call.get("drive") is not None:
        call["drive"] = wanted["drive"] = call["drive"].clone().requires_grad_()
    wanted |= {name: p for name, p in net.named_parameters() if p.requires_grad}
    y, states = net(x, handed(first), **call)
    return _grad((y, *received(states)), wanted, (ops.gy, *ops.finals))


def _grad(outputs, wanted, grads):
    found = torch.autograd.grad(
        outputs, list(wanted.values()), grads, allow_unused=True, materialize_grads=True
    )
    return dict(zip(wanted, found, strict=True))


def own_weights(w, gates):
    """The weights from each unit to itself, for every gate: (gates n,)."""
    return torch.diagonal(w.unflatten(0, (gates, -1)), dim1=1, dim2=2).reshape(-1)


def through_weights(h, w, gates, kept):
    """``W h`` of which autograd sees all ("full"), the self-weights ("own") or nothing ("none")."""
    if kept == "full":
        return h @ w.T
    out = h.detach() @ w.T
    if kept == "own":
        out = out + null(h).repeat(1, gates) * own_weights(w, gates).detach()
    return out


def advance(cell, u, p, state):
    """One step of the definition; u: inputs' part of the pre-activations, p: the recurrent part."""
    if cell == "GRU":
        (h,) = state
        (u_r, u_z, u_q), (p_r, p_z, p_q) = u.chunk(3, -1), p.chunk(3, -1)
        z = torch.sigmoid(u_z + p_z)
        return [(1 - z) * torch.tanh(u_q + torch.sigmoid(u_r + p_r) * p_q) + z * h]
    i, f, g, o = (u + p).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def loop(net, ops, kept="full", window=0, decay=0.0, modulator=None, drive=None):
    """Gradients as `gradients`, from a loop in which each layer keeps what its rule keeps.

    ``kept``: see `through_weights`; ``window``: states are detached every so many steps, counted
    from the end; ``decay``, ``modulator``: readout filter and third factor of e-prop.
    """
    leaves: dict[str, Any] = {"x": ops.x, **dict(zip(net.state_names, ops.first, strict=True))}
    if drive is not None:
        leaves["drive"] = drive
    leaves |= dict(net.named_parameters())
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    gates, steps = net.gates, len(ops.x)
    if modulator is not None and modulator.dim() == 2:
        modulator = modulator.unsqueeze(-1)
    rows, ends = leaves["x"], []
    for layer in range(net.num_layers):
        w_ih, w_hh, b_ih, b_hh = (
            leaves.get(f"{name}_l{layer}", 0)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if net.mask is not None:
            w_hh = torch.where(net.mask.repeat(gates, 1), w_hh, 0.0)
        state = [leaves[name][layer] for name in net.state_names]
        emitted, outputs = torch.zeros_like(state[0]), []
        for t in range(steps):
            u = rows[t] @ w_ih.T + b_ih
            if drive is not None and layer == 0:
                u = u + leaves["drive"][t]
            p = through_weights(state[0], w_hh, gates, kept) + b_hh
            state = advance(net.cell, u, p, state)
            emitted = state[0] + decay * null(emitted)
            out = emitted
            if modulator is not None:
                out = out.detach() + modulator[t] * null(out)
            outputs.append(out)
            last = [out, *state[1:]]
            if window and (steps - t - 1) % window == 0:
                state = [s.detach() for s in state]
        rows = torch.stack(outputs)
        ends.append(last)
    finals = [torch.stack(s) for s in zip(*ends, strict=True)]
    return _grad((rows, *finals), leaves, (ops.gy, *ops.finals))


def masked_rtrl(net, ops, pattern="owner"):
    """Gradients of one layer's parameters and initial states by forward accumulation.

    Every parameter's influence on all states is carried along; ``pattern`` "owner" keeps those on
    the states of the unit that owns it, "all" keeps everything (RTRL).
    """
    cell, gates, n = net.cell, net.gates, net.hidden_size
    theta = {name: p.detach() for name, p in net.named_parameters()}
    if net.mask is not None:
        theta["weight_hh_l0"] = torch.where(net.mask.repeat(gates, 1), theta["weight_hh_l0"], 0.0)
    states, (steps, batch) = len(net.state_names), ops.x.shape[:2]

    def step(theta, flat, x):
        state = list(flat.chunk(states))
        u = x @ theta["weight_ih_l0"].T + theta.get("bias_ih_l0", 0)
        p = state[0] @ theta["weight_hh_l0"].T + theta.get("bias_hh_l0", 0)
        return torch.cat(advance(cell, u, p, state))

    derive = torch.func.vmap(torch.func.jacrev(step, (0, 1)), (None, 0, 0))
    move = torch.func.vmap(step, (None, 0, 0))
    flat = torch.cat([s[0] for s in ops.first], -1)
    unit = torch.arange(states * n) % n  # of every state
    influence, keep = {}, {}
    for name, p in theta.items():
        influence[name] = torch.zeros(batch, states * n, p.numel())
        owner = torch.arange(len(p)).repeat_interleave(p[0].numel()) % n
        keep[name] = unit[:, None] == owner
    influence["first"] = torch.eye(states * n).expand(batch, -1, -1)
    keep["first"] = unit[:, None] == unit
    if pattern == "all":
        keep = {name: torch.ones_like(k) for name, k in keep.items()}
    total = {name: torch.zeros(batch, m.shape[2]) for name, m in influence.items()}
    for t in range(steps):
        by_theta, by_state = derive(theta, flat, ops.x[t])
        flat = move(theta, flat, ops.x[t])
        for name, m in influence.items():
            m = by_state @ m
            if name in by_theta:
                m = m + by_theta[name].flatten(2)
            influence[name] = m * keep[name]
            total[name] += torch.einsum("bn,bnp->bp", ops.gy[t], influence[name][:, :n])
    end = torch.cat([g[0] for g in ops.finals], -1)
    for name, m in influence.items():
        total[name] += torch.einsum("bs,bsp->bp", end, m)
    out = {name: total[name].sum(0).view_as(p) for name, p in theta.items()}
    if net.mask is not None:
        out["weight_hh_l0"] = out["weight_hh_l0"] * net.mask.repeat(gates, 1)
    first = total["first"].unsqueeze(0).chunk(states, -1)
    return out | dict(zip(net.state_names, first, strict=True))


def same(found, expected, tolerance=1e-12, only=None):
    """Every block of ``expected`` (or ``only`` those) is there and equal, one by one."""
    for name in expected if only is None else only:
        assert found[name].shape == expected[name].shape, name
        assert relative(found[name], expected[name]) < tolerance, name


def differ(found, expected, only, least=1e-2):
    for name in only:
        assert relative(found[name], expected[name]) > least, name


def torch_twin(net):
    """The same network as a module of torch."""
    cls = getattr(torch.nn, net.cell)
    first = net.weight_ih_l0
    twin = cls(
        net.input_size, net.hidden_size, net.num_layers, net.bias, net.batch_first,
        device=first.device, dtype=first.dtype,
    )  # fmt: skip
    twin.load_state_dict(net.state_dict())
    return twin


def twin_gradients(net, ops):
    """`gradients` of torch's own module with the same parameters."""
    twin = torch_twin(net)
    x, *first = (t.clone().requires_grad_() for t in (ops.x, *ops.first))
    y, states = twin(x, handed(first))
    wanted = {"x": x, **dict(zip(net.state_names, first, strict=True))}
    wanted |= dict(twin.named_parameters())
    return _grad((y, *received(states)), wanted, (ops.gy, *ops.finals))
