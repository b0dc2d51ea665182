"""The leaky layer as a function: differentiable, or as a forward and a backward pass by hand."""

import torch
from torch import Tensor

from .. import _layer, _state
from .._checks import check_like, check_shape
from .._history import LeakyHistory
from .._kernels import check_device, kernels
from ..reference import activations
from ..rules import BPTT, Rule
from ..rules.base import for_function
from ..rules.wrappers import Wrapper
from ._arguments import LayerArguments, LeakySaved, prepare, refuse_replicas


def leaky_rnn(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    leak: float | Tensor = 1.0,
    form: str = "rate",
    nonlinearity: str = "tanh",
    mask: Tensor | None = None,
    drive: Tensor | None = None,
    lengths: Tensor | None = None,
    rule: str | Rule = "bptt",
) -> tuple[Tensor, Tensor]:
    """One layer of leaky units over whole sequences, differentiable under ``rule``.

    Equations, forms and nonlinearities as in `rtrl_ext.LeakyRNN`. float32 or float64, all the same;
    ``torch.autocast`` changes nothing.

    x: inputs (T, B, m). h0: initial state (B, n), h or v; None means zeros.
    weight_ih (n, m), weight_hh (n, n), bias_ih (n,), bias_hh (n,): as in ``torch.nn.RNN``.
    leak: κ in (0, 1], a number, or a tensor () or (n,) that gets a gradient.
    mask: bool (n, n), True = connected. drive (T, B, n): added to the pre-activations.
    lengths: (B,) integers from 1 to T. rule: name or object of `rtrl_ext.rules`.

    Any tensor but ``mask`` and ``lengths`` may have a leading dimension R: R networks in one call.
    Returns ``output`` (T, B, n) and the final state ``h_n`` (B, n), with R in front if any has it.
    Raises TypeError for wrong types and mixed dtypes, ValueError for shapes, values and devices.

    Example:
        y, h = leaky_rnn(x, None, w_ih, w_hh, leak=0.2, nonlinearity="relu", rule="eprop")
        loss_fn(y @ w_out.T, target).backward()
    """
    a = prepare(
        x,
        h0,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        leak,
        form,
        nonlinearity,
        mask,
        drive,
        lengths,
    )
    chosen = for_function(rule, "LeakyRNN", weight_hh.shape[-1])
    if isinstance(chosen, Wrapper):
        refuse_replicas(chosen, a.replicas)
    if _state.exact_enabled():
        chosen = BPTT()
    with torch.autocast(x.device.type, enabled=False):
        return _layer.leaky_layer(
            a.x, a.h0, a.weight_ih, a.weight_hh, a.bias_ih, a.bias_hh, a.leak,
            drive=a.drive, mask=a.mask, lengths=a.lengths, form=a.form,
            nonlinearity=a.nonlinearity, unit_leak=a.unit_leak, rule=chosen,
        )  # fmt: skip


@torch.no_grad()
def leaky_rnn_forward(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    leak: float | Tensor = 1.0,
    form: str = "rate",
    nonlinearity: str = "tanh",
    mask: Tensor | None = None,
    drive: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, LeakySaved]:
    """The forward pass of `leaky_rnn` without autograd, and what the other passes need of it.

    Arguments, results and errors as there; ``saved`` goes to `leaky_rnn_backward` (several times,
    also under several rules), `leaky_rnn_jvp` and `leaky_rnn_backward_jvp`. It refers to the
    arguments, which must not change in the meantime.

    Example:
        y, h, saved = leaky_rnn_forward(x, None, w_ih, w_hh)
        grads = leaky_rnn_backward(saved, 2 * (y - target), rule="eprop")
    """
    a = prepare(
        x,
        h0,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        leak,
        form,
        nonlinearity,
        mask,
        drive,
        lengths,
    )
    history = _run(a)
    lead = a.replicas is not None
    h_n = history[1]
    saved = LeakySaved(
        history[0],
        a.x if a.x.dim() == 4 else a.x.unsqueeze(0),
        a.weight_ih if a.weight_ih.dim() == 3 else a.weight_ih.unsqueeze(0),
        a.mask,
        a.replicas,
        a.shapes,
    )
    y = history[0].y
    return (y, h_n, saved) if lead else (y[0], h_n[0], saved)


