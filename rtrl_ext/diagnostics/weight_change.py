"""How far the weights have moved."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..curvature._params import select, unwrap


@dataclass(frozen=True)
class WeightChange:
    """``norm = ‖W - W₀‖`` and ``relative = norm / ‖W₀‖`` (NaN if W₀ is zero and the norm too).

    ``blocks`` holds the same for every parameter by name.
    """

    norm: float
    relative: float
    blocks: dict[str, "WeightChange"] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        head = f"norm {self.norm:.6g}  relative {self.relative:.4f}"
        width = max((len(name) for name in self.blocks), default=0)
        lines = [f"  {name:<{width}}  {block}" for name, block in self.blocks.items()]
        return "\n".join([head, *lines])


def weight_change(
    model: nn.Module,
    reference_state: "Mapping[str, Tensor] | nn.Module",
    params: Iterable[str] | None = None,
) -> WeightChange:
    """Euclidean distance of the parameters from an earlier state, in float64.

    Args:
        model: the module as it is now.
        reference_state: the earlier state: a copied state dict
            (``copy.deepcopy(model.state_dict())``: a state dict alone shares its memory with the
            model and would move along), or a copy of the module. Other entries are ignored.
        params: parameter names, default all that require gradients.

    Raises:
        TypeError: ``reference_state`` is neither a mapping nor a module.
        ValueError: a parameter is missing from it, has another shape there, or shares its memory.
    """
    model = unwrap(model)
    if isinstance(reference_state, nn.Module):
        reference_state = unwrap(reference_state).state_dict()
    if not isinstance(reference_state, Mapping):
        raise TypeError(
            f"reference_state: got {type(reference_state).__name__}, expected a state dict "
            "or a module"
        )
    rows = {}
    for name, p in select(model, params).items():
        before = reference_state.get(name)
        if not isinstance(before, Tensor):
            raise ValueError(
                f"reference_state: no tensor {name!r}, which is a parameter of the model"
            )
        if before.shape != p.shape:
            raise ValueError(
                f"reference_state: {name!r} has shape {tuple(before.shape)}, "
                f"the model's {tuple(p.shape)}"
            )
        if before.data_ptr() == p.data_ptr() and p.numel() > 0:
            raise ValueError(
                f"reference_state: {name!r} shares its memory with the model; expected a copy "
                "(copy.deepcopy(model.state_dict()))"
            )
        now, then = p.detach().double(), before.detach().to(p.device).double()
        rows[name] = (float(torch.sum((now - then) ** 2)), float(torch.sum(then**2)))
    blocks = {name: _measures(*row) for name, row in rows.items()}
    total = _measures(*(math.fsum(column) for column in zip(*rows.values(), strict=True)))
    return WeightChange(total.norm, total.relative, blocks)


def _measures(moved: float, start: float) -> WeightChange:
    norm = math.sqrt(moved)
    relative = norm / math.sqrt(start) if start > 0 else (math.inf if norm > 0 else math.nan)
    return WeightChange(norm, relative)
