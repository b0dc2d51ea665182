"""The linear recurrent unit as a differentiable function."""

import torch
from torch import Tensor

from .._checks import check_lengths, check_tensor
from .._lru_layer import check_complex, lru_layer
from ..rules import Rule
from ..rules.base import for_function
from ..rules.wrappers import Wrapper
from ._arguments import check_operands, check_ranks, refuse_replicas


def lru(
    x: Tensor,
    h0: Tensor | None,
    nu_log: Tensor,
    theta: Tensor,
    B_re: Tensor,
    B_im: Tensor,
    C_re: Tensor,
    C_im: Tensor,
    D: Tensor,
    *,
    lengths: Tensor | None = None,
    rule: str | Rule = "bptt",
) -> tuple[Tensor, Tensor]:
    """One layer of linear recurrent units over whole sequences, differentiable under ``rule``.

        s_t = λ∘s_{t-1} + γ∘(B x_t),   y_t = Re(C s_t) + D x_t
        λ = exp(-exp(nu_log) + i theta),   γ = sqrt(1 - |λ|²)

    Equations and rules as in `rtrl_ext.LRU` (Orvieto et al. 2023). float32 or float64, all the
    same; ``torch.autocast`` changes nothing. Derivatives of every order exist under exact rules.

    x: inputs (T, B, m). h0: initial states, complex (B, n): complex64 beside float32, complex128
        beside float64; None means zeros.
    nu_log (n,), theta (n,) in radians per step, B_re and B_im (n, m), C_re and C_im (o, n),
        D (o, m): real.
    lengths: (B,) integers from 1 to T: outputs past a row's length are zero, ``h_n`` is its last
        state. rule: name or object of `rtrl_ext.rules`.

    Any tensor but ``lengths`` may have a leading dimension R: R networks in one call.
    Returns ``output`` (T, B, o) and the final states ``h_n``, complex (B, n), with R in front if
    any tensor has it.
    Raises TypeError for wrong types and mixed dtypes, ValueError for shapes, values, devices and a
    rule that isn't defined for LRU.

    Example:
        y, h = lru(x, None, nu_log, theta, B_re, B_im, C_re, C_im, D, rule="bptt")
        loss_fn(y, target).backward()
    """
    check_ranks(
        "B_re", x=(x, 3), B_re=(B_re, 2), B_im=(B_im, 2), C_re=(C_re, 2), C_im=(C_im, 2), D=(D, 2),
        nu_log=(nu_log, 1), theta=(theta, 1),
    )  # fmt: skip
    (n, m), o, (steps, batch) = B_re.shape[-2:], C_re.shape[-2], x.shape[-3:-1]
    planes = None
    if h0 is not None:
        check_complex(check_tensor("h0", h0), B_re)
        planes = h0.real
    replicas, _ = check_operands(
        {
            "x": (x, (steps, batch, m)),
            "h0": (planes, (batch, n)),
            "nu_log": (nu_log, (n,)),
            "theta": (theta, (n,)),
            "B_re": (B_re, (n, m)),
            "B_im": (B_im, (n, m)),
            "C_re": (C_re, (o, n)),
            "C_im": (C_im, (o, n)),
            "D": (D, (o, m)),
        },
        B_re,
        "B_re",
    )
    lengths = check_lengths(lengths, steps, batch, x.device)
    chosen = for_function(rule, "LRU", n)
    if isinstance(chosen, Wrapper):
        refuse_replicas(chosen, replicas)
    with torch.autocast(x.device.type, enabled=False):
        y, h_n = lru_layer(
            x, h0, nu_log, theta, B_re, B_im, C_re, C_im, D, lengths=lengths, rule=chosen
        )
    if replicas is not None and h_n.dim() == 2:  # the states depend on nothing that has them
        h_n = h_n.expand(replicas, batch, n)
    return y, h_n
