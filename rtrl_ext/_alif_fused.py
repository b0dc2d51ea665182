"""A whole ALIF or LIF layer in one call: input product, recurrence and all gradients.

The fast form of ``_alif_layer`` on the CPU for one network in ordinary calls: the compiled
operations work through time in pieces that stay in cache, without an array of pre-activations.
θ is (x, w_ih, b_ih, b_hh, drive, w, alpha, rho, beta, z0, v0, a0, count0).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _alif_fused_fake, _formulas, _kernels, _state  # noqa: F401  shapes
from ._autograd import below_autograd, in_transform
from ._cells import CELLS, Pass
from ._cells.alif import Options
from ._formulas import EXACT, LOCAL, RATE, Rule, with_lead
from ._fused import _without_autocast
from ._kernels import (
    NEED_BIAS,
    NEED_DELTA,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_UNITS,
    NEED_WEIGHT,
    NEED_X,
)
from ._recurrence_transforms import gradients
from ._refuse import refuse_alone

_RANKS = (3, 2, 1, 1, 3, 2, 1, 1, 1, 2, 2, 2, 2)
_BITS = (
    NEED_X, NEED_INPUT_WEIGHT, NEED_BIAS, NEED_BIAS, NEED_DELTA, NEED_WEIGHT, NEED_UNITS,
    NEED_UNITS, NEED_UNITS, NEED_INITIAL, NEED_INITIAL, NEED_INITIAL, 0,
)  # fmt: skip


def available(theta: tuple[Tensor | None, ...]) -> bool:
    """Whether these operations take the call: one network on the CPU, one dtype, no transform."""
    x = theta[0]
    assert x is not None
    if (
        not x.is_cpu
        or x.dtype not in (torch.float32, torch.float64)
        or not _kernels.HAVE_COMPILED
        or _kernels.replaced()
        or in_transform()
    ):
        return False
    return all(
        t is None or (t.dim() == rank and t.dtype == x.dtype and t.is_cpu)
        for t, rank in zip(theta, _RANKS, strict=True)
    )


class Layer(Function):
    """(z, v_n, a_n, count_n) of (options, rule, lengths, transport, modulator, *θ).

    ``transport`` and ``modulator`` have a leading dimension of 1. An autograd Function of the old
    style, which costs less per call.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        options, rule, lengths, transport, modulator, *theta = args
        x, w_ih, b_ih, b_hh, drive, w, alpha, rho, beta, z0, v0, a0, count0 = theta
        with below_autograd():
            z, psi, v, a, v_n, a_n, count_n = torch.ops.rtrl_ext.alif_layer_forward.default(
                x, w_ih, b_ih, b_hh, drive, z0, v0, a0, count0, w, alpha, rho, beta, lengths,
                *options,
            )  # fmt: skip
        theta[4] = None  # not read again
        ctx.save_for_backward(lengths, transport, modulator, *theta, z, psi, v, a)
        ctx.mark_non_differentiable(*((count_n,) if beta is not None else (a_n, count_n)))
        ctx.set_materialize_grads(False)
        ctx.options, ctx.rule = Options(*options), rule
        return z, v_n, a_n, count_n

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gz: Tensor | None, gv_n: Tensor | None, ga_n: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # read once, as torch.utils.checkpoint asks
        if tensors[10] is None:  # LIF
            ga_n = None
        if gz is None and gv_n is None and ga_n is None:
            return (None,) * 18
        once = torch.compiler.is_compiling() or not (torch.is_grad_enabled() or in_transform())
        run = _composed if not once or _state.backward_override() is not None else _fused
        with _without_autocast():
            grads = run(ctx, tensors, gz, gv_n, ga_n, once)
        needs = ctx.needs_input_grad[5:]
        made = (g if need else None for g, need in zip(grads, needs, strict=True))
        return (*(None,) * 5, *made)


