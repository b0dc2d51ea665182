"""Eligibility traces, updated in place: decay, inject and contract in one pass over memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _kernels, _trace
from .._checks import check_like, check_shape, check_tensor
from ._inplace import refuse_autograd, refuse_overlap

_DTYPES = (torch.float32, torch.float64)
_WRITTEN = ("trace", "grad")


def _check(tensors: dict[str, Tensor | None]) -> None:
    """What holds for all tensors of a call: types, dtype and device of ``trace``, autograd."""
    trace = check_tensor("trace", tensors["trace"])
    dtype, device = trace.dtype, trace.device
    if dtype not in _DTYPES:
        raise TypeError(f"trace has dtype {dtype}; expected float32 or float64")
    for name, x in tensors.items():
        if x is not None and (check_tensor(name, x).dim() > 0 or name != "decay"):
            check_like(name, x, dtype, device, "trace")
    _kernels.check_device(device)
    refuse_autograd(_WRITTEN, tensors)
    refuse_overlap(_WRITTEN, tensors)


def _run(operation: Any, trace: Tensor, grad: Tensor | None, *args: Any) -> None:
    """An operation on what is written, through copies where columns don't lie side by side."""
    dense, total = (
        x if x is None or x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()
        for x in (trace, grad)
    )
    operation(dense, None, *args, total)
    for x, copy in ((trace, dense), (grad, total)):
        if x is not None and copy is not None and x is not copy:
            x.copy_(copy)


def _rate(decay: Any) -> Tensor | None:
    """``decay`` if it is a tensor, None for a number, else TypeError."""
    if isinstance(decay, bool) or not isinstance(decay, (int, float, Tensor)):
        raise TypeError(f"decay is a {type(decay).__name__}; expected a number or a tensor")
    return decay if isinstance(decay, Tensor) else None


def _steps(pre: Tensor, batch: int, columns: int) -> tuple[int, ...]:
    """(K,) where steps are pending together, else ()."""
    lead = tuple(pre.shape[:1]) if pre.dim() == 3 else ()
    _shape("pre", pre, (*lead, batch, columns))
    return lead


def _contracted(signal: Tensor, states: int, tail: tuple[int, ...]) -> Tensor:
    """Signals with their leading K', at most as many as there are states."""
    if signal.dim() == len(tail):
        return _shape("signal", signal, tail)[None]
    _shape("signal", signal, (*signal.shape[:1], *tail), tail)
    if signal.shape[0] > states:
        raise ValueError(
            f"signal has {signal.shape[0]} steps; expected at most {states}, the trace as it is "
            f"and after each of {states - 1} steps"
        )
    return signal


def _shape(name: str, x: Any, *shapes: tuple[int, ...]) -> Tensor:
    """`check_shape`, in a fraction of the time where the first shape is right."""
    if isinstance(x, Tensor) and x.shape == shapes[0]:
        return x
    return check_shape(name, x, *shapes)


def _pair(signal: Tensor | None, grad: Tensor | None) -> None:
    if (signal is None) != (grad is None):
        missing, there = ("grad", "signal") if grad is None else ("signal", "grad")
        raise ValueError(f"{missing} is None; expected a tensor, since {there} is given")


def _units(rows: int, tensors: Sequence[Tensor | None]) -> int:
    """n, the last size of the first tensor that is given and has one, else ``rows``."""
    given = [x for x in tensors if x is not None and x.dim() > 0]
    n = int(given[0].shape[-1]) if given else rows
    if n == 0 or rows % n != 0:
        if rows == n == 0:
            return 1
        raise ValueError(f"trace has {rows} parameter rows; expected a multiple of n = {n} units")
    return n