def _run(a: LayerArguments) -> tuple[LeakyHistory, Tensor]:
    pre = _layer.preactivation(a.x, a.weight_ih, a.bias_ih, a.bias_hh, a.drive)
    h0 = a.h0
    if h0 is None:
        h0 = torch.zeros(a.x.shape[-2], a.weight_hh.shape[-1], dtype=pre.dtype, device=pre.device)
    y0 = _layer.initial_output(h0, a.form, a.nonlinearity)
    w = _layer.masked(a.weight_hh, a.mask)
    ranks = ((pre, 4), (y0, 3), (h0, 3), (w, 3), (a.leak, 2))
    pre, y0, s0, w, leak = (t if t.dim() == rank else t.unsqueeze(0) for t, rank in ranks)
    form = 0 if a.form == "rate" else 1
    act = activations.NAMES.index(a.nonlinearity)
    check_device(pre.device)
    y, aux, s_n = kernels().leaky_forward(pre, y0, s0, w, leak, a.lengths, form, act, a.unit_leak)
    return LeakyHistory(y, aux, y0, s0, w, leak, a.lengths, form, act, a.unit_leak), s_n


@torch.no_grad()
def leaky_rnn_backward(
    saved: LeakySaved,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None = None,
    *,
    rule: str | Rule,
) -> dict[str, Tensor]:
    """Gradients under ``rule`` from those of the results of `leaky_rnn_forward`.

    grad_output: shaped as ``output``; None means zeros. grad_h_n: shaped as ``h_n``, or None.

    Returns a dict by argument name with the shapes of the arguments: "x", "weight_ih", "weight_hh"
    and, where they were given as tensors, "h0", "bias_ih", "bias_hh", "leak", "drive".
    A wrapper such as `rules.Scaled` starts anew at each call.
    Raises TypeError and ValueError as `leaky_rnn`.
    """
    check_saved(saved)
    chosen = for_function(rule, "LeakyRNN", saved.history.w.shape[-1])
    gy = check_gradient("grad_output", grad_output, saved.history.y, saved.replicas)
    gs_n = check_gradient("grad_h_n", grad_h_n, saved.history.y[:, 0], saved.replicas)
    return _gradients(saved, gy, gs_n, chosen)


def check_saved(saved: object) -> None:
    """Refuse what isn't the third result of `leaky_rnn_forward` (TypeError)."""
    if not isinstance(saved, LeakySaved):
        came = type(saved).__name__
        raise TypeError(f"saved is a {came}; expected the third result of leaky_rnn_forward")


def check_gradient(
    name: str, gradient: Tensor | None, like: Tensor, replicas: int | None
) -> Tensor | None:
    """A gradient with the leading dimension, checked against its tensor (L, ...)."""
    if gradient is None:
        return None
    shape = tuple(like.shape if replicas is not None else like.shape[1:])
    check_shape(name, gradient, shape)
    check_like(name, gradient, like.dtype, like.device, "the output")
    return gradient if replicas is not None else gradient.unsqueeze(0)


def _gradients(
    saved: LeakySaved, gy: Tensor | None, gs_n: Tensor | None, rule: Rule
) -> dict[str, Tensor]:
    if isinstance(rule, Wrapper):
        refuse_replicas(rule, saved.replicas)
        own = _gradients(saved, gy, gs_n, rule.rule)
        references = [_parameters(_gradients(saved, gy, gs_n, r)) for r in rule.references()]
        return own | rule.combine(_parameters(own), references, {}, saved.mask)
    want_lam = "leak" in saved.shapes and saved.history.form == 0
    adjoint = rule.adjoint(saved.history, gy, gs_n, want_lam)
    return {name: saved.fit(name, g) for name, g in saved.gradients(adjoint).items()}


def _parameters(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: g for n, g in gradients.items() if n not in ("x", "h0", "drive")}
