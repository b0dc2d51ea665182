"""The differentiable core of the leaky recurrent cell: argument checks and the choice of route.

plain call                      the registered operations through ``_autograd.Plain``
``torch.func`` or forward mode  ``_functorch.Forward`` and the Functions it leads to
the same while compiling        the reference, differentiated by torch itself
"""

from typing import Any

import torch
from torch import Tensor

from . import _formulas, _kernels, _state
from ._autograd import Plain, in_transform
from ._checks import has_values
from ._dtypes import HALF, computed
from ._formulas import EXACT, Rule, Written, with_lead
from ._functorch import Forward
from .reference import activations, leaky_rnn

FORMS = ("rate", "voltage")
_FORM = {name: i for i, name in enumerate(FORMS)}
_ACT = {name: i for i, name in enumerate(activations.NAMES)}
_DTYPES = (torch.float32, torch.float64)
COMPILED_TRANSFORM = (
    "inside torch.compile, torch.func transforms and forward mode work for BPTT alone: run the "
    "call inside `with rtrl_ext.exact_gradients():`, or outside torch.compile"
)


def leaky_core(
    pre: Tensor,
    y0: Tensor,
    s0: Tensor,
    w: Tensor,
    leak: Tensor,
    *,
    lengths: Tensor | None = None,
    form: str = "rate",
    nonlinearity: str = "tanh",
    unit_leak: bool = False,
    policy: int = 0,
    transport: Tensor | None = None,
    mu: float = 0.0,
    window: int = 0,
    decay: float = 0.0,
    modulator: Tensor | None = None,
    adjoint: Any = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of one layer from its pre-activations, differentiable in the five tensors.

    Args:
        pre: everything of the pre-activation but the recurrent part, (T, B, n) or (L, T, B, n).
            float32 or float64, as are all that follow; float16 and bfloat16 on CUDA, where ``leak``
            is float32. With the leading dimension, every tensor has it, with size L or 1 (shared).
        y0: output before the first step, (B, n) or (L|1, B, n).
        s0: state before the first step, same shapes: rate form h, voltage form v.
        w: recurrent weight, (n, n) or (L|1, n, n), row = postsynaptic.
        leak: κ in (0, 1], (n,) or (L|1, n).
        lengths: (B,) int64 in 1..T, rows stop at their length; None: all run T steps.
        form: "rate" or "voltage".
        nonlinearity: "tanh", "relu", "softplus" or "identity".
        unit_leak: promise that ``leak`` is 1 everywhere and needs no gradient (rate form only);
            saves memory and time.
        policy: what the backward recursion carries across units, 0 to 4: see
            ``reference.leaky_rnn.leaky_backward``.
        transport: the matrix of policies 2, 3 and 4, shaped as ``w``, a constant of the backward
            pass; None: ``w`` itself.
        mu: factor of policy 3.
        window: policy 0: cut the recursion every ``window`` steps counted from the end (0: never).
        decay: policy 1: readout filter of the learning signal.
        modulator: third factor, (T, B) or (T, B, n), multiplies the learning signal.
        adjoint: a function that is the whole backward recursion, instead of the options above: see
            ``rules.Rule.adjoint``.

    Returns:
        ``y`` (T, B, n) or (L, T, B, n), zero after a row's length, and ``s_n`` (B, n) or (L, B, n),
        the state after each row's last step.

    Raises:
        TypeError: another dtype, or mixed ones.
        ValueError: shapes, devices or options that don't fit together.
        RuntimeError: second derivatives under a policy other than BPTT; third derivatives; a CUDA
            tensor in a build without CUDA.
    """
    options = flags(form, nonlinearity, unit_leak)
    _kernels.check_device(pre.device)
    _check_tensors(pre, y0, s0, w, leak)
    if lengths is not None:
        _check_lengths(lengths, pre)
    rule: Rule | Written = EXACT
    if _state.exact_enabled():
        transport = modulator = None
    elif adjoint is not None:
        rule = Written(adjoint)
    elif policy or window or decay or mu or modulator is not None or transport is not None:
        rule = Rule(policy, mu, window, decay)
        _check_rule(rule, w, transport)
        transport = None if transport is w else with_lead(transport, 3)
        modulator = _formulas.lead_modulator(modulator, pre)
    single = pre.dim() == 3
    if not in_transform():
        if s0 is y0 and torch.compiler.is_compiling():
            s0 = y0.view_as(y0)  # dynamo wants distinct arguments of a Function
        y, _, s_n = Plain.apply(
            pre, y0, s0, w, leak, lengths, transport, modulator, options, rule, single
        )
        return y, s_n
    if single:
        pre, y0, s0, w, leak = (x.unsqueeze(0) for x in (pre, y0, s0, w, leak))
    arguments = (pre, y0, s0, w, leak, lengths, *options, transport, modulator, rule)
    if torch.compiler.is_compiling():
        if rule is not EXACT:
            raise RuntimeError(COMPILED_TRANSFORM)
        y, _, s_n = leaky_rnn.leaky_forward(*arguments[:9])
    else:
        y, _, s_n = Forward.apply(*arguments)
    return (y.squeeze(0), s_n.squeeze(0)) if single else (y, s_n)


def flags(form: str, nonlinearity: str, unit_leak: bool) -> tuple[int, int, bool]:
    """The numbers by which the kernels know the options."""
    numbers = _index(_FORM, form, "form"), _index(_ACT, nonlinearity, "nonlinearity")
    if unit_leak and numbers[0] == 1:
        raise ValueError("unit_leak=True is for form='rate', got form='voltage'")
    return (*numbers, unit_leak)


def _index(table: dict[str, int], name: str, argument: str) -> int:
    try:
        return table[name]
    except (KeyError, TypeError):
        known = ", ".join(repr(x) for x in table)
        raise ValueError(f"{argument} is {name!r}; expected one of {known}") from None


def _check_tensors(pre: Tensor, y0: Tensor, s0: Tensor, w: Tensor, leak: Tensor) -> None:
    """Dtype, device and shape against ``pre``'s."""
    dtype, device, shape = pre.dtype, pre.device, pre.shape
    if dtype not in _DTYPES and not (dtype in HALF and _kernels.takes_half(device)):
        raise TypeError(f"pre has dtype {dtype}; expected torch.float32 or torch.float64")
    dims = len(shape)
    if dims not in (3, 4):
        raise ValueError(f"pre has shape {tuple(shape)}; expected (T, B, n) or (L, T, B, n)")
    if shape[-3] == 0:
        raise ValueError("pre has no time steps; expected T >= 1")
    tail = shape[-2:]
    n = tail[1:]
    for name, x, end in (
        ("y0", y0, tail),
        ("s0", s0, tail),
        ("w", w, n + n),
        ("leak", leak, n),
    ):
        if x.dtype != dtype and (x is not leak or x.dtype != computed(dtype)):
            raise TypeError(f"{name} has dtype {x.dtype}; expected pre's, {dtype}")
        if x.device != device:
            raise ValueError(f"{name} is on {x.device}; expected pre's device, {device}")
        if x.shape[dims - 3 :] != end or x.dim() != len(end) + dims - 3:
            start = "(L or 1, " if dims == 4 else "("
            expected = start + ", ".join(str(size) for size in end) + ")"
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}")
    if dims == 4:
        sizes = [x.shape[0] for x in (pre, y0, s0, w, leak)]
        lead = 0 if 0 in sizes else max(sizes)
        for name, x in (("pre", pre), ("y0", y0), ("s0", s0), ("w", w), ("leak", leak)):
            if x.shape[0] not in (1, lead):
                raise ValueError(f"{name} has leading size {x.shape[0]}; expected 1 or {lead}")


