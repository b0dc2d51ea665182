"""One step of the linear recurrent unit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._kernels import operation
from .cells import NONE, StepCell
from .records import Factors, Record, Weights, side_by_side


class Linear(StepCell):
    """LRU; its state is one tensor (B, 2n), real parts before imaginary ones, and the output too.

    The input weight is [γ B_re; γ B_im] (2n, m), its parameters are B_re and B_im, one above the
    other; the per-unit constants are λ and γ, their parameters nu_log and theta. A unit's two
    states are all that its parameters reach. ``Weights.units`` are gamma and lam of
    `StepConstants`, ``Weights.chain`` its slopes and ratio.
    """

    gates = states = parts = 2
    names = ("s",)
    reaches = False

    def initial(self, batch: int, n: int, like: Tensor) -> tuple[Tensor, ...]:
        return (like.new_zeros(batch, 2 * n),)

    def given(
        self, public: Sequence[Tensor | None], batch: int, n: int, like: Tensor, weights: Weights
    ) -> tuple[Tensor, ...]:
        return super().given(public, batch, 2 * n, like, weights)

    def joint(self, finals: Sequence[Tensor | None], like: Tensor) -> Tensor:
        (g,) = finals
        return (torch.zeros_like(like) if g is None else g).unflatten(1, (2, -1))

    def apart(self, gradient: Tensor) -> list[Tensor]:
        return [gradient]

    def step(
        self, pre: Tensor, weights: Weights, before: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        _, lam = _there(weights.units)
        shape = (1, pre.shape[0], 2, lam.shape[2])
        _, last = operation("lru_scan")(
            lam[:1], pre.reshape(1, *shape), before[0].reshape(shape), None, 0
        )
        return (last.reshape(pre.shape),), (pre,)

    def signal(self, after: Sequence[Tensor], weights: Weights, gy: Tensor) -> Tensor:
        return gy.unflatten(1, (2, -1))

    def back(
        self, record: Record, gy: Tensor | None, finals: tuple[Tensor | None, ...],
        want_units: bool,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...], list[Tensor]]:  # fmt: skip
        gamma, lam = _there(record.weights.units)
        s = record.after[0]
        total = self.constant(0.0, s.shape, s) if gy is None else gy
        if finals[0] is not None and finals[1] is not None:
            total = total + torch.cat([finals[0], finals[1]], 1)
        g = total.unflatten(1, (2, -1))
        units = []
        if want_units:
            by = self._by_parameters([record])
            units = list((g.unsqueeze(2) * by).sum(1).unbind(1))
        before = (lam * g.unsqueeze(1)).sum(2)
        return (g * gamma).flatten(1), None, before.unbind(1), units

    def _by_parameters(self, records: list[Record]) -> Tensor:
        """Derivatives (K B, 2, 2, n) of the states by nu_log and theta, the step before held."""
        slopes, ratio = _there(records[0].weights.chain)
        s = side_by_side([r.before[0] for r in records])[0].unflatten(1, (2, -1))
        by = (slopes * s[:, :, None, None]).sum(1)
        u = side_by_side([r.kept[0] for r in records])[0].unflatten(1, (2, -1))  # γ B x
        by[:, :, 0].addcmul_(ratio, u, value=-1.0)
        return by

    def factors(self, records: list[Record], policy: int, want_units: bool = False) -> Factors:
        gamma, lam = _there(records[0].weights.units)
        k, b, n = len(records), records[0].x.shape[0], lam.shape[2]
        psi = gamma.new_zeros(2, 2, n)
        psi.diagonal().copy_(gamma.unsqueeze(1))
        decay = None if policy == NONE else lam.transpose(0, 1).expand(k, b, 2, 2, n)
        units = None
        if want_units:
            units = self._by_parameters(records).unflatten(0, (k, b))
        return Factors(psi.flatten(1).expand(k, b, 2, 2 * n), decay, units)


def _there(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return tuple(t for t in tensors if t is not None)
