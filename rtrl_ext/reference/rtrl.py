"""A step of exact real-time recurrent learning in plain PyTorch. Williams & Zipser 1989.

The influence matrix of a block of parameters (R, Q) is d state / d parameter; row r belongs to unit
r mod n, R = G n, and states are ordered s n + unit. Leading K: pending steps, oldest first.
"""

from torch import Tensor


def add_immediate(influence: Tensor, psi: Tensor, pre: Tensor) -> None:
    """Adds d state / d parameter of one step to ``influence`` (B, S n, R, Q), in place.

    psi (B, S, R), pre (B, Q): of the states, those of a parameter's own unit alone are touched.
    """
    batch, states, rows = psi.shape
    n, columns = influence.shape[1] // states, pre.shape[-1]
    gates = rows // n
    whole = influence.unflatten(1, (states, n)).unflatten(3, (gates, n))
    own = whole.diagonal(dim1=2, dim2=4)  # (B, S, G, Q, n), a view
    own += psi.reshape(batch, states, gates, 1, n) * pre.reshape(batch, 1, 1, columns, 1)


def contract(influence: Tensor, signal: Tensor, grad: Tensor) -> None:
    """Adds signal (B, S, n) times influence (B, S n, R, Q), summed over states and the batch."""
    total = signal.reshape(1, -1) @ influence.reshape(-1, grad.numel())
    grad += total.reshape(grad.shape)


def rtrl_step(
    influence: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    signal: Tensor | None,
    grad: Tensor | None,
) -> None:
    """``M_t = J_t M_{t-1} + I_t`` for K pending steps, in place.

    influence M (B, S n, R, Q); jacobian (K, B, S n, S n), row = new state; psi (K, B, S, R); pre
    (K, B, Q). signal (K', B, S, n): dE/d state of the last K' steps, whose gradients are added to
    grad (R, Q); with K = 0, of M as it is.
    """
    steps = jacobian.shape[0]
    signals = 0 if signal is None else signal.shape[0]
    for k in range(steps):
        flat = influence.flatten(2)
        influence.copy_((jacobian[k] @ flat).reshape(influence.shape))
        add_immediate(influence, psi[k], pre[k])
        at = k - (steps - signals)
        if signal is not None and grad is not None and at >= 0:
            contract(influence, signal[at], grad)
    if steps == 0 and signal is not None and grad is not None:
        for one in signal:
            contract(influence, one, grad)