def _check_lengths(lengths: Tensor, pre: Tensor) -> None:
    """Type and shape; values only where they can be read at once."""
    if lengths.dtype != torch.int64:
        raise TypeError(f"lengths has dtype {lengths.dtype}; expected torch.int64")
    steps, batch = pre.shape[-3:-1]
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; expected ({batch},)")
    # on a GPU that would wait for it; modules have looked at them before
    if batch and not lengths.is_cuda and not torch.compiler.is_compiling() and not in_transform():
        least = lengths.min()
        if not has_values(least):
            return
        low, high = least.item(), lengths.max().item()
        if low < 1 or high > steps:
            raise ValueError(f"lengths runs from {low} to {high}; expected values in 1..{steps}")


def _check_rule(rule: Rule, w: Tensor, transport: Tensor | None) -> None:
    policy, _, window, decay = rule
    if policy not in range(5):
        raise ValueError(f"policy is {policy!r}; expected 0, 1, 2, 3 or 4")
    if transport is not None and transport is not w and policy < 2:
        raise ValueError(f"policy {policy} takes no transport matrix; policies 2, 3 and 4 do")
    if transport is not None and transport is not w:
        if transport.dtype != w.dtype:
            raise TypeError(f"transport has dtype {transport.dtype}; expected {w.dtype}")
        if transport.shape[-2:] != w.shape[-2:] or transport.dim() not in (2, w.dim()):
            raise ValueError(
                f"transport has shape {tuple(transport.shape)}; expected w's, {tuple(w.shape)}"
            )
    if window < 0 or (window and policy != 0):
        raise ValueError(f"window is {window} with policy {policy}; expected 0, or policy 0")
    if decay and policy != 1:
        raise ValueError(f"decay is {decay} with policy {policy}; it belongs to policy 1")
