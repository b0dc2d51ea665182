"""The differentiable core of the linear recurrent unit: a scan whose derivatives are scans.

The scan is linear in u and s0 and its derivative by λ is a scan with another input, so that two
operations, forward and backward in time, serve derivatives of every order:

    scan      s_t = λ s_{t-1} + u_t              transpose: backward with a_t as the gradient of u_t
    backward  a_t = gs_t + conj(λ) a_{t+1}       transpose: scan
    λ         Σ_t a_t conj(s_{t-1})              bilinear in a and s

plain call, also compiled       the registered operations
``torch.func`` or forward mode  ``Scan`` and ``Backward``, Functions over them
the same while compiling        the scan by doubling, differentiated by torch itself
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _kernels, _lru_kernels, _state
from ._autograd import in_transform
from ._dispatch import COMPILED_TRANSFORM, _check_lengths
from ._formulas import SECOND_ORDER, fit
from ._kernels import vmap_by_folding
from ._lru_kernels import LENGTHS_AT
from .reference import lru
from .reference.leaky_rnn import DIAGONAL, FULL

Grads = tuple[Tensor | None, ...]
_DTYPES = (torch.float32, torch.float64)


def window_of(settings: dict[str, Any]) -> int:
    """A rule's window from its ``policy``; FULL and DIAGONAL carry the same between units that
    don't reach each other."""
    assert settings["policy"] in (FULL, DIAGONAL)
    return settings.get("window", 0)


def _scan(*args: Any) -> tuple[Tensor, Tensor]:
    run = Scan.apply if in_transform() else _kernels.operation("lru_scan")
    return run(*args)


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    run = Backward.apply if in_transform() else _kernels.operation("lru_backward")
    return run(*args)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _later(a: Tensor) -> Tensor:
    """a_{t+1} at t."""
    return torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)


