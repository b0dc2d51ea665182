"""One differentiable layer of linear recurrent units: maps in and out, the scan between them."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import _state
from ._autograd import in_transform
from ._gated_layer import under_wrapper
from ._layer import without_padding
from ._lru import scan, window_of
from .rules import BPTT, Rule
from .rules.wrappers import Wrapper

PARAMETERS = ("nu_log", "theta", "B_re", "B_im", "C_re", "C_im", "D")
#: of nu_log, in which exp(nu_log) and exp(-exp(nu_log)) are normal numbers
_RANGE = {torch.float32: (-80.0, 4.4), torch.float64: (-700.0, 6.5)}
_PIECE = 8 << 20  # bytes of a piece's states


def recurrence(nu_log: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """λ in planes ((R,) 2, n), real parts before imaginary ones, and γ ((R,) n); differentiable."""
    # further out the results don't change, and the derivatives would be 0 times infinity
    decay = torch.exp(nu_log.clamp(*_RANGE[nu_log.dtype]))
    modulus = torch.exp(-decay)
    lam = torch.stack([modulus * torch.cos(theta), modulus * torch.sin(theta)], -2)
    # 1 - |λ|² without the cancellation near |λ| = 1
    return lam, torch.sqrt(-torch.expm1(-2 * decay))


class StepConstants(NamedTuple):
    """What a step and its derivatives are made of; j is a plane before, i one after.

    gamma (n,). lam (2, 2, n): [j, i] is d s_i / d s_j, its first row λ in planes. slopes (2, 2, 2,
    n): [j, i, 0] is the derivative of that by nu_log, [j, i, 1] by theta. ratio (n,): dγ/dnu_log
    over -γ.
    """

    gamma: Tensor
    lam: Tensor
    slopes: Tensor
    ratio: Tensor


def step_constants(nu_log: Tensor, theta: Tensor) -> StepConstants:
    """The numbers of `recurrence` and their derivatives written out, in few operations."""
    inside = nu_log.clamp(*_RANGE[nu_log.dtype])
    decay = -torch.exp(inside)
    modulus = torch.exp(decay)
    re, im = modulus * torch.cos(theta), modulus * torch.sin(theta)
    squared = -torch.expm1(2 * decay)
    rate = decay * (inside == nu_log)
    nre, nim = -re, -im
    both = torch.stack([re, im, nim, re, nim, re, nre, nim])
    slopes = torch.stack([both[:4] * rate, both[4:]], 1)
    shape = (2, 2, -1)
    return StepConstants(
        torch.sqrt(squared), both[:4].view(shape), slopes.view(2, 2, 2, -1),
        rate * modulus.square() / squared,
    )  # fmt: skip


def check_complex(h0: Tensor, like: Tensor) -> None:
    """TypeError if ``h0`` isn't of the complex dtype that goes with ``like``."""
    expected = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    if h0.dtype != expected:
        raise TypeError(f"h0 has dtype {h0.dtype}; expected {expected}")


def lru_layer(
    x: Tensor,
    s0: Tensor | None,
    nu_log: Tensor,
    theta: Tensor,
    B_re: Tensor,
    B_im: Tensor,
    C_re: Tensor,
    C_im: Tensor,
    D: Tensor,
    *,
    lengths: Tensor | None = None,
    rule: Rule,
    state: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs ((R,) T, B, o) and final states, complex ((R,) B, n); arguments already checked.

    x ((R,) T, B, m); s0, complex ((R,) B, n), None for zeros; nu_log and theta ((R,) n), B_re and
    B_im ((R,) n, m), C_re and C_im ((R,) o, n), D ((R,) o, m). The outputs have R in front if any
    tensor has it, the states if one does on which they depend. ``state`` keeps what a stateful rule
    remembers between calls.
    """
    if isinstance(rule, Wrapper):
        if _state.exact_enabled():
            rule = BPTT()
        else:
            given = (nu_log, theta, B_re, B_im, C_re, C_im, D)
            y, (last,) = under_wrapper(
                partial(_run, lengths=lengths), x, (s0,),
                dict(zip(PARAMETERS, given, strict=True)), rule, {} if state is None else state,
                None, None,
            )  # fmt: skip
            return y, last
    window = 0 if _state.exact_enabled() else window_of(rule.policy(B_re, B_re))
    x = without_padding(x, lengths)
    lam, gamma = recurrence(nu_log, theta)
    n = lam.shape[-1]
    into = torch.stack(torch.broadcast_tensors(B_re, B_im), -3)
    into = (gamma[..., None, :, None] * into).flatten(-3, -2)
    out = torch.cat(torch.broadcast_tensors(C_re, -C_im), -1)
    if s0 is None:
        s = x.new_zeros(x.shape[-2], 2, n)
    else:
        s = torch.stack([s0.real, s0.imag], -2)
    whole = lengths is not None or torch.compiler.is_compiling() or in_transform()
    ranked = ((lam, 2), (into, 2), (x, 3), (s, 3))
    lead = max(t.shape[0] if t.dim() > rank else 1 for t, rank in ranked)
    row = lead * x.shape[-2] * 2 * n * x.element_size()
    pieces = [x.shape[-3]] if whole else pieces_of(x.shape[-3], row, window)
    outputs = []
    for i, part in enumerate(x.split(pieces, -3)):
        if i > 0 and window:
            s = s.detach()
        u = _map(part, into).unflatten(-1, (2, n))
        states, s = _scan(lam, u, s, lengths, window)
        outputs.append(_map(states.flatten(-2), out) + _map(part, D))
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -3)
    return y, torch.complex(*s.unbind(-2))


def _run(
    x: Tensor, states: tuple[Tensor | None, ...], *, drive: None, **options: Any
) -> tuple[Tensor, tuple[Tensor]]:
    """`lru_layer` as `under_wrapper` calls a layer."""
    y, last = lru_layer(x, states[0], **options)
    return y, (last,)


def _map(x: Tensor, weight: Tensor) -> Tensor:
    """((R,) T, B, a) through ((R,) b, a), ((R,) T, B, b)."""
    if weight.dim() == 2:
        return linear(x, weight)
    y = torch.matmul(x.flatten(-3, -2), weight.transpose(-1, -2))
    return y.unflatten(-2, x.shape[-3:-1])


def _scan(
    lam: Tensor, u: Tensor, s: Tensor, lengths: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    """The scan of tensors with replicas and without: ((R,) 2, n), ((R,) T, B, 2, n) and ((R,) B, 2,
    n)."""
    single = lam.dim() == 2 and u.dim() == 4 and s.dim() == 3
    lam, u, s = (t if t.dim() == rank else t.unsqueeze(0) for t, rank in ((lam, 3), (u, 5), (s, 4)))
    states, last = scan(lam, u, s, lengths, window)
    return (states.squeeze(0), last.squeeze(0)) if single else (states, last)


def pieces_of(steps: int, row: int, window: int) -> list[int]:
    """Steps of the pieces of time that a plain call is made of, so that what one operation writes
    is in the cache when the next reads it. They end where a window ends. ``row``: bytes of the
    states of a step."""
    size = max(1, _PIECE // max(1, row))
    size = max(window, size // window * window) if window else size
    if steps < 2 * size:
        return [steps]
    rest = steps % size
    return [rest] * (rest > 0) + [size] * (steps // size)
