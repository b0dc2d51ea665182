"""A whole layer of a gated cell in one call: input products, recurrence and all gradients.

The fast form of ``_gated_layer`` on the CPU for one network: the compiled operations work through
time in pieces that stay in cache and make no array of pre-activations. Second derivatives and
transforms are in ``_gated_fused_transforms``. θ is (x, w_ih, b_ih, b_hh, h0, c0, w); a GRU has no
c0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _formulas, _gated_fused_fake, _kernels, _state  # noqa: F401  shapes
from ._autograd import below_autograd, in_transform
from ._checks import is_batched
from ._dispatch import COMPILED_TRANSFORM
from ._formulas import EXACT, RATE, SECOND_ORDER, Rule
from ._fused import _without_autocast
from ._gated_fused_tangents import bits, in_order
from ._gated_fused_transforms import Backward, Forward
from ._refuse import refuse
from .reference.leaky_rnn import LOCAL

NUMBERS = {"gru": 0, "lstm": 1}
_RANKS = (3, 2, 1, 1, 2, 2, 2)


def available(theta: tuple[Tensor | None, ...], drive: Tensor | None) -> bool:
    """Whether these operations take the call: one network on the CPU, one dtype."""
    x = theta[0]
    assert x is not None
    if (
        not x.is_cpu
        or x.dtype not in (torch.float32, torch.float64)
        or not _kernels.HAVE_COMPILED
        or _kernels.replaced()
        or (drive is not None and (drive.requires_grad or drive.dim() != 3))
    ):
        return False
    for t, rank in zip(theta, _RANKS, strict=True):
        if t is not None and (t.dim() != rank or t.dtype != x.dtype or not t.is_cpu):
            return False
    if not in_transform():
        return True
    # compiled transforms are differentiated through the reference
    moving = (*theta, drive)
    return (
        not torch.compiler.is_compiling()
        and drive is None
        and not any(t is not None and is_batched(t) for t in moving)
    )


class Layer(Function):
    """(y, h_n, c_n, aux) of (cell, rule, lengths, drive, modulator, *θ), in ordinary calls."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        cell, rule, lengths, drive, modulator, x, w_ih, b_ih, b_hh, h0, c0, w = args
        with below_autograd():
            y, aux, h_n, c_n = torch.ops.rtrl_ext.gated_layer_forward.default(
                cell, x, w_ih, b_ih, b_hh, drive, h0, c0, w, lengths
            )
        ctx.save_for_backward(lengths, modulator, x, w_ih, b_ih, b_hh, h0, c0, w, y, aux)
        ctx.mark_non_differentiable(*((aux, c_n) if cell == 0 else (aux,)))
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.rule = cell, rule
        return y, h_n, c_n, aux

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gy: Tensor | None, gh_n: Tensor | None, gc_n: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        if ctx.cell == 0:
            gc_n = None
        if gy is None and gh_n is None and gc_n is None:
            return (None,) * 12
        with _without_autocast():
            return (*(None,) * 5, *_gradients(ctx, gy, gh_n, gc_n))


