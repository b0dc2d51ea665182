"""Lyapunov exponents of recurrent modules, and a loss that moves them."""

from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from .. import _state
from ..curvature._evaluation import kept_random_state
from ..curvature._progress import Progress
from ..nn.base import RecurrentBase
from ..nn.lru import LRU
from ._states import (
    check_count,
    check_module,
    directions,
    joined,
    parted,
    state_size,
    step,
    time_major,
)


def lyapunov(
    module: RecurrentBase | LRU,
    x: Tensor,
    k: int = 1,
    *,
    skip: int = 0,
    interval: int = 1,
    seed: int = 0,
    per_sequence: bool = False,
    progress: bool = False,
) -> Tensor:
    """The k largest Lyapunov exponents of a module driven by x, in natural logarithms per step.

    The QR method (Benettin et al. 1980; Engelken et al. 2023 for networks): k tangents of each
    sequence's state go along with it in one batched pass of the tangent kernels, and are made
    orthonormal every ``interval`` steps; the exponents are the mean logarithms of what that takes
    off their lengths. The first one above 0 means chaos. States start at zero; ``skip`` steps at
    the beginning are left out of the mean. The Jacobian is that of the map, whatever the rule.
    Nothing is changed.

    Args:
        module: a LeakyRNN, GRU or LSTM, whose state is that of all layers (N numbers a sequence),
            or an LRU, whose exponents are ``log|λ|``, each twice.
        x: (T, B, m), laid out as the module takes it, or (T, m).
        k: 1 to N (LRU: 2 n).
        skip: 0 to T - 1.
        interval: steps between orthonormalisations, at least 1; tangents may shrink or grow by the
            range of the dtype in between.
        seed: of the first tangents.
        per_sequence: give each sequence's exponents.
        progress: show a line on standard error.

    Returns:
        (k,) float64, falling, the mean over sequences; or (B, k), in the order in which they were
        found. -inf where the map has no inverse.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or value; a spiking module.
    """
    module = check_module(module)
    x = time_major(module, x)
    steps, batch = x.shape[:2]
    size = 2 * module.hidden_size if isinstance(module, LRU) else state_size(module)
    k = check_count("k", k, 1, size)
    skip = check_count("skip", skip, 0, steps - 1)
    interval = check_count("interval", interval, 1, steps)
    seed = check_count("seed", seed, 0, 2**63 - 1)
    if isinstance(module, LRU):
        found = -module.nu_log.detach().double().exp().repeat_interleave(2)
        found = found.sort(descending=True).values[:k]
        return found.expand(batch, k).clone() if per_sequence else found
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        _state.exact_gradients(),
        kept_random_state(x.device),
        Progress("lyapunov", steps, progress, "steps") as line,
    ):
        found = _exponents(module, x, k, skip, interval, seed, line)
    return found if per_sequence else found.mean(0).sort(descending=True).values


def _exponents(
    module: RecurrentBase, x: Tensor, k: int, skip: int, interval: int, seed: int, line: Progress
) -> Tensor:
    steps, batch = x.shape[:2]
    h = x.new_zeros(batch, state_size(module))
    q = directions(batch, h.shape[1], k, seed).to(x.device)
    logs = torch.zeros(batch, k, dtype=torch.float64, device=x.device)
    # a piece ends where counting begins
    starts = sorted({*range(0, skip, interval), *range(skip, steps, interval)})
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        piece = x[start:end].transpose(0, 1) if module.batch_first else x[start:end]

        def run(flat: Tensor, piece: Tensor = piece) -> Tensor:
            return joined(module(piece, parted(module, flat))[1])

        def moved(v: Tensor, run: Any = run, h: Tensor = h) -> tuple[Tensor, Tensor]:
            return jvp(run, (h,), (v,))[:2]

        after, tangents = vmap(moved, randomness="same")(q.permute(2, 0, 1).to(x.dtype))
        h = after[0]
        q, r = torch.linalg.qr(tangents.permute(1, 2, 0).double())
        if start >= skip:
            logs += r.diagonal(dim1=1, dim2=2).abs().log()
        line.update(end)
    return logs / (steps - skip)


def gradient_flossing(
    module: RecurrentBase,
    x: Tensor,
    k: int = 1,
    *,
    target: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """A loss that brings the k largest Lyapunov exponents to 0, where gradients neither vanish nor
    explode: ``mean (λ_i - target)²``. Engelken 2023, "Gradient flossing". Infinite where a Jacobian
    is singular, such as with recurrent weights of zero.

    Differentiable in the module's parameters and in x, through every Jacobian and QR decomposition:
    exact gradients, whatever the rule. For pre-training, or added to a loss now and then. The
    exponents are those of `lyapunov` with the same seed. T steps in Python, with a graph that keeps
    them all: use short pieces of x.

    Args:
        module: a LeakyRNN without noise, a GRU or an LSTM.
        x: (T, B, m), laid out as the module takes it, or (T, m).
        k: number of exponents, 1 to N.
        target: where to, in natural logarithms per step.
        seed: of the first tangents.

    Returns:
        A scalar of the module's dtype.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or value; a spiking module, an LRU,
            or one with noise.
    """
    module = check_module(module)  # type: ignore[assignment]
    if isinstance(module, LRU):
        raise ValueError(
            "module: the exponents of an LRU are log|λ| = -exp(nu_log): use a loss of nu_log"
        )
    if getattr(module, "noise_std", 0.0) > 0:
        raise ValueError(f"module: has noise_std={module.noise_std}; expected one without noise")
    x = time_major(module, x)
    if isinstance(target, bool) or not isinstance(target, int | float):
        raise TypeError(f"target: got {type(target).__name__}, expected a number")
    k = check_count("k", k, 1, state_size(module))
    seed = check_count("seed", seed, 0, 2**63 - 1)
    steps, batch = x.shape[:2]
    h = x.new_zeros(batch, state_size(module))
    q = directions(batch, h.shape[1], k, seed).to(x)
    logs = x.new_zeros(batch, k)
    for x_t in x:

        def moved(v: Tensor, x_t: Tensor = x_t, h: Tensor = h) -> tuple[Tensor, Tensor]:
            return jvp(lambda flat: step(module, x_t, flat), (h,), (v,))[:2]

        after, tangents = vmap(moved)(q.permute(2, 0, 1))
        h = after[0]
        q, r = torch.linalg.qr(tangents.permute(1, 2, 0))
        logs = logs + r.diagonal(dim1=1, dim2=2).abs().log()
    exponents = (logs / steps).mean(0)
    return (exponents - target).square().mean()
