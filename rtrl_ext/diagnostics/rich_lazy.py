"""Rich or lazy: how far weights, representation and tangent kernel have turned since an earlier
state."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from ..curvature._evaluation import Leaves, Problem, evaluating
from ..curvature._params import flatten, select, size, unwrap
from ..nn.base import RecurrentBase
from ..nn.lru import LRU
from .weight_change import weight_change

Reference = Mapping[str, Tensor] | nn.Module
CHUNK = 32


@dataclass(frozen=True)
class RichLazy:
    """What training has changed. Lazy learning leaves both alignments near 1 while the loss falls;
    rich learning turns them (Chizat et al. 2019; for recurrent networks Liu et al. 2023).

    weight_change: ``‖W - W₀‖``; relative_change: over ``‖W₀‖``.
    representation_alignment, kernel_alignment: see the functions of these names.
    """

    weight_change: float
    relative_change: float
    representation_alignment: float
    kernel_alignment: float

    def __str__(self) -> str:
        return (
            f"weight change {self.weight_change:.6g} (relative {self.relative_change:.4f})  "
            f"representation alignment {self.representation_alignment:.4f}  "
            f"kernel alignment {self.kernel_alignment:.4f}"
        )


def rich_lazy(
    model: nn.Module,
    reference_state: Reference,
    x: Any,
    params: Iterable[str] | None = None,
) -> RichLazy:
    """`weight_change`, `representation_alignment`, `kernel_alignment` in one; their arguments."""
    names = None if params is None else list(params)
    moved = weight_change(model, reference_state, names)
    return RichLazy(
        weight_change=moved.norm,
        relative_change=moved.relative,
        representation_alignment=representation_alignment(model, reference_state, x),
        kernel_alignment=kernel_alignment(model, reference_state, x, names),
    )


def representation_alignment(
    model: nn.Module,
    reference_state: Reference,
    x: Any,
    *,
    layer: str | None = None,
    steps: str = "last",
) -> float:
    """``Tr(K K₀)/(‖K‖ ‖K₀‖)`` with ``K = Z Zᵀ``, Z the representations of the inputs as rows.

    1 where the geometry of the representations is the earlier state's, up to rotation and scale.
    Not centred. In the representations' dtype, sums in float64.

    Args:
        model: called as ``model(x)``.
        reference_state: the earlier state: a copied state dict, or a copy of the module.
        x: what the model takes.
        layer: name of the module whose output is the representation, the first part of a tuple;
            default the last recurrent module, without one the model's own output.
        steps: "last", the output of the last step of a recurrent module, or "all", every step a
            row. Outputs of other modules are taken whole, the first dimension counts the inputs.

    Returns:
        A float in [0, 1]; NaN if a representation is zero.

    Raises:
        TypeError, ValueError: an argument of wrong type or value; a ``layer`` that doesn't exist or
            isn't called.
    """
    model = unwrap(model)
    if steps not in ("last", "all"):
        raise ValueError(f"steps: got {steps!r}, expected 'last' or 'all'")
    before = _at(model, reference_state)
    z, z0 = (_representation(m, x, layer, steps).double() for m in (model, before))
    norms = float((z.t() @ z).norm()) * float((z0.t() @ z0).norm())
    return float((z.t() @ z0).square().sum()) / norms if norms > 0 else math.nan


def kernel_alignment(
    model: nn.Module,
    reference_state: Reference,
    x: Any,
    params: Iterable[str] | None = None,
    *,
    max_bytes: int = 2**30,
) -> float:
    """``Tr(K K₀)/(‖K‖ ‖K₀‖)`` of the neural tangent kernels ``K = J Jᵀ``, J the Jacobian of all
    model outputs in the parameters.

    1 where learning is that of a linear model around the earlier state (Jacot et al. 2018). J is
    the true Jacobian, whatever the rule. The study's measure takes the recurrent matrix alone,
    ``params=["rnn.weight_hh_l0"]``.

    Args:
        model, reference_state, x: as for `representation_alignment`.
        params: parameter names, default all that require gradients.
        max_bytes: bound on the memory of one Jacobian, (outputs, P).

    Returns:
        A float in [0, 1] (rounding aside); NaN if a kernel is zero.

    Raises:
        TypeError, ValueError: an argument of wrong type or value; the Jacobian would take more than
            ``max_bytes``.
    """
    model = unwrap(model)
    names = list(select(model, params))
    before = _at(model, reference_state)
    j0 = _jacobian(before, x, names, max_bytes)
    k0 = (j0 @ j0.t()).double()
    del j0
    j = _jacobian(model, x, names, max_bytes)
    k = (j @ j.t()).double()
    norms = float(k.norm()) * float(k0.norm())
    return float((k * k0).sum()) / norms if norms > 0 else math.nan


def _at(model: nn.Module, reference_state: Reference) -> nn.Module:
    """The model at the earlier state: the module itself, or a copy that has loaded it."""
    if isinstance(reference_state, nn.Module):
        return unwrap(reference_state)
    if not isinstance(reference_state, Mapping):
        raise TypeError(
            f"reference_state: got {type(reference_state).__name__}, expected a state dict "
            "or a module"
        )
    own = model.state_dict()
    if any(
        isinstance(t, Tensor) and name in own and t.numel() and t.data_ptr() == own[name].data_ptr()
        for name, t in reference_state.items()
    ):
        raise ValueError(
            "reference_state: shares its memory with the model; expected a copy "
            "(copy.deepcopy(model.state_dict()))"
        )
    before = copy.deepcopy(model)
    try:
        before.load_state_dict(reference_state)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"reference_state: {text}") from error
    return before


def _representation(model: nn.Module, x: Any, layer: str | None, steps: str) -> Tensor:
    """Z (rows, features)."""
    modules = dict(model.named_modules())
    recurrent = (RecurrentBase, LRU, nn.RNNBase)
    if layer is None:
        found = [name for name, m in modules.items() if isinstance(m, recurrent)]
        layer = found[-1] if found else ""
    if layer not in modules:
        raise ValueError(f"layer: no module is named {layer!r}")
    module, seen = modules[layer], []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    first = next(model.parameters())
    try:
        with evaluating(model, first.device), torch.no_grad():
            model(x)
    finally:
        handle.remove()
    if not seen:
        raise ValueError(f"layer: the model doesn't call {layer!r}")
    z = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
    if not isinstance(z, Tensor):
        raise TypeError(f"layer: {layer!r} gives a {type(z).__name__}, expected a tensor")
    if not isinstance(module, recurrent):
        return z.reshape(len(z), -1)
    if z.dim() == 3:
        z = z.transpose(0, 1) if module.batch_first else z
        return z[-1] if steps == "last" else z.flatten(0, 1)
    return z[-1:] if steps == "last" else z


def _jacobian(model: nn.Module, x: Any, names: list[str], max_bytes: int) -> Tensor:
    """J (outputs, P), row by row in batched backward passes."""
    problem = Problem(model, _no_loss, select(model, names), None)  # type: ignore[arg-type]
    first = next(iter(problem.params.values()))
    with evaluating(model, first.device, params=problem.params):

        def output(p: dict[str, Tensor]) -> Tensor:
            leaves = Leaves(problem.output(p, x)).tensors
            return torch.cat([t.reshape(-1) for t in leaves])

        point = problem.point()
        out, pullback, *_ = vjp(output, point)
        need = out.numel() * max(out.numel(), size(problem.params)) * out.element_size()
        if need > max_bytes:
            raise ValueError(
                f"x: {out.numel()} outputs and {size(problem.params)} parameters take "
                f"{need / 2**30:.3g} GiB, more than max_bytes = {max_bytes / 2**30:.3g} GiB; give "
                "fewer inputs or parameters (params=)"
            )
        rows = []
        for part in torch.eye(out.numel(), dtype=out.dtype, device=out.device).split(CHUNK):
            rows.append(flatten(vmap(lambda v: pullback(v)[0])(part), point))
        return torch.cat(rows)


def _no_loss(output: Any, target: Any) -> Tensor:
    raise AssertionError("only the model's output is used here")