def _gradients(
    ctx: Any, gy: Tensor | None, gh_n: Tensor | None, gc_n: Tensor | None
) -> tuple[Tensor | None, ...]:
    rule = ctx.rule
    lengths, modulator, *theta, y, aux = ctx.saved_tensors  # read once, as checkpointing asks
    needs = ctx.needs_input_grad[5:]
    x, w_ih, _, _, h0, c0, w = theta
    policy_of = _state.backward_override()
    if policy_of is not None:
        ones = w.new_ones(1, w.shape[1])
        rule, _, modulator = _formulas.overridden(policy_of, w[None], ones, y[None])
    if modulator is not None:
        g, last = (None if t is None else t[None] for t in (gy, gh_n))
        g, last = _formulas.modulated(modulator, g, last, RATE, lengths)
        gy, gh_n = (None if t is None else t[0] for t in (g, last))
    once = torch.compiler.is_compiling() or not (torch.is_grad_enabled() or in_transform())
    wanted = bits(needs)
    if not once and rule == EXACT:
        grads = Backward.apply(ctx.cell, lengths, wanted, gy, gh_n, gc_n, *theta, y, aux)[:7]
    else:
        with torch.no_grad():
            out = torch.ops.rtrl_ext.gated_layer_backward.default(
                ctx.cell, gy, gh_n, gc_n, x, y, aux, h0, c0, w_ih,
                None if rule.policy == LOCAL else w, lengths, rule.policy, rule.window, rule.decay,
                wanted, False,
            )  # fmt: skip
        grads = in_order(out)
        if not once:
            made = [g for g, need in zip(grads, needs, strict=True) if need]
            of = [t for t in (*theta, gy, gh_n, gc_n) if t is not None]
            refused = iter(refuse(SECOND_ORDER, made, of))
            grads = tuple(next(refused) if need else None for need in needs)
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


# Function.apply without its look at transforms, of which there are none here: 5 µs per call.
_apply = super(Function, Layer).apply


def layer(
    name: str,
    theta: tuple[Tensor | None, ...],
    drive: Tensor | None,
    lengths: Tensor | None,
    spec: dict[str, Any],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs (T, B, n) and final states (B, n); arguments as checked by the caller.

    ``spec`` is what a rule's ``policy`` gives.
    """
    cell = NUMBERS[name]
    rule, modulator = EXACT, None
    if not _state.exact_enabled():
        spec = dict(spec)
        modulator = spec.pop("modulator", None)
        rule = Rule(**spec)
    x, w = theta[0], theta[6]
    assert x is not None and w is not None
    if modulator is not None:
        like = x.new_empty(()).expand(*x.shape[:2], w.shape[1])
        modulator = _formulas.lead_modulator(modulator, like)
    if in_transform():
        if torch.compiler.is_compiling():
            raise RuntimeError(COMPILED_TRANSFORM)
        y, h_n, c_n, _ = Forward.apply(cell, lengths, *theta)
    else:
        apply = Layer.apply if torch.compiler.is_compiling() else _apply
        y, h_n, c_n, _ = apply(cell, rule, lengths, drive, modulator, *theta)
    return y, (h_n,) if cell == 0 else (h_n, c_n)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, x, w_ih, b_ih, b_hh, _, h0, c0, w, lengths = inputs
    y, aux, _, _ = output
    ctx.save_for_backward(lengths, x, w_ih, b_ih, b_hh, h0, c0, w, y, aux)
    ctx.set_materialize_grads(False)
    ctx.cell = cell


def _op_backward(ctx: Any, gy: Any, gaux: Any, gh_n: Any, gc_n: Any) -> tuple[Tensor | None, ...]:
    """Autograd of the registered operation itself: exact gradients, also of ``drive``."""
    lengths, *theta, y, aux = ctx.saved_tensors
    need = ctx.needs_input_grad
    needs = (*need[1:5], need[6], need[7], need[8])
    if ctx.cell == 0:
        gc_n = None
    if gy is None and gh_n is None and gc_n is None:
        return (None,) * 10
    grads = Backward.apply(ctx.cell, lengths, bits(needs), gy, gh_n, gc_n, *theta, y, aux)
    dx, dw_ih, db_ih, db_hh, gh0, gc0, dw = (
        g if n else None for g, n in zip(grads[:7], needs, strict=True)
    )
    drive = None
    if need[5]:
        delta = grads[7]
        drive = delta[..., : (3 if ctx.cell == 0 else 4) * y.shape[2]]
    return None, dx, dw_ih, db_ih, db_hh, drive, gh0, gc0, dw, None


if _kernels.HAVE_COMPILED:
    torch.library.register_autograd(
        "rtrl_ext::gated_layer_forward", _op_backward, setup_context=_setup
    )
