"""The linear recurrent unit written anew in torch's complex numbers, one step after the other."""

import torch


def planes(z):
    """Complex (..., n) as planes (..., 2, n)."""
    return torch.stack([z.real, z.imag], -2)


def as_complex(x):
    """Planes (..., 2, n) as complex (..., n)."""
    return torch.complex(x[..., 0, :], x[..., 1, :])


def loop(lam, u, s0, *, lengths=None, window=0):
    """`lru_core`, row by row; ``window``: the state handed to the steps T-k, T-2k, ... > 0 is
    detached."""
    lam, u, s0 = as_complex(lam), as_complex(u), as_complex(s0)
    steps, batch = u.shape[:2]
    rows, finals = [], []
    for b in range(batch):
        s, row = s0[b], []
        length = steps if lengths is None else int(lengths[b])
        for t in range(length):
            if window and t > 0 and (length - t) % window == 0:
                s = s.detach()
            s = lam * s + u[t, b]
            row.append(s)
        finals.append(s)
        rows.append(torch.stack(row + [torch.zeros_like(s)] * (steps - length)))
    return planes(torch.stack(rows, 1)), planes(torch.stack(finals))


def module_loop(net, x, h0, parameters=None, *, lengths=None, window=0):
    """The module's outputs (T, B, o) and final states (1, B, n) for x (T, B, m), h0 (1, B, n)."""
    p = dict(net.named_parameters()) if parameters is None else parameters
    lam = torch.exp(torch.complex(-torch.exp(p["nu_log"]), p["theta"]))
    gamma = torch.sqrt(1 - lam.real**2 - lam.imag**2)
    into, out = torch.complex(p["B_re"], p["B_im"]), torch.complex(p["C_re"], p["C_im"])
    u = gamma * (x.to(into.dtype) @ into.T)
    states, last = loop(planes(lam), planes(u), planes(h0[0]), lengths=lengths, window=window)
    y = (as_complex(states) @ out.T).real + x @ p["D"].T
    if lengths is not None:
        y = y * (torch.arange(len(x))[:, None] < lengths)[..., None]
    return y, as_complex(last).unsqueeze(0)


def operands(steps, batch, n, seed=0, dtype=torch.float64):
    """λ inside the unit circle, u and s0 in planes, that require gradients."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    radius = 0.3 + 0.69 * torch.rand(n, generator=g, dtype=torch.float64)
    lam = planes(torch.polar(radius, 3 * normal(n)))
    found = lam, normal(steps, batch, 2, n), normal(batch, 2, n)
    return [x.to(dtype).requires_grad_() for x in found]


def relative(got, expected):
    """Largest relative error among tensors."""
    return max(
        float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-300))
        for a, b in zip(got, expected, strict=True)
    )
