"""Random influence matrices of low rank that are right in the mean: UORO, KF-RTRL and OK."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _kernels
from .. import _stochastic_ops as _stochastic_ops  # defines the operations
from .._checks import check_tensor
from ._pending import Pending, named

#: As in csrc/kernels/uoro.h.
MOST_BLOCKS = 16


def _blocks(name: str, value: Any, count: int | None) -> list[Any]:
    """One tensor or a sequence of ``count`` as a list."""
    found = [value] if isinstance(value, Tensor) else value
    if not isinstance(found, (list, tuple)):
        came = type(value).__name__
        raise TypeError(f"{name} is a {came}; expected a tensor, or a list of one for each block")
    if count is None and not 1 <= len(found) <= MOST_BLOCKS:
        raise ValueError(f"{name} has {len(found)} blocks; expected 1 to {MOST_BLOCKS}")
    if count is not None and len(found) != count:
        raise ValueError(f"{name} has {len(found)} blocks; expected {count}, as theta")
    return list(found)


def uoro_step_(
    state: Tensor,
    theta: Tensor | Sequence[Tensor],
    jacobian: Tensor,
    psi: Tensor | Sequence[Tensor],
    pre: Tensor | Sequence[Tensor],
    signs: Tensor,
    signal: Tensor | None = None,
    grad: Tensor | Sequence[Tensor] | None = None,
    *,
    keep: Tensor | None = None,
    norm: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """One step, or K pending steps, of UORO (Tallec & Ollivier 2018), in place.

        s = ρ0 J s + ρ1 ν                 ρ0 = sqrt(|θ~| / |J s|)
        θ~ = θ~ / ρ0 + νᵀ I / ρ1          ρ1 = sqrt(|νᵀ I| / |ν|)
        grad += Σ_b (signal · s) θ~

    The mean of s ⊗ θ~ over all signs ν is the influence of the parameters on the states. A ratio
    whose numerator or denominator is zero is 1; norms are those of a row of the batch, over all
    blocks. Works for every cell. θ~ is read and written once a step, and νᵀ I is never made.

    B rows; n units with S states each, state s of unit u is number s n + u. A block of parameters
    is a matrix (R, Q) whose row r belongs to unit r mod n; a vector of one parameter a unit is a
    block with Q = 1. ``theta``, ``psi``, ``pre`` and ``grad`` are a tensor each for one block, or
    lists for 1 to 16 blocks.

    state: s (B, S n), changed. theta: θ~ (B, R, Q), changed. Both begin as zeros.
    jacobian: d state_t / d state_{t-1} (B, S n, S n), row = new state.
    psi (B, S, R), pre (B, Q): d state[s, r mod n] / d parameter[r, q] = psi[b, s, r] pre[b, q].
    signs: ν (B, S n), 1 or -1, fresh for each row and step: `random_signs`.
    signal: dE/d state, (B, S n) or (B, S, n), of a step that has an error. grad: (R, Q), added to.
    keep: (B,) bool, False where a row's past is dropped before the step: J and θ~ count as 0.
    norm: (B,), |θ~| before the step, changed to that after it; spares one read of ``theta``.

    K pending steps: ``jacobian``, ``psi``, ``pre`` and ``signs`` have a leading K, ``signal`` a
    leading K' <= K, of the last K' steps; ``keep`` is of the first. The result is that of K calls,
    bit for bit. Each step is a pass over ``theta``, since the next one's ρ0 needs its norm.

    float32 or float64, all the same; tensors that are changed are contiguous and share no memory
    with others. Returns ``state`` and ``theta``.
    Raises TypeError for wrong types and dtypes, ValueError for shapes, devices, layouts and shared
    memory, RuntimeError for tensors that require grad. A refused call changes nothing.

    Example:
        s, theta = torch.zeros(B, n), torch.zeros(B, n, m + n)
        grad, first = torch.zeros(n, m + n), torch.zeros(B, dtype=torch.int64)
        h = torch.zeros(B, n)
        for t, x_t in enumerate(x):
            pre = torch.cat([x_t, h], 1)
            h = torch.tanh(pre @ weight.T)
            slope = 1 - h**2
            nu = rx.functional.random_signs(seed, first + t, n, dtype=h.dtype)[0]
            J = slope[:, :, None] * weight[:, m:]
            rx.functional.uoro_step_(s, theta, J, slope[:, None], pre, nu, h - target[t], grad)
    """
    blocks = _blocks("theta", theta, None)
    count = len(blocks)
    psis, pres = _blocks("psi", psi, count), _blocks("pre", pre, count)
    grads = [] if grad is None else _blocks("grad", grad, count)
    call = Pending.of_call("uoro_step_", state, "state", 2, jacobian)
    call.written("state", state, call.batch, call.states)
    first = 0
    for i in range(count):
        states, rows, n = call.rows(f"psi[{i}]", psis[i])
        if i > 0 and states != first:
            raise ValueError(f"psi[{i}] has S = {states} states; expected {first}, as psi[0]")
        first = states
        check_tensor(f"theta[{i}]", blocks[i])
        columns = blocks[i].shape[-1] if blocks[i].dim() == 3 else 0
        call.written(f"theta[{i}]", blocks[i], call.batch, rows, columns)
        call.each(f"pre[{i}]", pres[i], call.batch, columns)
        if grads:
            call.written(f"grad[{i}]", grads[i], rows, columns)
    call.each("signs", signs, call.batch, call.states)
    signal, keep = call.signal(signal, n), call.keep(keep)
    known = norm is not None
    if norm is None:
        norm = state.new_empty(call.batch)
    else:
        call.written("norm", norm, call.batch)
    if signal is None:
        grads = []
    written = {"state": state, "norm": norm, **named("theta", blocks), **named("grad", grads)}
    read = {"jacobian": jacobian, "signs": signs, "signal": signal, "keep": keep}
    call.ready(written, {**read, **named("psi", psis), **named("pre", pres)})
    if call.count is None:
        jacobian, signs = jacobian.unsqueeze(0), signs.unsqueeze(0)
        psis, pres = [x.unsqueeze(0) for x in psis], [x.unsqueeze(0) for x in pres]
    _kernels.check_device(state.device)
    _kernels.operation("uoro_step")(
        state, blocks, norm, known, jacobian, psis, pres, signs, keep, signal, grads
    )
    return state, theta


def _kronecker_step(
    function: str,
    u: Tensor,
    a: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    signs: Tensor,
    signal: Tensor | None,
    grad: Tensor | None,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    ranked = function == "ok_step_"
    call = Pending.of_call(function, u, "u", 3 if ranked else 2, jacobian)
    _, rows, n = call.rows("psi", psi)
    terms, columns = u.shape[1:-1], u.shape[-1]
    if ranked and terms[0] == 0:
        raise ValueError("u has r = 0 terms; expected at least one")
    call.written("u", u, call.batch, *terms, columns)
    call.written("a", a, call.batch, *terms, call.states, rows)
    call.each("pre", pre, call.batch, columns)
    call.each("signs", signs, call.batch, terms[0] + 1 if ranked else 2)
    signal, keep = call.signal(signal, n), call.keep(keep)
    written = {"u": u, "a": a}
    if grad is not None:
        call.written("grad", grad, rows, columns)
        if signal is not None:
            written["grad"] = grad
    read = {"jacobian": jacobian, "psi": psi, "pre": pre, "signs": signs}
    call.ready(written, {**read, "signal": signal, "keep": keep})
    if call.count is None:
        jacobian, psi, pre, signs = (x.unsqueeze(0) for x in (jacobian, psi, pre, signs))
    _kernels.operation(function.removesuffix("_"))(
        u, a, jacobian, psi, pre, signs, keep, signal, None if signal is None else grad
    )
    return u, a


def kfrtrl_step_(
    u: Tensor,
    a: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    signs: Tensor,
    signal: Tensor | None = None,
    grad: Tensor | None = None,
    *,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step, or K pending steps, of KF-RTRL (Mujika et al. 2018), in place.

        u' = c1 p1 u + c2 p2 pre          p1 = sqrt(|J A| / |u|)
        A' = c1 / p1 J A + c2 / p2 D      p2 = sqrt(|D| / |pre|)
        grad += Σ_b (signal A)ᵀ u

    The mean of u ⊗ A over all signs c is the influence of the parameters on the states. All
    parameters of the layer are one block, since u is shared: the immediate influence must be
    pre ⊗ D, as in `LeakyRNN`, `LSTM`, `ALIF` and `LIF`, not `GRU`.

    u: (B, P), a: (B, S n, R), both changed; both begin as zeros. pre: (B, P). signs: (B, 2).
    psi: (B, S, R), of which D is made: D[b, s n + r mod n, r] = psi[b, s, r].
    grad: (R, P), added to. jacobian, signal, keep, pending steps, dtypes and errors as in
    `uoro_step_`. Returns ``u`` and ``a``.

    Example:
        u, a = torch.zeros(B, m + n), torch.zeros(B, n, n)
        for t, x_t in enumerate(x):
            pre = torch.cat([x_t, h], 1)
            h = torch.tanh(pre @ weight.T)
            slope = 1 - h**2
            c = rx.functional.random_signs(seed, first + t, 2, dtype=h.dtype)[0]
            J = slope[:, :, None] * weight[:, m:]
            rx.functional.kfrtrl_step_(u, a, J, slope[:, None], pre, c, h - target[t], grad)
    """
    return _kronecker_step("kfrtrl_step_", u, a, jacobian, psi, pre, signs, signal, grad, keep)


