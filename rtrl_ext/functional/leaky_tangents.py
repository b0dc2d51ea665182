"""Tangents of the leaky layer's forward pass and of its exact gradients, k directions at once."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_like, check_tensor
from .._history import outer_sum, times
from .._kernels import kernels
from ..reference import activations
from ._arguments import LeakySaved
from .leaky_rnn import check_gradient, check_saved

Tangents = dict[str, Tensor]


def _check(saved: LeakySaved, tangents: Any, extra: Tensor | None = None) -> int:
    """The number of directions: TypeError or ValueError for unusable tangents."""
    check_saved(saved)
    if not isinstance(tangents, Mapping):
        raise TypeError(f"tangents is a {type(tangents).__name__}; expected a dict by name")
    if not tangents:
        raise ValueError(f"tangents is empty; expected some of {', '.join(saved.shapes)}")
    y = saved.history.y
    k = None
    for name, tangent in tangents.items():
        if name not in saved.shapes:
            raise ValueError(f"tangents has {name!r}; expected some of {', '.join(saved.shapes)}")
        argument = f"tangents[{name!r}]"
        came, shape = tuple(check_tensor(argument, tangent).shape), saved.shapes[name]
        k = came[0] if k is None and came else k
        if came != (k, *shape):
            first = "k" if k is None else str(k)
            raise ValueError(f"{argument} has shape {came}; expected ({first}, *{shape})")
        check_like(argument, tangent, y.dtype, y.device, "the weights")
    if not k:
        raise ValueError("tangents has k = 0 directions; expected at least one")
    if extra is not None:
        check_tensor("grad_output_tangents", extra)
        expected = (k, *(y.shape if saved.replicas is not None else y.shape[1:]))
        if tuple(extra.shape) != expected:
            raise ValueError(
                f"grad_output_tangents has shape {tuple(extra.shape)}; expected {expected}"
            )
        check_like("grad_output_tangents", extra, y.dtype, y.device, "the weights")
    return k


def _batches(saved: LeakySaved, tangents: Mapping[str, Tensor], k: int) -> list[Tangents]:
    """Tangents with the leading dimension, for one kernel call each.

    Without replicas all k directions are one batch; with them each direction is one.
    """
    if saved.replicas is None:
        return [dict(tangents)]
    ranks = {"x": 4, "drive": 4, "h0": 3, "weight_ih": 3, "weight_hh": 3}
    return [
        {
            name: v[i] if v[i].dim() >= ranks.get(name, 2) else v[i].unsqueeze(0)
            for name, v in tangents.items()
        }
        for i in range(k)
    ]


class _Moved(NamedTuple):
    """Forward tangents of one batch: y (L, T, B, n), aux or (0,), y0, s0 (L, B, n), κ (L, n)."""

    dy: Tensor
    daux: Tensor
    dy0: Tensor
    ds0: Tensor
    dleak: Tensor | None


def _weight(saved: LeakySaved, v: Tangents) -> Tensor | None:
    dw = v.get("weight_hh")
    return dw if dw is None or saved.mask is None else dw * saved.mask


def _forward(saved: LeakySaved, v: Tangents) -> _Moved:
    h = saved.history
    pre: Tensor | None = None
    dw = _weight(saved, v)
    terms = []
    if "x" in v:
        terms.append(times(v["x"], saved.weight_ih.transpose(1, 2)))
    if "weight_ih" in v:
        terms.append(times(saved.x, v["weight_ih"].transpose(1, 2)))
    if dw is not None:
        terms.append(times(h.previous_outputs(), dw.transpose(1, 2)))
    terms += [v[name][:, None, None] for name in ("bias_ih", "bias_hh") if name in v]
    if "drive" in v:
        terms.append(v["drive"])
    for term in terms:
        pre = term if pre is None else pre + term
    steps = h.y.shape[1:]
    lead = max(t.shape[0] for t in v.values())
    zero = h.y.new_zeros(1, *steps[1:])
    ds0 = v.get("h0", zero)
    slope = saved.initial_slope()
    dy0 = ds0 if slope is None or "h0" not in v else slope * ds0
    dleak = v.get("leak")
    if dleak is not None:
        # a scalar leak moves all units alike
        dleak = dleak.unsqueeze(-1) if dleak.dim() == 1 else dleak
        dleak = dleak.expand(dleak.shape[0], steps[2])
    pre = h.y.new_zeros(lead, *steps) if pre is None else pre.expand(pre.shape[0], *steps)
    if pre.shape[0] < lead:
        pre = pre.expand(lead, *steps)
    dy, daux, _, _ = kernels().leaky_forward_jvp(
        pre.contiguous(), dy0, ds0, dleak, h.y, h.aux, h.y0, h.s0, h.w, h.leak, h.lengths,
        *h.flags, False,
    )  # fmt: skip
    return _Moved(dy, daux, dy0, ds0, dleak)


@torch.no_grad()
def leaky_rnn_jvp(saved: LeakySaved, tangents: Mapping[str, Tensor]) -> Tensor:
    """Tangents of the output of `leaky_rnn_forward` in k directions.

    tangents: by argument name, (k, *shape) each; arguments that are missing don't move. Names are
        those of `leaky_rnn_backward`'s result.

    Returns (k, T, B, n), or (k, R, T, B, n). Raises TypeError and ValueError for bad tangents.

    Example:
        dy = leaky_rnn_jvp(saved, {"weight_hh": torch.randn(8, n, n)})
    """
    k = _check(saved, tangents)
    each = [_forward(saved, v).dy for v in _batches(saved, tangents, k)]
    return each[0] if saved.replicas is None else torch.stack(each)


@torch.no_grad()
def leaky_rnn_backward_jvp(
    saved: LeakySaved,
    grad_output: Tensor,
    tangents: Mapping[str, Tensor],
    grad_output_tangents: Tensor | None = None,
    *,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Tangents of the exact (BPTT) gradients of `leaky_rnn_forward` in k directions.

    grad_output: the gradient at the output, shaped as it. tangents: as in `leaky_rnn_jvp`.
    grad_output_tangents: how ``grad_output`` moves, (k, *shape of the output); None: it doesn't.
    names: the gradients whose tangents are wanted; None means all.

    Returns a dict by argument name, (k, *shape) each. With ``grad_output_tangents`` from the loss's
    own second derivative the result is a Hessian-vector product.
    Raises TypeError and ValueError for bad arguments.

    Example:
        dy = leaky_rnn_jvp(saved, V)
        HV = leaky_rnn_backward_jvp(saved, y - target, V, dy)["weight_hh"]   # ½‖y - target‖²
    """
    k = _check(saved, tangents, grad_output_tangents)
    unknown = sorted(set(names or ()) - set(saved.shapes))
    if unknown:
        raise ValueError(f"names has {unknown[0]!r}; expected some of {', '.join(saved.shapes)}")
    wanted = saved.shapes if names is None else [n for n in saved.shapes if n in names]
    gy = check_gradient("grad_output", check_tensor("grad_output", grad_output), saved.history.y,
                        saved.replicas)  # fmt: skip
    alone = saved.replicas is None
    adjoint = saved.history.backward(gy, None, True)
    out: list[dict[str, Tensor]] = []
    for i, v in enumerate(_batches(saved, tangents, k)):
        dgy = grad_output_tangents
        if dgy is not None and not alone:
            dgy = dgy[i]
        made = _backward(saved, adjoint, v, dgy, wanted)
        out.append({name: saved.fit(name, g, alone) for name, g in made.items()})
    return out[0] if alone else {name: torch.stack([o[name] for o in out]) for name in out[0]}


