"""XTrace's estimates and their standard error, in the coordinates of the sketch's basis.

Q (P, m) is an orthonormal basis of the sketch ``HΩ = QR``; ``h = QᵀHQ``, ``w = QᵀΩ``, R are all
that is needed, so that leaving probes out costs no product.
"""

import math

import torch
from torch import Tensor

#: probes of which all pairs are looked at; above this, these many of them stand for all
_PAIRED = 64


def _leaving_directions(r: Tensor) -> Tensor:
    """Unit vectors (m, m): what Q's span loses without probe i, as columns."""
    s = torch.linalg.inv(r).t()
    return s / torch.linalg.vector_norm(s, dim=0)


def _estimates(h: Tensor, w: Tensor, r: Tensor, n: int, lost: list[Tensor]) -> Tensor:
    """For each probe i, the trace in what is left of Q and a quadratic form of the rest (..., k).

    ``lost``: orthonormal directions (..., m, k), one column for each i, that leave Q's span.
    """
    trace = h.diagonal().sum()
    wi = w
    for s in lost:
        trace = trace - (s * (h @ s)).sum(-2)
        wi = wi - s * (s * w).sum(-2, keepdim=True)
    # (I - Q_i Q_iᵀ) ω_i = ω_i - Q wi, and H ω_i = Q r_i
    quad = (w * r).sum(-2) - 2 * (wi * r).sum(-2) + (wi * (h @ wi)).sum(-2)
    # its direction is uniform in the complement: rescale to the length that is exact on average
    outside = n - wi.square().sum(-2)
    return trace + quad * (n - h.shape[0] + len(lost)) / outside


def estimates(h: Tensor, w: Tensor, r: Tensor, n: int) -> Tensor:
    """The leave-one-out estimates (m,), whose mean is XTrace."""
    return _estimates(h, w, r, n, [_leaving_directions(r)])


def covariance(h: Tensor, w: Tensor, r: Tensor, n: int, samples: Tensor) -> float:
    """The covariance of two of the leave-one-out estimates ``samples`` (m,), without bias.

    Given the other probes, t_i has the trace as its mean whatever probe j is, and so has the
    estimate t_ij that also leaves j out of the basis, which does not depend on j at all. Hence
    ``E[(t_i - t_ij) (t_j - t_ji)] = Cov(t_i, t_j)``: in the product every other term has mean zero.
    """
    m = h.shape[0]
    chosen = torch.linspace(0, m - 1, min(m, _PAIRED), device=h.device).round().long()
    s = _leaving_directions(r)[:, chosen]
    sj = s.t().unsqueeze(2)  # (j, m, 1): left out beside probe i
    u = s - sj * (s.t() @ s).unsqueeze(1)  # (j, m, i)
    alone = torch.eye(len(chosen), dtype=torch.bool, device=h.device)
    u = (u / torch.linalg.vector_norm(u, dim=1, keepdim=True)).masked_fill(alone.unsqueeze(1), 0)
    without = _estimates(h, w[:, chosen], r[:, chosen], n, [sj.expand_as(u), u])
    moved = (samples[chosen] - without).masked_fill(alone, 0)  # (j, i): t_i - t_ij
    pairs = len(chosen) * (len(chosen) - 1)
    return float((moved * moved.t()).sum()) / pairs


def standard_error(h: Tensor, w: Tensor, r: Tensor, n: int, samples: Tensor) -> float:
    """That of the mean of ``samples``: ``s²/m`` and their covariance, where it is positive.

    ``s²`` alone estimates the variance of one less the covariance of two.
    """
    alone = float(samples.var()) / h.shape[0]
    return math.sqrt(alone + max(0.0, covariance(h, w, r, n, samples)))
