"""The operations behind the modules, as functions for existing training code.

`leaky_rnn`, `gru`, `lstm`, `alif`, `lif` and `lru` are differentiable. ``leaky_rnn_forward``,
``_backward``, ``_jvp`` and ``_backward_jvp`` stay outside autograd: one forward pass, then
gradients under several rules, or tangents in k directions at once. `hvp` and `ggn_vp` are
second-order products of any loss function. Functions whose name ends in ``_`` change their
arguments: `trace_step_` and `rank1_trace_step_` update eligibility traces, `rtrl_step_` and
`snap_step_` influence matrices, one or several steps at a time; `uoro_step_`, `kfrtrl_step_` and
`ok_step_` random estimates of them, with signs from `random_signs`.
"""

from .gated import gru, lstm
from .influence import rtrl_step_, snap_pattern, snap_step_
from .leaky_rnn import leaky_rnn, leaky_rnn_backward, leaky_rnn_forward
from .leaky_tangents import leaky_rnn_backward_jvp, leaky_rnn_jvp
from .lru import lru
from .products import ggn_vp, hvp
from .spiking import alif, lif
from .stochastic import kfrtrl_step_, ok_step_, random_signs, uoro_step_
from .traces import rank1_trace_step_, trace_step_

__all__ = [
    "alif",
    "ggn_vp",
    "gru",
    "hvp",
    "kfrtrl_step_",
    "leaky_rnn",
    "leaky_rnn_backward",
    "leaky_rnn_backward_jvp",
    "leaky_rnn_forward",
    "leaky_rnn_jvp",
    "lif",
    "lru",
    "lstm",
    "ok_step_",
    "random_signs",
    "rank1_trace_step_",
    "rtrl_step_",
    "snap_pattern",
    "snap_step_",
    "trace_step_",
    "uoro_step_",
]
