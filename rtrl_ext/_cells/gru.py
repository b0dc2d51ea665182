"""The gated recurrent unit; per-unit constant: ``b_hn``, the bias inside the reset gate."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._formulas import LOCAL, Rule
from .._kernels import lead_of
from .base import Adjoints, Cell, Maybe, Pass, Tensors


class GRU(Cell):
    """``delta``: gradients of the pre-activations of r, z, q and of ``m = W_q h + b_hn``."""

    name: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3
    parts: ClassVar[int] = 4
    num_units: ClassVar[int] = 1
    forward_order: ClassVar[tuple[int, ...]] = (0, 3, 1, 2)
    lengths_at: ClassVar[dict[str, int]] = {
        "forward": 4, "backward": 6, "forward_jvp": 6, "backward_jvp": 10,
    }  # fmt: skip

    def biases(
        self, bias_ih: Tensor | None, bias_hh: Tensor | None, n: int, like: Tensor
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        if bias_hh is None:
            return bias_ih, (like.new_zeros(n),)
        outside = torch.nn.functional.pad(bias_hh[..., : 2 * n], (0, n))
        return outside if bias_ih is None else bias_ih + outside, (bias_hh[..., 2 * n :],)

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
        y, aux, h_n = self.op("forward")(pre, states[0], w, units[0], lengths)
        return y, (h_n,), (aux,)

    def backward(
        self, gy: Tensor | None, finals: Maybe, p: Pass, transport: Tensor | None, rule: Rule,
        want_lams: bool,
    ) -> Adjoints:  # fmt: skip
        delta, gh0, lam = self.op("backward")(
            gy, finals[0], p.y, p.kept[0], p.states[0], transport, p.lengths,
            rule.policy, rule.window, rule.decay, want_lams,
        )  # fmt: skip
        return Adjoints(delta, (gh0,), (lam,))

    def forward_jvp(self, du: Tensor, dstates: Maybe, p: Pass) -> tuple[Tensor, Tensors, Tensors]:
        dy, daux, dh_n = self.op("forward_jvp")(
            du, dstates[0], p.y, p.kept[0], p.states[0], p.w, p.lengths
        )
        return dy, (dh_n,), (daux,)

    def backward_jvp(
        self, dgy: Tensor, dfinals: Maybe, dy: Tensor, dkept: Tensors, dstates: Maybe, p: Pass,
        lams: Tensors,
    ) -> tuple[Tensor, Tensors]:  # fmt: skip
        ddelta, dgh0 = self.op("backward_jvp")(
            dgy, dfinals[0], dy, dkept[0], dstates[0], p.y, p.kept[0], p.states[0], lams[0], p.w,
            p.lengths,
        )  # fmt: skip
        return ddelta, (dgh0,)

    def of_pre(self, delta: Tensor) -> Tensor:
        return delta[..., : delta.shape[-1] // 4 * 3]

    def of_products(self, delta: Tensor) -> Tensor:
        r, z, _, m = delta.chunk(4, -1)
        return torch.cat([r, z, m], -1)

    def of_units(self, adjoints: Adjoints, p: Pass, needs: Sequence[bool]) -> Maybe:
        if not needs[0]:
            return (None,)
        return (adjoints.delta.chunk(4, -1)[3].sum((1, 2)),)

    def entering(self, dpre: Tensor, moved: Tensor | None, dunits: Maybe) -> Tensor:
        r, z, q = dpre.chunk(3, -1)
        m = torch.zeros_like(q)
        if moved is not None:
            r, z, m = (a + b for a, b in zip((r, z, m), moved.chunk(3, -1), strict=True))
        if dunits[0] is not None:
            m = m + dunits[0][:, None, None]
        lead = 0 if 0 in (r.shape[0], m.shape[0]) else max(r.shape[0], m.shape[0])
        return torch.cat([x.expand(lead, *(-1,) * 3) for x in (r, z, q, m)], -1)


def _fake_forward(pre, h0, w, b_hn, lengths):  # type: ignore[no-untyped-def]
    lead, n = lead_of(pre, h0, w, b_hn), h0.shape[2]
    y = pre.new_empty(lead, *pre.shape[1:3], n)
    return y, y.new_empty(*y.shape[:3], 4 * n), y.new_empty(lead, *h0.shape[1:])


def _fake_backward(gy, gs_n, y, aux, h0, w, lengths, policy, window, decay, want_lam):  # type: ignore[no-untyped-def]
    lead = lead_of(gy, gs_n, y, aux, h0, None if policy == LOCAL else w)
    delta = aux.new_empty(lead, *aux.shape[1:])
    lam = aux.new_empty((lead, *y.shape[1:]) if want_lam else (0,))
    return delta, aux.new_empty(lead, *h0.shape[1:]), lam


def _fake_forward_jvp(du, dh0, y, aux, h0, w, lengths):  # type: ignore[no-untyped-def]
    lead = lead_of(du, dh0, y, aux, h0, w)
    return tuple(x.new_empty(lead, *x.shape[1:]) for x in (y, aux, h0))


def _fake_backward_jvp(dgy, dgs_n, dy, daux, dh0, y, aux, h0, lam, w, lengths):  # type: ignore[no-untyped-def]
    lead = lead_of(dgy, dgs_n, dy, daux, dh0, y, aux, h0, lam, w)
    return aux.new_empty(lead, *aux.shape[1:]), h0.new_empty(lead, *h0.shape[1:])
