"""One differentiable layer of leaky units: its inputs, then the recurrence under a rule."""

from typing import Any

import torch
from torch import Tensor

from . import _combine, _dispatch, _fused, _fused_transforms, _history, _kernels, _state
from ._autograd import in_transform
from ._dtypes import computed
from .reference import activations
from .rules import BPTT, Rule
from .rules.wrappers import Wrapper


def masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    """The recurrent weight with the connections that ``mask`` (n, n) lacks set to zero."""
    return weight if mask is None else torch.where(mask, weight, 0.0)


def _sum(bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor | None:
    """Both biases; by way of a product, so that their gradients don't share memory."""
    if bias_ih is None or bias_hh is None:
        return bias_hh if bias_ih is None else bias_ih
    return bias_ih + bias_hh * 1


def preactivation(
    x: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    drive: Tensor | None,
) -> Tensor:
    """Everything in the pre-activation but the recurrent product, ((R,) T, B, n)."""
    bias = _sum(bias_ih, bias_hh)
    if weight_ih.dim() == 2 and (bias is None or bias.dim() == 1):
        pre = torch.nn.functional.linear(x, weight_ih, bias)
    else:
        w = weight_ih if weight_ih.dim() == 3 else weight_ih.unsqueeze(0)
        pre = _history.times(x if x.dim() == 4 else x.unsqueeze(0), w.transpose(1, 2))
        if bias is not None:
            pre = pre + bias[..., None, None, :]
    return pre if drive is None else pre + drive


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """``x`` ((R,) T, B, m) with zeros after each row's length: whatever was there, such as NaN,
    would reach the gradient of the input weights, times a gradient of zero."""
    if lengths is None:
        return x
    on = torch.arange(x.shape[-3], device=x.device)[:, None] < lengths
    return torch.where(on.unsqueeze(-1), x, torch.zeros_like(x))


def initial_output(h0: Tensor, form: str, nonlinearity: str) -> Tensor:
    """The output that belongs to an initial state."""
    return h0 if form == "rate" else activations.value(h0, activations.NAMES.index(nonlinearity))


def _under_transform() -> bool:
    return in_transform() and not torch.compiler.is_compiling()


def leaky_layer(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    leak: Tensor,
    *,
    drive: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    form: str = "rate",
    nonlinearity: str = "tanh",
    unit_leak: bool = False,
    rule: Rule,
    state: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs ((R,) T, B, n) and final state ((R,) B, n) of one layer; arguments already checked.

    x ((R,) T, B, m), h0 ((R,) B, n) or None, weights ((R,) n, m) and ((R,) n, n), biases ((R,) n),
    leak ((R,) n), drive ((R,) T, B, n). Half-precision arguments are computed with state and sums
    in float32; on the CPU that is a float32 layer with its results rounded. ``state`` keeps what a
    stateful rule remembers between calls.
    """
    if isinstance(rule, Wrapper):
        if _state.exact_enabled():
            rule = BPTT()
        else:
            parameters = (weight_ih, weight_hh, bias_ih, bias_hh, leak)
            return _wrapped_layer(
                x, h0, dict(zip(_combine.NAMES, parameters, strict=True)), rule,
                {} if state is None else state,
                drive=drive, mask=mask, lengths=lengths, form=form, nonlinearity=nonlinearity,
                unit_leak=unit_leak,
            )  # fmt: skip
    x = without_padding(x, lengths)
    dtype = x.dtype
    fused = None
    if _fused.available(x, weight_ih, weight_hh, bias_ih, bias_hh, leak, drive, h0):
        fused = _fused
    elif drive is None and isinstance(rule, BPTT) and _under_transform():
        primal = (x, weight_ih, weight_hh, bias_ih, bias_hh, h0)
        ranks = (3, 2, 2, 1, 1, 2)
        single = all(t is None or t.dim() == r for t, r in zip(primal, ranks, strict=True))
        if single and leak.dim() == 1 and _fused_transforms.available(leak, *primal):
            fused = _fused_transforms
    if fused is not None:
        w = masked(weight_hh, mask)
        y0 = h0
        if form != "rate" and (h0 is not None or nonlinearity == "softplus"):
            if h0 is None:
                h0 = x.new_zeros(x.shape[1], w.shape[0])
            y0 = initial_output(h0, form, nonlinearity)
        flags = _dispatch.flags(form, nonlinearity, unit_leak)
        if fused is _fused:
            spec = rule.policy(w.detach(), leak.detach())
            biases = (bias_ih, bias_hh)
            return _fused.layer(x, weight_ih, *biases, drive, y0, h0, w, leak, lengths, flags, spec)
        bias = _sum(bias_ih, bias_hh)
        return _fused_transforms.layer(x, weight_ih, bias, y0, h0, w, leak, lengths, flags)
    pre = preactivation(x, weight_ih, bias_ih, bias_hh, drive)
    if h0 is None:
        h0 = torch.zeros(x.shape[-2], weight_hh.shape[-1], dtype=dtype, device=x.device)
    w = masked(weight_hh, mask)
    wide = computed(pre.dtype)
    if wide != pre.dtype:
        leak = leak.to(wide)
        traced = in_transform() and torch.compiler.is_compiling()  # by the plain reference
        if traced or not _kernels.takes_half(pre.device):
            pre, h0, w = (t.to(wide) for t in (pre, h0, w))
    y0 = initial_output(h0, form, nonlinearity)
    full = ((pre, 4), (y0, 3), (h0, 3), (w, 3), (leak, 2))
    if any(t.dim() == rank for t, rank in full):
        pre, y0, h0, w, leak = (t if t.dim() == rank else t.unsqueeze(0) for t, rank in full)
    spec = rule.policy(_state.constant(w), _state.constant(leak))
    if spec.get("transport") is not None:  # a product of w and leak, in the latter's dtype
        spec["transport"] = spec["transport"].to(w.dtype)
    y, h_n = _dispatch.leaky_core(
        pre, y0, h0, w, leak,
        lengths=lengths, form=form, nonlinearity=nonlinearity, unit_leak=unit_leak,
        **spec,
    )  # fmt: skip
    return y.to(dtype), h_n.to(dtype)


def _wrapped_layer(
    x: Tensor,
    h0: Tensor | None,
    parameters: dict[str, Tensor | None],
    rule: Wrapper,
    state: dict[str, Any],
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """A layer under a wrapper: one run for the rule inside and one for each reference.

    Only the first hands gradients to ``x``, ``h0`` and ``drive``.
    """
    copies = _combine.fork(rule, state, options["mask"], parameters)
    inside = state.setdefault("inside", {"layer": state.get("layer", 0)})
    results = [leaky_layer(x, h0, **copies[0], **options, rule=rule.rule, state=inside)]
    drive = options.pop("drive")
    fixed, start = _combine.stopped(x), _combine.stopped(h0)
    options["drive"] = _combine.stopped(drive)
    for copy, reference in zip(copies[1:], rule.references(), strict=True):
        results.append(leaky_layer(fixed, start, **copy, **options, rule=reference))
    ys, finals = zip(*results, strict=True)
    if len(results) == 1:
        return results[0]
    return _combine.Join.apply(*ys), _combine.Join.apply(*finals)
