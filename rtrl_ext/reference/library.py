"""The reference kernels as PyTorch operations, ``torch.ops.rtrl_ext_reference.leaky_*``.

They have the schemas of the compiled operations ``torch.ops.rtrl_ext.leaky_*``, so that whatever is
built on those can run on these.
"""

import torch

from . import leaky_rnn

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
}

_library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, getattr(leaky_rnn, _name), "CompositeExplicitAutograd")
