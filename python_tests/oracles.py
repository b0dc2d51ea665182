"""Learning rules of a single leaky layer by forward accumulation: oracles for the backward kernels.

Nothing here runs backwards in time. The influence of every parameter on every state is carried
along, with the part of the Jacobian that a rule keeps, and contracted with the learning
signals.
"""

import torch
from leaky_oracle import PHI, SLOPE


def parameters(net):
    """The parameters of a one-layer LeakyRNN by short name, detached."""
    found = {name.removesuffix("_l0"): p.detach() for name, p in net.named_parameters()}
    found.setdefault("leak", net._leak_of(0).detach())
    return found


def step(theta, s, x, form, act):
    """One step of the definition: the next state."""
    w = theta["weight_hh"]
    y = s if form == "rate" else PHI[act](s)
    u = w @ y + theta["weight_ih"] @ x
    u = u + theta.get("bias_ih", 0) + theta.get("bias_hh", 0)
    k = theta["leak"]
    return (1 - k) * s + k * (PHI[act](u) if form == "rate" else u)


def signals(gy, gh, form, modulator):
    """Learning signals at the outputs (T, B, n) and the gradient at the final state (B, n)."""
    gy, final = gy.clone(), gh
    if form == "rate":
        gy[-1] += gh
        final = torch.zeros_like(gh)
    if modulator is not None:
        gy = gy * (modulator.unsqueeze(-1) if modulator.dim() == 2 else modulator)
    return gy, final


def jacobian_kept(kind, theta, full, mu):
    """The part (n, n) of the state's Jacobian that a rule carries along."""
    k = theta["leak"]
    if kind == "full":
        return full
    if kind == "diagonal":
        return torch.diag_embed(torch.diagonal(full, dim1=-2, dim2=-1))
    if kind == "state":
        return torch.diag(1 - k) + mu * k[:, None] * theta["weight_hh"]
    return torch.diag(1 - k)


def forward_gradients(
    net, x, h0, gy, gh, kind, *, hop=None, mu=0.0, taps=0, decay=0.0, modulator=None
):
    """Gradients by name (with "h0") of <gy, y> + <gh, h_n> under a rule.

    kind: "full" (RTRL), "unit" (leak only), "diagonal" (SnAp-1), "state" (ModProp as in the
    authors' code). ``hop`` (n, n), ``mu``, ``taps``: the modulators Σ_s μ^{s-1} (κ hop)^s on
    the traces of s steps ago. x (T, B, m), h0 (B, n), gy (T, B, n), gh (B, n).
    """
    form, act = net.form, net.nonlinearity
    theta = parameters(net)
    mask = net.mask
    if mask is not None:
        theta["weight_hh"] = torch.where(mask, theta["weight_hh"], 0.0)
    gy, final = signals(gy, gh, form, modulator)
    steps, batch, n = gy.shape
    names = list(theta)
    run = torch.func.vmap(
        torch.func.jacrev(lambda t, s, v: step(t, s, v, form, act), argnums=(0, 1)), (None, 0, 0)
    )
    advance = torch.func.vmap(lambda t, s, v: step(t, s, v, form, act), (None, 0, 0))

    def output(s):
        return s if form == "rate" else PHI[act](s)

    def output_slope(s):
        return torch.ones_like(s) if form == "rate" else SLOPE[act](PHI[act](s))

    # influence of every block on the state, (B, n, size); h0 is a block whose influence starts as 1
    influence = {name: torch.zeros(batch, n, theta[name].numel()) for name in names}
    influence["h0"] = torch.eye(n).expand(batch, n, n).clone()
    if kind == "diagonal":
        owners = {name: owner(name, theta, n) for name in influence}
    traces = [{name: output_slope(h0)[..., None] * m for name, m in influence.items()}]
    filtered = {name: torch.zeros_like(m) for name, m in influence.items()}
    # one gradient per row of the batch, summed at the end for all but h0
    total = {name: torch.zeros(batch, m.shape[-1]) for name, m in influence.items()}
    s = h0
    for t in range(steps):
        d_theta, d_state = run(theta, s, x[t])
        new = advance(theta, s, x[t])
        kept = jacobian_kept(kind, theta, d_state, mu)
        for name in influence:
            moved = kept @ influence[name]
            if name in d_theta:
                moved = moved + d_theta[name].reshape(batch, n, -1)
            influence[name] = moved * owners[name] if kind == "diagonal" else moved
        if form == "rate":
            phi = (new - (1 - theta["leak"]) * s) / theta["leak"]
        else:
            phi = output(new)
        psi = SLOPE[act](phi)
        s = new
        trace = {name: output_slope(s)[..., None] * m for name, m in influence.items()}
        traces.append(trace)
        for name in influence:
            filtered[name] = decay * filtered[name] + trace[name]
            total[name] += torch.einsum("bn,bnp->bp", gy[t], filtered[name])
            sent = torch.eye(n)
            for lag in range(1, min(taps, t + 1) + 1):
                sent = sent @ (theta["leak"][:, None] * hop)
                weight = mu ** (lag - 1) if lag > 1 else 1.0
                heard = torch.einsum("bj,jp->bp", gy[t] * psi, sent)
                total[name] += weight * torch.einsum("bn,bnp->bp", heard, traces[-1 - lag][name])
    for name in influence:
        total[name] += torch.einsum("bn,bnp->bp", final, influence[name])
    out = {name: total[name].sum(0).reshape(theta[name].shape) for name in names}
    if mask is not None:
        out["weight_hh"] = out["weight_hh"] * mask
    return out | {"h0": total["h0"]}


def owner(name, theta, n):
    """(n, size), 1 where a parameter belongs to a unit."""
    size = n if name == "h0" else theta[name].numel()
    rows = torch.arange(size) // (size // n)
    return (torch.arange(n)[:, None] == rows).to(torch.get_default_dtype())


def gradients(net, x, h0, gy, gh, **call):
    """The module's own gradients by short name, with "x" and "h0"."""
    x, h0 = x.detach().requires_grad_(), h0.detach().requires_grad_()
    y, h_n = net(x, h0.unsqueeze(0), **call)
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    wanted = [x, h0, *(dict(net.named_parameters())[name] for name in names)]
    found = torch.autograd.grad((y, h_n[0]), wanted, (gy, gh), allow_unused=True)
    labels = ["x", "h0", *(name.removesuffix("_l0") for name in names)]
    return {
        label: torch.zeros_like(p) if g is None else g
        for label, p, g in zip(labels, wanted, found, strict=True)
    }


def relative(a, b):
    """Relative error of a against b."""
    size = b.norm().item()
    return (a - b).norm().item() / size if size else a.norm().item()
