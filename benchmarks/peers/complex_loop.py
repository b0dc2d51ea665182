"""The linear recurrent unit as a Python loop over steps in torch's complex numbers."""

from __future__ import annotations

import torch
from torch import Tensor

#: nu_log, theta, B_re, B_im, C_re, C_im, D
LruParams = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def lru_forward(params: LruParams, x: Tensor) -> Tensor:
    """Outputs (T, B, o) for x (T, B, m); all but the recurrence is done for all steps at once."""
    nu_log, theta, b_re, b_im, c_re, c_im, d = params
    lam = torch.exp(torch.complex(-torch.exp(nu_log), theta))
    gamma = torch.sqrt(1 - lam.real**2 - lam.imag**2)
    u = gamma * (x.to(lam.dtype) @ torch.complex(b_re, b_im).T)
    s = torch.zeros_like(u[0])
    states = []
    for u_t in u.unbind(0):
        s = lam * s + u_t
        states.append(s)
    return (torch.stack(states) @ torch.complex(c_re, c_im).T).real + x @ d.T