def _outer(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a ``jvp`` has saved, without the tangents of its own level.

    torch runs the ``jvp`` of a Function with forward mode switched off, which makes a tangent of
    that tangent (``jvp`` in ``jvp``) silently zero. `_nested` switches it on again; then saved
    inputs must not bring their own tangents along.
    """
    return tuple(
        forward_ad.unpack_dual(x, level=0).primal if x is not None and x.is_floating_point() else x
        for x in tensors
    )


def _nested() -> Any:
    """Forward mode inside the ``jvp`` of a Function (a private name); see `_outer`."""
    return forward_ad._set_fwd_grad_enabled(True)


def _fitted(grads: tuple[Tensor | None, ...], leads: tuple[int, ...]) -> Grads:
    """Gradients summed to leading sizes of 1 where the tensors had them."""
    return tuple(
        None if g is None or lead == 0 else fit(g, lead)
        for g, lead in zip(grads, leads, strict=True)
    )


class Scan(Function):
    """(states, s_n) of (lam, u, s0, lengths, window)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        found: tuple[Tensor, Tensor] = _kernels.operation("lru_scan")(*args)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        lam, u, s0, lengths, ctx.window = inputs
        tensors = (lam, output[0], s0, lengths)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.leads = (lam.shape[0], u.shape[0], s0.shape[0])

    @staticmethod
    def backward(ctx: Any, gs: Tensor | None, gs_n: Tensor | None) -> Grads:  # type: ignore[override]
        if gs is None and gs_n is None:
            return (None,) * 5
        lam, states, s0, lengths = ctx.saved_tensors
        want = ctx.needs_input_grad[0]
        a, gs0, glam = _backward(gs, gs_n, lam, states, s0, lengths, ctx.window, want)
        return (*_fitted((glam if want else None, a, gs0), ctx.leads), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        dlam, du, ds0 = tangents[:3]
        with _nested():
            lam, states, s0, lengths = _outer(ctx.saved_tensors)
            if dlam is not None:
                du = _plus(du, lru.product(dlam[:, None, None], lru.shifted(s0, states)))
            du = torch.zeros_like(states) if du is None else du
            ds0 = torch.zeros_like(s0) if ds0 is None else ds0
            return _scan(lam, du, ds0, lengths, 0)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        at = LENGTHS_AT["lru_scan"]
        return vmap_by_folding(Scan.apply, info.batch_size, in_dims, args, at)


class Backward(Function):
    """(a, gs0, glam) of (gs, gs_n, lam, states, s0, lengths, window, want_lam)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        found: tuple[Tensor, Tensor, Tensor] = _kernels.operation("lru_backward")(*args)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, lam, states, s0, lengths, ctx.window, ctx.want_lam = inputs
        tensors = (lam, states, s0, lengths, output[0])
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.leads = tuple(0 if x is None else x.shape[0] for x in inputs[:5])

    @staticmethod
    def backward(ctx: Any, ca: Tensor | None, cs0: Tensor | None, clam: Tensor | None) -> Grads:  # type: ignore[override]
        if ctx.window:
            raise RuntimeError(SECOND_ORDER)
        lam, states, s0, lengths, a = ctx.saved_tensors
        g_states = g_s0 = None
        if clam is not None and ctx.want_lam:
            spread = clam[:, None, None]
            ca = _plus(ca, lru.product(spread, lru.shifted(s0, states)))
            g_states = lru.product_conj(_later(a), spread)
            g_s0 = lru.product_conj(a[:, 0], clam[:, None])
        if ca is None and cs0 is None:
            return (None,) * 8
        ca = torch.zeros_like(a) if ca is None else ca
        cs0 = torch.zeros_like(s0) if cs0 is None else cs0
        b, b_n = _scan(lam, ca, cs0, lengths, 0)
        g_lam = lru.rate_gradient(a, b, cs0) if ctx.needs_input_grad[2] else None
        return (*_fitted((b, b_n, g_lam, g_states, g_s0), ctx.leads), None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor, Tensor]:
        if ctx.window:
            raise RuntimeError(SECOND_ORDER)
        dgs, dgs_n, dlam, dstates, ds0 = tangents[:5]
        with _nested():
            lam, states, s0, lengths, a = _outer(ctx.saved_tensors)
            if dlam is not None:
                dgs = _plus(dgs, lru.product_conj(_later(a), dlam[:, None, None]))
            dgs = torch.zeros_like(a) if dgs is None and dgs_n is None else dgs
            da, dfirst, dglam = _backward(dgs, dgs_n, lam, states, s0, lengths, 0, ctx.want_lam)
            if dlam is not None:
                dfirst = dfirst + lru.product_conj(a[:, 0], dlam[:, None])
            if ctx.want_lam and (dstates is not None or ds0 is not None):
                dstates = torch.zeros_like(states) if dstates is None else dstates
                ds0 = torch.zeros_like(s0) if ds0 is None else ds0
                dglam = dglam + lru.rate_gradient(a, dstates, ds0)
            return da, dfirst, dglam

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        at = LENGTHS_AT["lru_backward"]
        return vmap_by_folding(Backward.apply, info.batch_size, in_dims, args, at)


def register(namespace: str) -> None:
    """Shapes, ``vmap`` and derivatives of the operations of a namespace."""
    _lru_kernels.register(namespace)
    for name, function in (("lru_scan", Scan), ("lru_backward", Backward)):
        torch.library.register_autograd(
            f"{namespace}::{name}",
            function.backward,  # type: ignore[attr-defined]
            setup_context=function.setup_context,  # type: ignore[arg-type]
        )


for _namespace in _kernels.NAMESPACES:
    register(_namespace)


def scan(
    lam: Tensor, u: Tensor, s0: Tensor, lengths: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    """`lru_core` of checked arguments with a leading dimension each, of size R or 1."""
    window = 0 if _state.exact_enabled() else window
    if torch.compiler.is_compiling() and in_transform():
        if window:
            raise RuntimeError(COMPILED_TRANSFORM)
        return lru.lru_doubling(lam, u, s0, lengths)
    return _scan(lam, u, s0, lengths, window)


def lru_core(
    lam: Tensor,
    u: Tensor,
    s0: Tensor,
    *,
    lengths: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """The recurrence ``s_t = λ∘s_{t-1} + u_t``, differentiable in the three tensors.

    Complex numbers are planes: (..., 2, n) holds the n real parts, then the n imaginary ones.
    Orvieto et al. 2023. Derivatives of every order exist, in both modes.

    Args:
        lam: λ, (2, n). float32 or float64, as are all that follow.
        u: inputs (T, B, 2, n).
        s0: state before the first step, (B, 2, n).
        lengths: (B,) int64 in 1..T, rows stop at their length; None: all run T steps.
        window: the backward pass drops what is carried past every ``window``-th step counted from
            a row's end (0: never); second derivatives are refused then.

    Returns:
        The states after each step (T, B, 2, n), zero after a row's length, and after each row's
        last step (B, 2, n).

    Raises:
        TypeError: another dtype, or mixed ones.
        ValueError: shapes or devices that don't fit together.
        RuntimeError: second derivatives with a window; a CUDA tensor in a build without CUDA.
    """
    _check(lam, u, s0)
    if lengths is not None:
        _check_lengths(lengths, u[..., 0])
    if window < 0:
        raise ValueError(f"window is {window}; expected at least 0")
    states, s_n = scan(lam.unsqueeze(0), u.unsqueeze(0), s0.unsqueeze(0), lengths, window)
    return states.squeeze(0), s_n.squeeze(0)


def _check(lam: Tensor, u: Tensor, s0: Tensor) -> None:
    if u.dtype not in _DTYPES:
        raise TypeError(f"u has dtype {u.dtype}; expected torch.float32 or torch.float64")
    _kernels.check_device(u.device)
    if u.dim() != 4 or u.shape[2] != 2:
        raise ValueError(f"u has shape {tuple(u.shape)}; expected (T, B, 2, n)")
    if u.shape[0] == 0:
        raise ValueError("u has no time steps; expected T >= 1")
    for name, x, shape in (("lam", lam, u.shape[2:]), ("s0", s0, u.shape[1:])):
        if x.dtype != u.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}; expected u's, {u.dtype}")
        if x.device != u.device:
            raise ValueError(f"{name} is on {x.device}; expected u's device, {u.device}")
        if x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {tuple(shape)}")