def ok_step_(
    u: Tensor,
    a: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    signs: Tensor,
    signal: Tensor | None = None,
    grad: Tensor | None = None,
    *,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step, or K pending steps, of OK(r) (Benzing et al. 2019), in place.

    The influence is a sum of r Kronecker products u_i ⊗ A_i. A step makes r + 1 of them,
    u_i ⊗ J A_i and pre ⊗ D, and reduces them to r: of the singular values d_1 >= ... >= d_{r+1} of
    their sum the largest m are kept exactly, the rest mixed by random signs into k = r - m terms,
    where m is the smallest with k d_{m+1} <= s1 = d_{m+1} + ... + d_{r+1}. So the mean is right and
    the variance of a step, s1² / k - Σ d_i² over the mixed values, the least there is. Exact where
    r terms are enough. Singular values below 8 (r + 1) roundings of the largest count as zero.

    u: (B, r, P), a: (B, r, S n, R), both changed; both begin as zeros. signs: (B, r + 1).
    The rest as in `kfrtrl_step_`, cells too. A row of the batch that isn't finite becomes NaN and
    disturbs no other. Returns ``u`` and ``a``.

    Example:
        u, a = torch.zeros(B, r, m + n), torch.zeros(B, r, n, n)
        for t, x_t in enumerate(x):
            pre = torch.cat([x_t, h], 1)
            h = torch.tanh(pre @ weight.T)
            slope = 1 - h**2
            c = rx.functional.random_signs(seed, first + t, r + 1, dtype=h.dtype)[0]
            J = slope[:, :, None] * weight[:, m:]
            rx.functional.ok_step_(u, a, J, slope[:, None], pre, c, h - target[t], grad)
    """
    return _kronecker_step("ok_step_", u, a, jacobian, psi, pre, signs, signal, grad, keep)


def random_signs(
    seed: int,
    first: Tensor,
    count: int,
    *,
    steps: int = 1,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Random signs, 1 or -1, of ``steps`` steps from a counter-based generator.

    A sign depends on (seed, stream, step, row, index) alone: the same on any device, drawn at once
    or step by step. Philox-4x32-10 (Salmon et al. 2011), one bit a sign.

    seed: from 0 to 2^63 - 1. first: (B,) int64, each row's own number of the first step (modulo
        2^32), on the device that the signs are made on. stream: from 0 to 2^31 - 1, separates draws
        that share a seed, such as layers. dtype: float32 or float64.

    Returns (steps, B, count).
    Raises TypeError for wrong types and dtypes, ValueError for values and shapes.

    Example: ``random_signs(7, torch.zeros(32, dtype=torch.int64), 128)[0]``
    """
    for name, value, low, high in (
        ("seed", seed, 0, 2**63 - 1),
        ("count", count, 1, 2**38),
        ("steps", steps, 1, 2**32),
        ("stream", stream, 0, 2**31 - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is a {type(value).__name__}; expected an int")
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; expected {low} to {high}")
    check_tensor("first", first)
    if first.dtype != torch.int64:
        raise TypeError(f"first has dtype {first.dtype}; expected torch.int64")
    if first.dim() != 1:
        raise ValueError(f"first has shape {tuple(first.shape)}; expected (B,)")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype is {dtype}; expected torch.float32 or torch.float64")
    _kernels.check_device(first.device)
    out = torch.empty(steps, len(first), count, dtype=dtype, device=first.device)
    _kernels.operation("random_signs")(out, seed, first.contiguous(), stream)
    return out
