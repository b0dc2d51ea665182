"""One step of leaky units."""

from collections.abc import Sequence

from torch import Tensor

from .._kernels import kernels
from ..reference import activations
from ..reference.leaky_rnn import FULL, LOCAL, VOLTAGE
from .cells import NONE, StepCell, shaped, shared_value
from .records import Factors, Record, Weights, side_by_side


class Leaky(StepCell):
    """LeakyRNN; its per-unit constant is κ. In the voltage form the output is kept beside v."""

    gates = states = parts = 1

    def __init__(self, form: int, act: int, unit_leak: bool) -> None:
        super().__init__()
        self.form, self.act, self.unit_leak = form, act, unit_leak
        self.voltage = form == VOLTAGE
        self.names = ("h", "y") if self.voltage else ("h",)

    def initial(self, batch: int, n: int, like: Tensor) -> tuple[Tensor, ...]:
        h = like.new_zeros(batch, n)
        return (h, activations.value(h, self.act)) if self.voltage else (h,)

    def given(
        self, public: Sequence[Tensor | None], batch: int, n: int, like: Tensor, weights: Weights
    ) -> tuple[Tensor, ...]:
        (h,) = super().given(public, batch, n, like, weights)
        return (h, activations.value(h, self.act)) if self.voltage else (h,)

    def output(self, states: Sequence[Tensor]) -> Tensor:
        return states[-1]

    def public(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (states[0],)

    def step(
        self, pre: Tensor, weights: Weights, before: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        leak = weights.units[0]
        assert leak is not None
        y, aux, s = kernels().leaky_forward(
            pre[None, None], before[-1][None], before[0][None], weights.w_hh[None], leak[None],
            None, self.form, self.act, self.unit_leak,
        )  # fmt: skip
        y, s = y[0, 0], s[0]
        after = (s, y) if self.voltage else (y,)
        return after, () if aux.dim() == 1 else (aux[0, 0],)

    def signal(self, after: Sequence[Tensor], weights: Weights, gy: Tensor) -> Tensor:
        if self.voltage:
            gy = gy * activations.slope(after[1], self.act)
        return gy.unsqueeze(1)

    def slope(self, record: Record) -> Tensor:
        phi = record.after[-1] if self.voltage else self._phi(record)
        return activations.slope(phi, self.act)

    def read(self, before: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return (activations.slope(before[1], self.act),) if self.voltage else (None,)

    def hop_factor(self, weights: Weights) -> Tensor:
        leak = weights.units[0]
        assert leak is not None
        return leak

    def uniform(self, weights: Weights) -> float | None:
        if not self.voltage:
            return 0.0 if self.unit_leak else None
        return shared_value(1 - self.hop_factor(weights))

    def back(
        self, record: Record, gy: Tensor | None, finals: tuple[Tensor | None, ...],
        want_units: bool,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...], list[Tensor]]:  # fmt: skip
        leak = record.weights.units[0]
        assert leak is not None
        y = self.output(record.after)
        aux = y.new_empty(0) if self.unit_leak else record.kept[0][None, None]
        delta, gy0, gs0, lam = kernels().leaky_backward(
            None if gy is None else gy[None, None], None,
            None if finals[0] is None else finals[0][None], y[None, None], aux,
            record.weights.w_hh[None], leak[None], None, self.form, self.act, self.unit_leak, FULL,
            0.0, 0, 0.0, want_units and not self.voltage,
        )  # fmt: skip
        delta, gy0, gs0 = delta[0, 0], gy0[0], gs0[0]
        units = []
        if want_units:
            change = (record.after[0] if self.voltage else self._phi(record)) - record.before[0]
            units = [delta / leak * (change / leak) if self.voltage else lam[0, 0] * change]
        if self.voltage:
            return delta, gy0, (gs0,), units
        return delta, None, (gy0 + gs0,), units

    def _phi(self, record: Record) -> Tensor:
        return self.output(record.after) if self.unit_leak else record.kept[0]

    def factors(self, records: list[Record], policy: int, want_units: bool = False) -> Factors:
        weights = records[0].weights
        leak = weights.units[0]
        assert leak is not None
        y = side_by_side([self.output(r.after) for r in records]).unsqueeze(0)
        if self.unit_leak:
            aux = y.new_empty(0)
        else:
            aux = side_by_side([r.kept[0] for r in records]).unsqueeze(0)
        ones = self.constant(1.0, y[0].shape, y)
        transport = None if policy in (NONE, LOCAL) else weights.w_hh[None]
        delta, gy0, gs0, _ = kernels().leaky_backward(
            None, None, ones, y, aux, transport, leak[None], None, self.form, self.act,
            self.unit_leak, LOCAL if policy == NONE else policy, 0.0, 0, 0.0, False,
        )  # fmt: skip
        decay = None
        if policy != NONE:
            if policy != LOCAL:
                if self.voltage:
                    before = side_by_side([r.before[1] for r in records])
                    gy0 = gy0 * activations.slope(before, self.act)
                gs0 = gs0 + gy0
            decay = [gs0]
        units: list[Tensor] = []
        if want_units:  # as _formulas.leak_gradient, with an adjoint of 1
            before = side_by_side([r.before[0] for r in records])
            if self.voltage:
                state = side_by_side([r.after[0] for r in records])
                units = [(state - before) / leak]
            else:
                units = [(y if self.unit_leak else aux) - before]
        return shaped(records, [(delta, decay, units)])
