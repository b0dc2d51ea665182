"""One step of the linear recurrent unit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._kernels import operation
from .cells import NONE, StepCell, shaped
from .records import Factors, Record, Weights


class Linear(StepCell):
    """LRU; its state is one tensor (B, 2n), real parts before imaginary ones, and the output too.

    The input weight is [γ B_re; γ B_im] (2n, m), its parameters are B_re and B_im, one above the
    other; the per-unit constants are λ in planes and γ, their parameters nu_log and theta. A unit's
    two states are all that its parameters reach. ``Weights.chain`` holds the derivatives of λ (re,
    im) by nu_log and by theta, and that of γ by nu_log, (n,) each.
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
        lam = _planes(weights)
        shape = (1, pre.shape[0], *lam.shape)
        _, last = operation("lru_scan")(
            lam[None], pre.reshape(1, *shape), before[0].reshape(shape), None, 0
        )
        return (last.reshape(pre.shape),), (pre,)

    def signal(self, after: Sequence[Tensor], weights: Weights, gy: Tensor) -> Tensor:
        return gy.unflatten(1, (2, -1))

    def back(
        self, record: Record, gy: Tensor | None, finals: tuple[Tensor | None, ...],
        want_units: bool,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...], list[Tensor]]:  # fmt: skip
        re, im = _planes(record.weights)
        total = torch.zeros_like(record.after[0]) if gy is None else gy
        if finals[0] is not None and finals[1] is not None:
            total = total + torch.cat([finals[0], finals[1]], 1)
        g_re, g_im = total.chunk(2, 1)
        by_nu, by_theta = self._by_parameters(record)
        units = []
        if want_units:
            units = [g_re * a + g_im * b for a, b in (by_nu, by_theta)]
        gamma = _there(record.weights.units)[2]
        return (
            torch.cat([gamma * g_re, gamma * g_im], 1),
            None,
            (re * g_re + im * g_im, re * g_im - im * g_re),
            units,
        )

    def _by_parameters(self, record: Record) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Derivatives (B, n) of the states (re, im) by nu_log and theta, the step before held."""
        nu_re, nu_im, theta_re, theta_im, by_gamma = _there(record.weights.chain)
        s_re, s_im = record.before[0].chunk(2, 1)
        ratio = by_gamma / _there(record.weights.units)[2]
        u_re, u_im = (record.kept[0] * ratio.repeat(2)).chunk(2, 1)  # of γ B x
        nu = (nu_re * s_re - nu_im * s_im + u_re, nu_re * s_im + nu_im * s_re + u_im)
        theta = (theta_re * s_re - theta_im * s_im, theta_re * s_im + theta_im * s_re)
        return nu, theta

    def factors(self, records: list[Record], policy: int, want_units: bool = False) -> Factors:
        re, im = _planes(records[0].weights)
        rows = len(records) * records[0].x.shape[0]
        gamma = _there(records[0].weights.units)[2].expand(rows, -1)
        zero = torch.zeros_like(gamma)
        terms: list[list[Tensor]] = [[], []]
        if want_units:
            made = [self._by_parameters(r) for r in records]
            terms = [
                [torch.cat([m[i][plane] for m in made]) for i in range(2)] for plane in range(2)
            ]
        each = []
        for plane, own, seeds in ((0, (re, -im), (gamma, zero)), (1, (im, re), (zero, gamma))):
            decay = None if policy == NONE else [d.expand(rows, -1) for d in own]
            each.append((torch.cat(seeds, 1), decay, terms[plane]))
        return shaped(records, each)


def _there(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return tuple(t for t in tensors if t is not None)


def _planes(weights: Weights) -> Tensor:
    """λ (2, n)."""
    return torch.stack(_there(weights.units)[:2])
