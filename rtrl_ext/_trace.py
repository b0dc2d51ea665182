"""The operations that update eligibility traces in place: shapes for tracing, and calls that count
the versions of what they change. Their arguments are those of ``reference.traces``."""

from torch import Tensor

from . import _kernels

NAMES = ("trace_step", "rank1_trace_step")


def register(namespace: str) -> None:
    """Shapes of the operations of a namespace."""
    _kernels.register_writing(namespace, NAMES)


for _namespace in _kernels.NAMESPACES:
    register(_namespace)


def trace_step(
    trace: Tensor,
    bias: Tensor | None,
    decay: Tensor,
    psi: Tensor,
    pre: Tensor,
    signal: Tensor | None = None,
    grad: Tensor | None = None,
    grad_bias: Tensor | None = None,
    commit: int | None = None,
) -> None:
    """`reference.traces.trace_step` by the kernels in use, of arguments that are known to be good.

    ``commit=None``: all K steps. ``decay``, ``psi``, ``pre`` and ``signal`` may have stride 0.
    Fastest where ``trace`` lies as (R, B, S, Q) in memory: see `new_trace`.
    """
    commit = pre.shape[0] if commit is None else commit
    run = _kernels.operation("trace_step")
    run(trace, bias, decay, psi, pre, signal, grad, grad_bias, commit)
    _kernels.changed(trace, bias, grad, grad_bias)


def rank1_trace_step(
    trace: Tensor,
    bias: Tensor | None,
    decay: Tensor,
    psi: Tensor | None,
    pre: Tensor,
    signal: Tensor | None = None,
    grad: Tensor | None = None,
    grad_bias: Tensor | None = None,
    commit: int | None = None,
) -> None:
    """`reference.traces.rank1_trace_step`, in the same way."""
    commit = pre.shape[0] if commit is None else commit
    run = _kernels.operation("rank1_trace_step")
    run(trace, bias, decay, psi, pre, signal, grad, grad_bias, commit)
    _kernels.changed(trace, bias, grad, grad_bias)


def new_trace(batch: int, states: int, rows: int, columns: int, like: Tensor) -> Tensor:
    """Zeros (B, S, R, Q) in the memory layout that `trace_step` is fastest in, (R, B, S, Q)."""
    return like.new_zeros(rows, batch, states, columns).permute(1, 2, 0, 3)
