"""Differentiable core of the leaky recurrent cell."""

from typing import Any

import torch
from torch import Tensor

from . import _kernels, _state
from .reference import activations

FORMS = ("rate", "voltage")


class _Core(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, y0, s0, w, leak, lengths, flags, rule):  # type: ignore[override]
        y, aux, s_n = _kernels.backend().leaky_forward(pre, y0, s0, w, leak, lengths, *flags)
        ctx.save_for_backward(y, aux, y0, s0, w, leak)
        ctx.lengths, ctx.flags, ctx.rule = lengths, flags, rule
        ctx.pre_lead = pre.shape[0]
        ctx.set_materialize_grads(False)
        return y, s_n

    @staticmethod
    def backward(ctx, gy, gs_n):  # type: ignore[override]
        y, aux, y0, s0, w, leak = ctx.saved_tensors
        rule = ctx.rule
        override = _state.backward_override()
        if override is not None:
            rule = override(w, leak)
        form, _, unit = ctx.flags
        transport = rule.get("transport")
        m = rule.get("modulator")
        if gy is not None and m is not None:
            gy = gy * (m if m.dim() == 3 else m.unsqueeze(-1))
        delta, gy0, gs0, lam = _kernels.backend().leaky_backward(
            gy, None, gs_n, y, aux, w if transport is None else transport, leak, ctx.lengths, *ctx.flags,
            rule.get("policy", 0), rule.get("mu", 0.0), rule.get("window", 0), rule.get("decay", 0.0), True,
        )
        prev = torch.cat([y0.expand(y.shape[0], *y0.shape[1:]).unsqueeze(1), y[:, :-1]], 1)
        gw = torch.matmul(delta.flatten(1, 2).transpose(1, 2), prev.flatten(1, 2))
        states = aux if form else y
        before = torch.cat([s0.expand(y.shape[0], *s0.shape[1:]).unsqueeze(1), states[:, :-1]], 1)
        k = leak[:, None, None]
        gl = delta / k * (states - before) / k if form else lam * ((y if unit else aux) - before)
        if ctx.lengths is not None and form:
            gl = torch.where(delta == 0, 0, gl)
        gl = gl.sum((1, 2))

        def fit(g, lead):
            return g.sum(0, keepdim=True) if g.shape[0] != lead else g

        return (fit(delta, ctx.pre_lead), fit(gy0, y0.shape[0]), fit(gs0, s0.shape[0]),
                fit(gw, w.shape[0]), fit(gl, leak.shape[0]), None, None, None)


def leaky_core(
    pre: Tensor,
    y0: Tensor,
    s0: Tensor,
    w: Tensor,
    leak: Tensor,
    *,
    lengths: Tensor | None = None,
    form: str = "rate",
    nonlinearity: str = "tanh",
    unit_leak: bool = False,
    policy: int = 0,
    transport: Tensor | None = None,
    mu: float = 0.0,
    window: int = 0,
    decay: float = 0.0,
    modulator: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs ``y`` (T, B, n) and final state ``s_n`` (B, n) of the recurrence, differentiable."""
    _kernels.check_dtype(pre, "pre")
    single = pre.dim() == 3
    tensors = [pre, y0, s0, w, leak]
    if single:
        tensors = [x.unsqueeze(0) for x in tensors]
        if transport is not None:
            transport = transport.unsqueeze(0)
    rule: dict[str, Any] = dict(policy=policy, transport=transport, mu=mu, window=window,
                                decay=decay, modulator=modulator)
    if _state.exact_enabled():
        rule = {}
    flags = (FORMS.index(form), activations.NAMES.index(nonlinearity), unit_leak)
    y, s_n = _Core.apply(*tensors, lengths, flags, rule)
    return (y[0], s_n[0]) if single else (y, s_n)
