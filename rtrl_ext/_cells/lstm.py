"""The LSTM; states h and c, of which c is kept among the gates' values."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._formulas import LOCAL, Rule
from .._kernels import lead_of
from .base import Adjoints, Cell, Maybe, Pass, Tensors


class LSTM(Cell):
    """``delta``: gradients of the pre-activations of i, f, g, o."""

    name: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4
    parts: ClassVar[int] = 4
    num_states: ClassVar[int] = 2
    num_lams: ClassVar[int] = 2
    forward_order: ClassVar[tuple[int, ...]] = (0, 2, 3, 1)
    lengths_at: ClassVar[dict[str, int]] = {
        "forward": 4, "backward": 6, "forward_jvp": 6, "backward_jvp": 10,
    }  # fmt: skip

    def fakes(self) -> dict[str, Callable[..., Any]]:
        return {
            "forward": _fake_forward,
            "backward": _fake_backward,
            "forward_jvp": _fake_forward_jvp,
            "backward_jvp": _fake_backward_jvp,
        }

    def forward(
        self, pre: Tensor, w: Tensor, units: Maybe, states: Maybe, lengths: Tensor | None,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, Tensors, Tensors]:  # fmt: skip
        y, aux, h_n, c_n = self.op("forward")(pre, *states, w, lengths)
        return y, (h_n, c_n), (aux,)

    def backward(
        self, gy: Tensor | None, finals: Maybe, p: Pass, transport: Tensor | None, rule: Rule,
        want_lams: bool,
    ) -> Adjoints:  # fmt: skip
        delta, gh0, gc0, lam, to_c = self.op("backward")(
            gy, *finals, p.kept[0], p.states[1], transport, p.lengths,
            rule.policy, rule.window, rule.decay, want_lams,
        )  # fmt: skip
        return Adjoints(delta, (gh0, gc0), (lam, to_c))

    def forward_jvp(self, du: Tensor, dstates: Maybe, p: Pass) -> tuple[Tensor, Tensors, Tensors]:
        dy, daux, *finals = self.op("forward_jvp")(
            du, *dstates, p.kept[0], p.states[1], p.w, p.lengths
        )
        return dy, tuple(finals), (daux,)

    def backward_jvp(
        self, dgy: Tensor, dfinals: Maybe, dy: Tensor, dkept: Tensors, dstates: Maybe, p: Pass,
        lams: Tensors,
    ) -> tuple[Tensor, Tensors]:  # fmt: skip
        ddelta, *first = self.op("backward_jvp")(
            dgy, *dfinals, dkept[0], dstates[1], p.kept[0], p.states[1], *lams, p.w, p.lengths
        )
        return ddelta, tuple(first)


def _fake_forward(pre, h0, c0, w, lengths):  # type: ignore[no-untyped-def]
    lead, n = lead_of(pre, h0, c0, w), h0.shape[2]
    y = pre.new_empty(lead, *pre.shape[1:3], n)
    state = y.new_empty(lead, *h0.shape[1:])
    return y, y.new_empty(*y.shape[:3], 5 * n), state, torch.empty_like(state)


def _fake_backward(gy, gh_n, gc_n, aux, c0, w, lengths, policy, window, decay, want_lam):  # type: ignore[no-untyped-def]
    lead, n = lead_of(gy, gh_n, gc_n, aux, c0, None if policy == LOCAL else w), c0.shape[2]
    delta = aux.new_empty(lead, *aux.shape[1:3], 4 * n)
    state = aux.new_empty(lead, *c0.shape[1:])
    lams = (aux.new_empty((lead, *aux.shape[1:3], n) if want_lam else (0,)) for _ in range(2))
    return delta, state, torch.empty_like(state), *lams


def _fake_forward_jvp(du, dh0, dc0, aux, c0, w, lengths):  # type: ignore[no-untyped-def]
    lead, n = lead_of(du, dh0, dc0, aux, c0, w), c0.shape[2]
    dy = aux.new_empty(lead, *aux.shape[1:3], n)
    state = aux.new_empty(lead, *c0.shape[1:])
    return dy, aux.new_empty(lead, *aux.shape[1:]), state, torch.empty_like(state)


def _fake_backward_jvp(dgy, dgh_n, dgc_n, daux, dc0, aux, c0, lam, to_c, w, lengths):  # type: ignore[no-untyped-def]
    lead, n = lead_of(dgy, dgh_n, dgc_n, daux, dc0, aux, c0, lam, to_c, w), c0.shape[2]
    state = aux.new_empty(lead, *c0.shape[1:])
    return aux.new_empty(lead, *aux.shape[1:3], 4 * n), state, torch.empty_like(state)
