"""The reference kernels as PyTorch operations, ``torch.ops.rtrl_ext_reference.*``.

They have the schemas of the compiled operations ``torch.ops.rtrl_ext.*``, so that whatever is
built on those can run on these.
"""

from collections.abc import Callable
from typing import Any

import torch

from . import alif, gated_tangents, gru, kronecker, leaky_rnn, lru, lstm, rtrl, snap, traces, uoro

NAMESPACE = "rtrl_ext_reference"

SCHEMAS = {
    "leaky_forward": (
        "(Tensor pre, Tensor y0, Tensor s0, Tensor w, Tensor leak, Tensor? lengths, int form, "
        "int act, bool unit_leak) -> (Tensor, Tensor, Tensor)"
    ),
    "leaky_backward": (
        "(Tensor? gy, Tensor? gaux, Tensor? gs_n, Tensor y, Tensor aux, Tensor? w, Tensor leak, "
        "Tensor? lengths, int form, int act, bool unit_leak, int policy, float mu, int window, "
        "float decay, bool want_lam) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "leaky_forward_jvp": (
        "(Tensor dpre, Tensor dy0, Tensor ds0, Tensor? dleak, Tensor y, Tensor aux, Tensor y0, "
        "Tensor s0, Tensor w, Tensor leak, Tensor? lengths, int form, int act, bool unit_leak, "
        "bool want_du) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "leaky_backward_jvp": (
        "(Tensor dgy, Tensor? dgs_n, Tensor? dleak, Tensor dy, Tensor daux, Tensor y, Tensor aux, "
        "Tensor lam, Tensor delta, Tensor w, Tensor leak, Tensor? lengths, int form, int act, "
        "bool unit_leak, bool want_dlam) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "gru_forward": (
        "(Tensor pre, Tensor h0, Tensor w, Tensor b_hn, Tensor? lengths) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "gru_backward": (
        "(Tensor? gy, Tensor? gs_n, Tensor y, Tensor aux, Tensor h0, Tensor? w, Tensor? lengths, "
        "int policy, int window, float decay, bool want_lam) -> (Tensor, Tensor, Tensor)"
    ),
    "gru_forward_jvp": (
        "(Tensor du, Tensor dh0, Tensor y, Tensor aux, Tensor h0, Tensor w, Tensor? lengths) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "gru_backward_jvp": (
        "(Tensor dgy, Tensor? dgs_n, Tensor dy, Tensor daux, Tensor dh0, Tensor y, Tensor aux, "
        "Tensor h0, Tensor lam, Tensor w, Tensor? lengths) -> (Tensor, Tensor)"
    ),
    "lstm_forward": (
        "(Tensor pre, Tensor h0, Tensor c0, Tensor w, Tensor? lengths) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "lstm_backward": (
        "(Tensor? gy, Tensor? gh_n, Tensor? gc_n, Tensor aux, Tensor c0, Tensor? w, "
        "Tensor? lengths, int policy, int window, float decay, bool want_lam) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "lstm_forward_jvp": (
        "(Tensor du, Tensor dh0, Tensor dc0, Tensor aux, Tensor c0, Tensor w, Tensor? lengths) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "lstm_backward_jvp": (
        "(Tensor dgy, Tensor? dgh_n, Tensor? dgc_n, Tensor daux, Tensor dc0, Tensor aux, "
        "Tensor c0, Tensor lam, Tensor to_c, Tensor w, Tensor? lengths) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "alif_forward": (
        "(Tensor pre, Tensor z0, Tensor v0, Tensor? a0, Tensor? count0, Tensor w, Tensor alpha, "
        "Tensor? rho, Tensor? beta, Tensor? lengths, float v_th, float gamma, bool scaling, "
        "int reset, int surrogate, int refractory, bool want_states) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "alif_backward": (
        "(Tensor? gz, Tensor? gv_n, Tensor? ga_n, Tensor z, Tensor psi, Tensor v, Tensor z0, "
        "Tensor v0, Tensor? w, Tensor alpha, Tensor? rho, Tensor? beta, Tensor? lengths, "
        "float v_th, bool scaling, int reset, int policy, float mu, int window, float decay, "
        "bool want_states) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "lru_scan": (
        "(Tensor lam, Tensor u, Tensor s0, Tensor? lengths, int window) -> (Tensor, Tensor)"
    ),
    "lru_backward": (
        "(Tensor? gs, Tensor? gs_n, Tensor lam, Tensor states, Tensor s0, Tensor? lengths, "
        "int window, bool want_lam) -> (Tensor, Tensor, Tensor)"
    ),
    "trace_step": (
        "(Tensor(a!) trace, Tensor(b!)? bias, Tensor decay, Tensor psi, Tensor pre, "
        "Tensor? signal, Tensor(c!)? grad, Tensor(d!)? grad_bias, int commit) -> ()"
    ),
    "rank1_trace_step": (
        "(Tensor(a!) trace, Tensor(b!)? bias, Tensor decay, Tensor? psi, Tensor pre, "
        "Tensor? signal, Tensor(c!)? grad, Tensor(d!)? grad_bias, int commit) -> ()"
    ),
    "rtrl_step": (
        "(Tensor(a!) influence, Tensor jacobian, Tensor psi, Tensor pre, Tensor? signal, "
        "Tensor(b!)? grad) -> ()"
    ),
    "snap_step": (
        "(Tensor(a!) influence, Tensor jacobian, Tensor psi, Tensor pre, Tensor units, "
        "Tensor unit_at, Tensor columns, Tensor column_at, Tensor links, Tensor link_at, "
        "Tensor link_pairs, Tensor pairs, Tensor at, int size, int most_units, Tensor? signal, "
        "Tensor(b!)? grad) -> ()"
    ),
    "random_signs": "(Tensor(a!) out, int seed, Tensor first, int stream) -> ()",
    "uoro_step": (
        "(Tensor(a!) s, Tensor(b!)[] theta, Tensor(c!) norm, bool known, Tensor jacobian, "
        "Tensor[] psi, Tensor[] pre, Tensor signs, Tensor? keep, Tensor? signal, "
        "Tensor(d!)[] grad) -> ()"
    ),
    "kfrtrl_step": (
        "(Tensor(a!) u, Tensor(b!) a, Tensor jacobian, Tensor psi, Tensor pre, Tensor signs, "
        "Tensor? keep, Tensor? signal, Tensor(c!)? grad) -> ()"
    ),
    "ok_step": (
        "(Tensor(a!) u, Tensor(b!) a, Tensor jacobian, Tensor psi, Tensor pre, Tensor signs, "
        "Tensor? keep, Tensor? signal, Tensor(c!)? grad) -> ()"
    ),
}

_MODULES = (
    leaky_rnn, gru, lstm, gated_tangents, alif, lru, traces, rtrl, snap, uoro, kronecker
)  # fmt: skip


def function(name: str) -> Callable[..., Any]:
    """The Python function behind an operation."""
    found: Callable[..., Any] = next(getattr(m, name) for m in _MODULES if hasattr(m, name))
    return found


_library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, function(_name), "CompositeExplicitAutograd")