def _full_decay(
    decay: Any, like: Tensor, steps: tuple[int, ...], batch: int, states: int | None, n: int
) -> Tensor:
    """decay as (K, B, S, S, n), expanded; ``states``: None where a trace has no such dimension."""
    S = 1 if states is None else states
    count = steps[0] if steps else 1
    rate = _rate(decay)
    if rate is None or rate.dim() == 0:
        value = torch.as_tensor(decay, dtype=like.dtype, device=like.device)
        full = value if S == 1 else value * torch.eye(S, dtype=like.dtype, device=like.device)
        full = full.reshape(1, 1, S, S, 1)
    else:
        inner = (n,) if states is None else (S, S, n)
        shapes = [inner, (batch, *inner)] + ([(*steps, batch, *inner)] if steps else [])
        _shape("decay", rate, *shapes)
        full = rate if states is not None else rate.unsqueeze(-2).unsqueeze(-2)
        full = full.reshape((1,) * (5 - full.dim()) + tuple(full.shape))
    return full.expand(count, batch, S, S, n)


def trace_step_(
    trace: Tensor,
    decay: float | Tensor,
    psi: Tensor,
    pre: Tensor,
    signal: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    """Update eligibility traces in place: ``E ← D E + psi pre``, and ``grad += signal · E``.

    One pass over the memory of the trace, also for K pending steps. Bellec et al. 2020 (e-prop),
    Murray 2019 (RFLO), Menick et al. 2021 (SnAp-1): forward-mode learning of a layer of n units
    whose parameters are a matrix of R rows (R = G n for G gates; row r belongs to unit r mod n)
    and P columns. B rows of a batch; all tensors float32 or float64, the same, on one device.

    trace: (B, R, P), one state per unit, or (B, S, R, P) with S = 1 to 3 states; changed. Any
        memory layout; fastest as (R, B, S, P): ``torch.zeros(R, B, S, P).permute(1, 2, 0, 3)``.
    decay: how states pass on to the next step. A number, of every state to itself; (n,) or (B, n);
        with S: (S, S, n) or (B, S, S, n), entry [s, s', u] = d state s / d state s' before.
    psi: (B, R) or (B, S, R), d state / d pre-activation of the row at once.
    pre: (B, P), what the matrix is multiplied with.
    signal: (B, n) or (B, S, n), dE / d state after the step; None: only update.
    grad: (R, P), added into, together with ``signal``: the sum over the batch of signal · E.

    K pending steps: ``pre`` (K, B, P) and ``psi`` with a leading K, ``decay`` with or without one,
    ``signal`` for the last step alone or (K', B, ..) for the last K' states, at most K + 1: then
    the first is for the trace as it came. K = 0 with one signal only contracts. The results are,
    bit for bit, those of K calls with one step each.

    Returns ``trace``.
    Raises TypeError for wrong types and mixed dtypes; ValueError for shapes, devices and memory
    that is shared between what is written and anything else; RuntimeError for tensors that require
    grad outside ``torch.no_grad()``. A refused call changes nothing.

    Example:
        trace, grad = torch.zeros(32, 256, 64), torch.zeros(256, 64)  # B, n, P
        for x_t, target in data:
            v = 0.9 * v + x_t @ w.T
            y, psi = v.tanh(), torch.ones(32, 256)
            signal = (y @ w_out.T - target) @ w_out * (1 - y**2)
            trace_step_(trace, 0.9, psi, x_t, signal, grad)
        w -= 1e-3 * grad
    """
    rate = _rate(decay)
    tensors = {"trace": trace, "decay": rate, "psi": psi, "pre": pre}
    _check({**tensors, "signal": signal, "grad": grad})
    if trace.dim() not in (3, 4) or (trace.dim() == 4 and trace.shape[1] not in (1, 2, 3)):
        raise ValueError(
            f"trace has shape {tuple(trace.shape)}; expected (B, R, P), or (B, S, R, P) with S = 1 "
            "to 3 states"
        )
    _pair(signal, grad)
    states = trace.shape[1] if trace.dim() == 4 else None
    inner = () if states is None else (states,)
    batch, (rows, columns) = trace.shape[0], trace.shape[-2:]
    steps = _steps(pre, batch, columns)
    _shape("psi", psi, (*steps, batch, *inner, rows))
    n = _units(rows, (signal, rate))
    full = _full_decay(decay, trace, steps, batch, states, n)
    if signal is not None:
        signal = _contracted(signal, (steps[0] if steps else 1) + 1, (batch, *inner, n))
    if grad is not None:
        _shape("grad", grad, (rows, columns))
    if not steps:
        psi, pre = psi[None], pre[None]
    whole = trace
    if states is None:
        whole, psi = trace.unsqueeze(1), psi.unsqueeze(2)
        signal = None if signal is None else signal.unsqueeze(2)
    if signal is not None and signal.shape[0] == 0:
        signal = grad = None
    _run(_trace.trace_step, whole, grad, full, psi, pre, signal)
    return trace


def rank1_trace_step_(
    trace: Tensor,
    decay: float | Tensor,
    psi: Tensor | None,
    pre: Tensor,
    signal: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    """The same where a trace is one for all rows: ``z ← decay z + pre``, ``E = psi z``, in place.

    So where all units decay alike, as in LIF and ``LeakyRNN(form="voltage")`` with one leak:
    ``grad += (signal psi)ᵀ z``, and no array (B, R, P) anywhere (Bellec et al. 2020; Murray 2019).

    trace: z (B, P), changed. float32 or float64, as are all tensors, on one device.
    decay: a number, or (B,).
    psi: (B, R), d state / d parameter at the time of the signal, over z; None without a signal.
    pre: (B, P), what the matrix is multiplied with.
    signal: (B, n), dE / d state; R must be a multiple of n, row r belongs to unit r mod n.
    grad: (R, P), added into, together with ``signal``.

    K pending steps: ``pre`` (K, B, P), ``decay`` also (K, B); ``signal`` for the last step alone or
    (K', B, n) for the last K' states, at most K + 1; ``psi`` (B, R) for all of these, or with a
    leading K' or K. The results are, bit for bit, those of K calls with one step each.

    Returns ``trace``. Raises as `trace_step_`.

    Example:
        z, grad = torch.zeros(32, 64), torch.zeros(256, 64)  # B, P; n, P
        for x_t, target in data:
            v = 0.9 * v + x_t @ w.T
            y = v.tanh()
            signal = (y @ w_out.T - target) @ w_out
            rank1_trace_step_(z, 0.9, 1 - y**2, x_t, signal, grad)
        w -= 1e-3 * grad
    """
    rate = _rate(decay)
    tensors = {"trace": trace, "decay": rate, "psi": psi, "pre": pre}
    _check({**tensors, "signal": signal, "grad": grad})
    if trace.dim() != 2:
        raise ValueError(f"trace has shape {tuple(trace.shape)}; expected (B, P)")
    _pair(signal, grad)
    batch, columns = trace.shape
    steps = _steps(pre, batch, columns)
    count = steps[0] if steps else 1
    if rate is None or rate.dim() == 0:
        full = torch.as_tensor(decay, dtype=trace.dtype, device=trace.device)
    else:
        full = _shape("decay", rate, (batch,), *([(*steps, batch)] if steps else []))
    full = full.expand(count, batch)
    if signal is None:
        psi = None
    else:
        if psi is None:
            raise ValueError("psi is None; expected a tensor, since signal is given")
        if psi.dim() not in (2, 3):
            raise ValueError(f"psi has shape {tuple(psi.shape)}; expected (B, R) or (K', B, R)")
        rows = psi.shape[-1]
        signal = _contracted(signal, count + 1, (batch, _units(rows, (signal,))))
        many = signal.shape[0]
        _shape("psi", psi, (batch, rows), (many, batch, rows), (*steps, batch, rows))
        if psi.dim() == 2:
            psi = psi.expand(many, batch, rows)
        elif psi.shape[0] != many:
            psi = psi[-many:] if many else psi[:0]
        assert grad is not None
        _shape("grad", grad, (rows, columns))
    if not steps:
        pre = pre[None]
    if signal is not None and signal.shape[0] == 0:
        signal = psi = grad = None
    _run(_trace.rank1_trace_step, trace, grad, full, psi, pre, signal)
    return trace
