"""Dale's law: a unit excites all units that it projects to, or inhibits all of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._checks import check_choice, check_flag, check_shape, check_size, has_values
from .base import RecurrentBase

MODES = ("abs", "relu", "softplus")


def _signs(n: int, excitatory: Any) -> Tensor:
    """+1 or -1 for each unit, int8 (n,), from a fraction or from signs."""
    if isinstance(excitatory, Tensor):
        check_shape("excitatory", excitatory, (n,))
        if excitatory.is_complex() or excitatory.dtype == torch.bool:
            raise TypeError(f"excitatory has dtype {excitatory.dtype}; expected signs, 1 or -1")
        wrong = excitatory.detach().abs() != 1
        some = wrong.any()
        if has_values(some) and bool(some):
            came = excitatory.detach()[wrong][0].item()
            raise ValueError(f"excitatory holds {came}; expected 1 (excitatory) or -1 (inhibitory)")
        return excitatory.detach().to(torch.int8, copy=True)
    if isinstance(excitatory, bool) or not isinstance(excitatory, (int, float)):
        raise TypeError(
            f"excitatory is a {type(excitatory).__name__}; expected a fraction or a tensor ({n},)"
        )
    if not 0 <= excitatory <= 1:
        raise ValueError(f"excitatory is {excitatory}; expected a fraction in [0, 1]")
    signs = torch.full((n,), -1, dtype=torch.int8)
    signs[: round(excitatory * n)] = 1
    return signs


class DaleMask(nn.Module):
    """A parametrization that gives every column of a weight the sign of its presynaptic unit.

        W[j, p] = f(raw[j, p]) · sign_p,    f = |raw|, relu(raw) or softplus(raw)

    For ``torch.nn.utils.parametrize`` on any weight (rows, n) whose columns belong to n units: the
    recurrent weights of every cell (all gates of a unit's synapses then share its sign), the input
    weights of a layer above, a readout. The signs hold at every moment, whatever an optimizer does
    to ``raw``; the gradient that a learning rule gives W reaches raw by the chain rule. Weights
    assigned later, and those there at registration, keep their magnitude and take the column's
    sign. Song, Yang & Wang 2016 (relu), Cornford et al. 2021.

    n: number of presynaptic units.
    excitatory: fraction in [0, 1], of which the first ``round(excitatory · n)`` units are
        excitatory and the others inhibitory; or signs (n,), 1 or -1, copied.
    mode: "abs" (the default); "relu", whose synapses stay silent once raw is negative or zero; or
        "softplus", smooth, whose synapses are never exactly zero. With "abs" and "relu" a weight of
        exactly zero gets no gradient.

    The signs are the buffer ``signs``, int8 (n,), in the state dict. Raises TypeError for wrong
    types, ValueError for wrong values or shapes.
    """

    signs: Tensor

    def __init__(self, n: int, excitatory: float | Tensor = 0.8, mode: str = "abs") -> None:
        super().__init__()
        self.n = check_size("n", n)
        self.mode = check_choice("mode", mode, MODES)
        self.register_buffer("signs", _signs(n, excitatory))

    @property
    def cell_types(self) -> Tensor:
        """The units' types for `rules.MDGL` and `rules.ModProp`: int64 (n,), 0 = E, 1 = I."""
        return (self.signs < 0).to(torch.int64)

    def _check(self, weight: Tensor) -> None:
        if weight.dim() < 2 or weight.shape[-1] != self.n:
            raise ValueError(f"weight has shape {tuple(weight.shape)}; expected (rows, {self.n})")
        if not weight.is_floating_point():
            raise TypeError(f"weight has dtype {weight.dtype}; expected a floating one")

    def forward(self, raw: Tensor) -> Tensor:
        """The weight (rows, n) from unconstrained numbers (rows, n)."""
        self._check(raw)
        if self.mode == "abs":
            size = raw.abs()
        elif self.mode == "relu":
            size = raw.relu()
        else:
            size = torch.logaddexp(raw, torch.zeros_like(raw))
        return size * self.signs.to(raw.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Numbers (rows, n) from which `forward` makes ``weight``, with signs as they must be."""
        self._check(weight)
        size = weight.abs()
        if self.mode != "softplus":
            return size
        size = size.clamp(min=torch.finfo(size.dtype).tiny)  # softplus has no zero
        return size + torch.log(-torch.expm1(-size))

    def extra_repr(self) -> str:
        shown = f"{self.n}"
        if has_values(self.signs):
            shown += f", excitatory={int((self.signs > 0).sum())}/{self.n}"
        return f"{shown}, mode={self.mode}"


def dale(
    module: RecurrentBase,
    excitatory: float | Tensor = 0.8,
    *,
    mode: str = "abs",
    feedforward: bool = False,
) -> Tensor:
    """Put `DaleMask` on the recurrent weights of every layer of ``module``, in place.

    The parameters keep their identity and become ``parametrizations.weight_hh_l{i}.original``, in
    the state dict and in ``named_parameters()``.

    module: a recurrent module of this library. excitatory, mode: as for `DaleMask`, the same for
        all layers. feedforward: also the input weights of the layers above the first, whose
        columns are the units of the layer below.

    Returns the cell types, int64 (n,), 0 = excitatory, 1 = inhibitory, for the ``cell_types`` of
    `rules.MDGL` and `rules.ModProp`.
    Raises TypeError for another module and wrong types, ValueError for wrong values and for a
    weight that has a `DaleMask`. A refused call changes nothing.
    """
    if not isinstance(module, RecurrentBase):
        raise TypeError(
            f"module is a {type(module).__name__}; expected a recurrent module such as "
            "rtrl_ext.LeakyRNN"
        )
    check_flag("feedforward", feedforward)
    first = DaleMask(module.hidden_size, excitatory, mode)
    names = [f"weight_hh_l{i}" for i in range(module.num_layers)]
    if feedforward:
        names += [f"weight_ih_l{i}" for i in range(1, module.num_layers)]
    for name in names:
        if parametrize.is_parametrized(module, name) and any(
            isinstance(p, DaleMask)
            for p in module.parametrizations[name]  # type: ignore[union-attr,index,operator]
        ):
            raise ValueError(f"{name} has a DaleMask; expected a weight without one")
    for name in names:
        each = DaleMask(module.hidden_size, first.signs, mode)
        each.to(getattr(module, name).device)
        parametrize.register_parametrization(module, name, each)
    return first.cell_types.cpu()