def _fused(
    ctx: Any, tensors: Any, gz: Tensor | None, gv_n: Tensor | None, ga_n: Tensor | None, once: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of θ by one operation."""
    lengths, transport, modulator, *theta, z, psi, v, a = tensors
    x, w_ih, b_ih, b_hh, _, w, alpha, rho, beta, z0, v0, a0, _ = theta
    o, rule = ctx.options, ctx.rule
    if modulator is not None and gz is not None:
        full, _ = _formulas.modulated(modulator, gz[None], None, RATE, lengths)
        assert full is not None
        gz = full[0]
    matrix = None if rule.policy == LOCAL else w if transport is None else transport[0]
    wanted = 0
    for bit, need in zip(_BITS, ctx.needs_input_grad[5:], strict=True):
        wanted |= bit if need else 0
    with below_autograd():
        dx, dw_ih, dw, db, delta, gz0, gv0, ga0, units = (
            torch.ops.rtrl_ext.alif_layer_backward.default(
                gz, gv_n, ga_n, x, z, psi, v, a, z0, v0, a0, w_ih, matrix, alpha, rho, beta,
                lengths, o.v_th, o.scaling, o.reset, *rule, wanted,
            )
        )  # fmt: skip
    # gradients never share memory
    db_hh = db.clone() if b_ih is not None and b_hh is not None else db
    of_units = (None,) * 3 if not wanted & NEED_UNITS else tuple(u.clone() for u in units)
    return dx, dw_ih, db, db_hh, delta, dw, *of_units, gz0, gv0, ga0, None


def _composed(
    ctx: Any, tensors: Any, gz: Tensor | None, gv_n: Tensor | None, ga_n: Tensor | None, once: bool
) -> tuple[Tensor | None, ...]:
    """The same by the recurrence's own backward pass: for imposed rules, ``vmap`` and graphs of
    gradients, which refuse to be differentiated."""
    lengths, transport, modulator, *theta, z, psi, v, a = tensors
    x, w_ih, _, _, _, w, alpha, rho, beta, z0, v0, a0, count0 = theta
    zero = psi.new_zeros(psi.shape[1:])
    states = (zero if z0 is None else z0, zero if v0 is None else v0, a0, count0)
    if a0 is None and beta is not None:
        states = (*states[:2], zero, count0)
    units = tuple(with_lead(u, 2) for u in (alpha, rho, beta))
    kept = tuple(t if t.dim() == 1 else t[None] for t in (psi, v, a))
    p = Pass(w[None], units, tuple(with_lead(s, 3) for s in states), z[None], kept, lengths,
             ctx.options)  # fmt: skip
    handle = psi.new_zeros(()).expand(1, *psi.shape)
    finals = (None, with_lead(gv_n, 3), with_lead(ga_n, 3), None)
    needs = ctx.needs_input_grad[5:]
    out = gradients(
        CELLS["alif"], p, handle, (with_lead(gz, 4), finals), (any(needs[:5]), *needs[5:]),
        ctx.rule, transport, modulator, once,
    )  # fmt: skip
    delta, *rest = (None if g is None else g[0] for g in out)
    if delta is None:
        return (*(None,) * 5, *rest)
    db = delta.sum((0, 1)) if needs[2] or needs[3] else None
    return (
        torch.matmul(delta, w_ih) if needs[0] else None,
        torch.matmul(delta.flatten(0, 1).t(), x.flatten(0, 1)) if needs[1] else None,
        db,
        None if db is None else db.clone(),
        delta,
        *rest,
    )


# Function.apply without its look at transforms, of which there are none here: 5 µs per call.
_apply = super(Function, Layer).apply


def layer(
    theta: tuple[Tensor | None, ...],
    lengths: Tensor | None,
    options: Options,
    spec: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spikes (T, B, n) and v_n, a_n, count_n (B, n), (0,) where absent; arguments as checked by the
    caller. ``spec`` is what a rule's ``policy`` gives, without ``adjoint``."""
    rule, transport, modulator = EXACT, None, None
    x, w = theta[0], theta[5]
    assert x is not None and w is not None
    if not _state.exact_enabled():
        spec = dict(spec)
        transport = with_lead(spec.pop("transport", None), 3)
        modulator = spec.pop("modulator", None)
        rule = Rule(**spec)
        if modulator is not None:
            like = x.new_empty(()).expand(*x.shape[:2], w.shape[1])
            modulator = _formulas.lead_modulator(modulator, like)
    apply = Layer.apply if torch.compiler.is_compiling() else _apply
    out: tuple[Tensor, Tensor, Tensor, Tensor] = apply(
        tuple(options), rule, lengths, transport, modulator, *theta
    )
    return out


if _kernels.HAVE_COMPILED:
    for _name in ("alif_layer_forward", "alif_layer_backward"):
        refuse_alone(f"rtrl_ext::{_name}", "alif_forward")