def _backward(
    saved: LeakySaved, adjoint: Any, v: Tangents, dgy: Tensor | None, wanted: Collection[str]
) -> Tangents:
    """Tangents of the gradients (L, ...) by name for one batch of directions."""
    h = saved.history
    delta, gy0, _, lam = adjoint
    moved = _forward(saved, v)
    dw = _weight(saved, v)
    first = None
    if dw is not None:
        back = times(delta, dw)
        first = back[:, 0]
        later = torch.nn.functional.pad(back[:, 1:], (0, 0, 0, 0, 0, 1))
        dgy = later if dgy is None else dgy + later
    if dgy is None:
        dgy = torch.zeros_like(moved.dy)
    ddelta, dgy0, dgs0, dlam = kernels().leaky_backward_jvp(
        dgy.contiguous(), None, moved.dleak, moved.dy, moved.daux, h.y, h.aux, lam, delta, h.w,
        h.leak, h.lengths, *h.flags, "leak" in wanted and h.form == 0,
    )  # fmt: skip
    dgy0 = dgy0 if first is None else dgy0 + first
    made: Tangents = {}
    for name in wanted:
        if name == "x":
            g = times(ddelta, saved.weight_ih)
            g = g + times(delta, v["weight_ih"]) if "weight_ih" in v else g
        elif name == "drive":
            g = ddelta
        elif name == "h0":
            g = dgs0 + _initial(saved, v, gy0, dgy0)
        elif name == "weight_ih":
            g = outer_sum(ddelta, saved.x)
            g = g + outer_sum(delta, v["x"]) if "x" in v else g
        elif name == "weight_hh":
            g = outer_sum(ddelta, h.previous_outputs())
            g = g + outer_sum(delta, _shift(moved.dy0, moved.dy))
            g = g if saved.mask is None else g * saved.mask
        elif name == "leak":
            g = _leak(saved, adjoint, moved, ddelta, dlam)
        else:
            g = ddelta.sum((1, 2))
        made[name] = g
    return made


def _shift(first: Tensor, x: Tensor) -> Tensor:
    return torch.cat([first.expand(x.shape[0], -1, -1).unsqueeze(1), x[:, :-1]], 1)


def _initial(saved: LeakySaved, v: Tangents, gy0: Tensor, dgy0: Tensor) -> Tensor:
    """The initial output's share in the tangent of h0's gradient."""
    slope, h = saved.initial_slope(), saved.history
    if slope is None:
        return dgy0
    bend = activations.ratio(h.y0, h.act)
    if bend is None or "h0" not in v:
        return slope * dgy0
    return slope * dgy0 + bend * slope * v["h0"] * gy0


def _leak(saved: LeakySaved, adjoint: Any, moved: _Moved, ddelta: Tensor, dlam: Tensor) -> Tensor:
    """Tangent (L, n) of the gradient of κ."""
    h = saved.history
    before = h.previous_states()
    if h.form == 0:
        dphi = moved.dy if h.unit_leak else moved.daux
        dbefore = _shift(moved.ds0, moved.dy)
        return (dlam * (h.phi - before) + adjoint.lam * (dphi - dbefore)).sum((1, 2))
    k = h.leak[:, None, None]
    d, dd = adjoint.delta / k, ddelta / k
    rise = (h.states - before) / k
    drise = (moved.daux - _shift(moved.ds0, moved.daux)) / k
    if moved.dleak is not None:
        dk = moved.dleak[:, None, None]
        dd, drise = dd - d * dk / k, drise - rise * dk / k
    return (dd * rise + d * drise).sum((1, 2))
