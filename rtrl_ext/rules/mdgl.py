"""MDGL: e-prop plus one hop of modulatory signals between cell types."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._state import constant
from .._stream.hops import Hops
from .._stream.learner import Learner, Setting
from .._stream.local import unit_local
from ._cell_types import check_cell_types, check_size, hop_weights, membership
from .base import HOP, HOP_CELLS, Rule, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class MDGL(Rule):
    """Multidigraph learning: each unit also hears, one step later, its direct targets' learning
    signals.

    The learning signal becomes ``L_p^t + Σ_j κ_j w_jp ψ_j^{t+1} L_j^{t+1}``, the rest is `EProp`.
    Liu, Smith, Mihalas, Shea-Brown, Sümbül 2021.

    cell_types: LongTensor (n,); ``w`` is then the mean of the non-zero weights over each pair of
        types, recomputed from the current weights at every call.
    cell_specific: use the weights themselves. One of the two must be given (ValueError).
    """

    cell_types: Tensor | None = None
    cell_specific: bool = False

    _member: ClassVar[Tensor | None]
    name: ClassVar[str] = "mdgl"
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cells: ClassVar[tuple[str, ...]] = HOP_CELLS
    cost: ClassVar[str] = "as bptt"
    source: ClassVar[str] = "Liu et al. 2021"

    def __post_init__(self) -> None:
        types = check_cell_types("mdgl", self.cell_types, self.cell_specific)
        object.__setattr__(self, "cell_types", types)
        object.__setattr__(self, "_member", membership(types))

    def check(self, cell: str, hidden_size: int) -> None:
        super().check(cell, hidden_size)
        check_size(self.name, self.cell_types, hidden_size)

    def _hop(self, w: Tensor, factor: Tensor) -> Tensor:
        return constant(factor).unsqueeze(-1) * hop_weights(w, self._member)

    def learner(self, setting: Setting) -> Learner:
        return unit_local(setting, hops=Hops(1, 0.0, self._hop))

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        return {"policy": HOP, "transport": self._hop(w, factor), "mu": 0.0}
