"""Real-time recurrent learning, exact and on a sparse pattern: one step of the influence matrix."""

from typing import Any

import torch
from torch import Tensor

from .._checks import check_mask
from .._influence_kernels import check_like_influence, run
from .._snap_pattern import Pattern, make_pattern
from ._inplace import refuse_autograd, refuse_overlap

_WRITTEN = ("influence", "grad")
Steps = tuple[Tensor, Tensor, Tensor, Tensor | None]


def rtrl_step_(
    influence: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    signal: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    """One step of exact RTRL, in place: ``M <- J M + I`` and ``grad += signal · M``.

    For one block of parameters (R, Q) of a layer with n units and S states per unit; row r belongs
    to unit r mod n (R = G n, G gates) and the state s of unit u is number s n + u. The immediate
    term I[(s, u), r, q] = psi[s, r] pre[q] for u = r mod n, else 0, is never expanded. Williams &
    Zipser 1989. Not differentiable.

    influence: M, d state / d parameter, (B, S n, R, Q); float32 or float64, as all that follow.
        Zeros before the first step. Batch rows and states may lie apart (any strides), (R, Q) is
        contiguous.
    jacobian: J (B, S n, S n), d state_t / d state_{t-1}, row = new state.
    psi: immediate factors (B, S, R). pre: what multiplies the parameters, (B, Q).
    signal: dE/d state_t, (B, S, n). grad: (R, Q), the gradient of this step is added to it, summed
        over the batch. Both or neither.

    With a leading K everywhere, K pending steps, oldest first, are applied in one pass over M, with
    the bits of K calls; a signal (K', B, S, n) then belongs to the last K' <= K of them. K = 0 with
    a signal (1, B, S, n) meets M as it is.
    Returns ``influence``. Raises TypeError for wrong types and dtypes, ValueError for shapes,
    devices and memory that is shared with what is changed, RuntimeError for tensors that require
    grad (but under ``torch.no_grad()``).

    Example:
        M = torch.zeros(B, n, n, m + n + 1)
        grad = torch.zeros(n, m + n + 1)                     # of [W_ih, W_hh, bias]
        for x_t, target in data:
            pre = torch.cat([x_t, h, torch.ones(B, 1)], 1)
            h = torch.tanh(pre @ theta.T)
            psi = (1 - h * h).unsqueeze(1)
            J = psi.transpose(1, 2) * theta[:, m:-1]
            rtrl_step_(M, J, psi, pre, (h - target).unsqueeze(1), grad)
    """
    tensors = {"jacobian": jacobian, "psi": psi, "pre": pre, "signal": signal, "grad": grad}
    check_like_influence(influence, **tensors)
    refuse_autograd(_WRITTEN, {"influence": influence, **tensors})
    if influence.dim() != 4:
        raise ValueError(
            f"influence has shape {tuple(influence.shape)}; expected 4 dimensions, (B, S n, R, Q)"
        )
    batch, width, rows, columns = influence.shape
    if not influence.is_contiguous() and not influence[:1, :1].is_contiguous():
        raise ValueError(
            f"influence has strides {influence.stride()}; expected contiguous last two dimensions"
        )
    states = psi.shape[-2] if psi.dim() > 2 else 1
    if states == 0 or width % states or width == 0 or rows % (width // states):
        raise ValueError(
            f"influence has shape {tuple(influence.shape)} and psi {tuple(psi.shape)}; expected "
            f"(B, S n, G n, Q) and (B, S, G n)"
        )
    steps = _steps(jacobian, psi, pre, signal, batch, states, width // states, rows, columns)
    _check_grad(grad, signal, rows, columns)
    refuse_overlap(_WRITTEN, {"influence": influence, **tensors})
    _run("rtrl_step", influence, steps, (), grad)
    return influence


def snap_step_(
    influence: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    pattern: Pattern,
    signal: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    """One step of SnAp(k), in place: `rtrl_step_` that keeps the entries of a pattern alone.

    ``M <- P∘(J M + I)``, P the pattern: for the parameters of unit p the states of the units
    reached from p in at most k-1 hops, and p's own columns. Menick et al. 2021. Not differentiable.

    influence: (B, pattern.size), only what is kept; ``pattern.zeros(B)`` before the first step,
        ``pattern.dense(influence)`` shows it as (B, S n, R, Q).
    pattern: from `snap_pattern`, for one block of parameters (R, Q). The jacobian's numbers between
        units that aren't connected are taken for zero.

    Other arguments, pending steps, result and errors as in `rtrl_step_`. Entries of ``grad`` that
    no owner has are left alone.

    Example:
        pattern = snap_pattern(mask, k=2)                    # W_hh of a LeakyRNN
        M, grad = pattern.zeros(B), torch.zeros(n, n)
        for x_t, target in data:
            pre = h
            h = torch.tanh(x_t @ W_ih.T + h @ (W_hh * mask).T)
            psi = (1 - h * h).unsqueeze(1)
            J = psi.transpose(1, 2) * (W_hh * mask)
            snap_step_(M, J, psi, pre, pattern, (h - target).unsqueeze(1), grad)
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern is a {type(pattern).__name__}; expected one of snap_pattern")
    tensors = {"jacobian": jacobian, "psi": psi, "pre": pre, "signal": signal, "grad": grad}
    check_like_influence(influence, **tensors)
    refuse_autograd(_WRITTEN, {"influence": influence, **tensors})
    if influence.dim() != 2 or influence.shape[1] != pattern.size:
        raise ValueError(
            f"influence has shape {tuple(influence.shape)}; expected (B, {pattern.size}), "
            "the pattern's size"
        )
    if influence.stride(1) != 1 and pattern.size > 1:
        raise ValueError(
            f"influence has strides {influence.stride()}; expected a contiguous last dimension"
        )
    rows, columns = pattern.rows, pattern.num_columns
    steps = _steps(
        jacobian, psi, pre, signal, influence.shape[0], pattern.states, pattern.n, rows, columns
    )
    _check_grad(grad, signal, rows, columns)
    refuse_overlap(_WRITTEN, {"influence": influence, **tensors})
    lists = pattern.tensors(influence.device)
    _run("snap_step", influence, steps, (*lists, pattern.size, pattern.most_units), grad)
    return influence


def snap_pattern(
    mask_or_n: Tensor | int,
    k: int,
    *,
    states: int = 1,
    gates: int = 1,
    columns: Tensor | int | None = None,
) -> Pattern:
    """The pattern of SnAp(k) for one block of parameters (R, Q), R = gates n. Menick et al. 2021.

    mask_or_n: connectivity, bool (n, n), True = connected, row = postsynaptic; or n, for a layer
        whose units are all connected.
    k: 1: a parameter's influence on its own unit; k: on units reached in at most k-1 hops.
    states: S, states per unit (LSTM and ALIF 2). gates: G (GRU 3, LSTM 4).
    columns: which columns of the block a unit's parameters have: None, those of the mask (a
        recurrent weight); a number Q, all of them (an input weight); or bool (n, Q).

    Raises TypeError for wrong types, ValueError for values and shapes.

    Example:
        recurrent = snap_pattern(mask, 2, gates=3)
        inputs = snap_pattern(mask, 2, gates=3, columns=m + 1)
    """
    for name, value in (("k", k), ("states", states), ("gates", gates)):
        _check_positive(name, value)
    if isinstance(mask_or_n, Tensor):
        if mask_or_n.dim() != 2:
            raise ValueError(f"mask_or_n has shape {tuple(mask_or_n.shape)}; expected (n, n)")
        found = check_mask(mask_or_n, mask_or_n.shape[0])
        assert found is not None
        mask = found.detach().cpu()
    else:
        _check_positive("mask_or_n", mask_or_n, "a bool tensor (n, n) or an int")
        mask = torch.ones(mask_or_n, mask_or_n, dtype=torch.bool)
    n = mask.shape[0]
    if n == 0:
        raise ValueError("mask_or_n has shape (0, 0); expected at least one unit")
    if columns is None:
        own = mask
    elif isinstance(columns, Tensor):
        if columns.dtype != torch.bool:
            raise TypeError(f"columns has dtype {columns.dtype}; expected torch.bool")
        if columns.dim() != 2 or columns.shape[0] != n:
            raise ValueError(f"columns has shape {tuple(columns.shape)}; expected ({n}, Q)")
        own = columns.detach().cpu()
    else:
        _check_positive("columns", columns, "an int, a bool tensor (n, Q) or None")
        own = torch.ones(n, columns, dtype=torch.bool)
    return make_pattern(mask, k, states, gates, own)


def _check_positive(name: str, value: Any, expected: str = "an int") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a {type(value).__name__}; expected {expected}")
    if value < 1:
        raise ValueError(f"{name} is {value}; expected at least 1")


def _steps(
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    signal: Tensor | None,
    batch: int,
    states: int,
    n: int,
    rows: int,
    columns: int,
) -> Steps:
    """The steps' tensors with their leading K, shapes checked."""
    pending = jacobian.dim() == 4
    count = jacobian.shape[0] if pending else 1
    lead = (count,) if pending else ()
    width = states * n
    for name, x, shape in (
        ("jacobian", jacobian, (batch, width, width)),
        ("psi", psi, (batch, states, rows)),
        ("pre", pre, (batch, columns)),
    ):
        if tuple(x.shape) != (*lead, *shape):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected {(*lead, *shape)}"
                + ("" if pending else ", or a leading K in all")
            )
    if signal is not None:
        shape = (batch, states, n)
        came = tuple(signal.shape)
        most = max(1, count)
        if came != shape and (len(came) != 4 or came[1:] != shape or came[0] > most):
            raise ValueError(
                f"signal has shape {came}; expected {shape}, or a leading K' of at most {most}"
            )
        signal = signal if signal.dim() == 4 else signal.unsqueeze(0)
    if pending:
        return jacobian, psi, pre, signal
    return jacobian.unsqueeze(0), psi.unsqueeze(0), pre.unsqueeze(0), signal


def _check_grad(grad: Tensor | None, signal: Tensor | None, rows: int, columns: int) -> None:
    if (grad is None) != (signal is None):
        raise ValueError(
            f"{'grad' if grad is None else 'signal'} is None; expected both signal and grad, or "
            "neither"
        )
    if grad is not None and tuple(grad.shape) != (rows, columns):
        raise ValueError(f"grad has shape {tuple(grad.shape)}; expected {(rows, columns)}")


def _run(
    name: str, influence: Tensor, steps: Steps, lists: tuple[Any, ...], grad: Tensor | None
) -> None:
    jacobian, psi, pre, signal = steps
    if grad is None:
        run(name, influence, jacobian, psi, pre, *lists, signal, grad, changed=(influence,))
        return
    work = grad.contiguous()
    run(name, influence, jacobian, psi, pre, *lists, signal, work, changed=(influence, grad))
    if work is not grad:
        grad.copy_(work)
