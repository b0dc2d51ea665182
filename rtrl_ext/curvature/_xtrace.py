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
    """For each probe i, the trace in what is left of Q and a quadratic form of the rest.

    ``lost``: orthonormal directions (m, m), one column for each i, that leave Q's span.
    """
    trace = h.diagonal().sum()
    wi = w
    for s in lost:
        trace = trace - (s * (h @ s)).sum(0)
        wi = wi - s * (s * w).sum(0)
    # (I - Q_i Q_iᵀ) ω_i = ω_i - Q wi, and H ω_i = Q r_i
    quad = (w * r).sum(0) - 2 * (wi * r).sum(0) + (wi * (h @ wi)).sum(0)
    # its direction is uniform in the complement: rescale to the length that is exact on average
    outside = n - wi.square().sum(0)
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
    s = _leaving_directions(r)
    chosen = torch.linspace(0, m - 1, min(m, _PAIRED), device=h.device).round().long()
    moved = torch.zeros(len(chosen), len(chosen), dtype=h.dtype, device=h.device)
    for column, j in enumerate(chosen.tolist()):
        others = chosen[chosen != j]
        sj, si = s[:, [j]], s[:, others]
        u = si - sj * (sj.t() @ si)
        u = u / torch.linalg.vector_norm(u, dim=0)
        lost = [sj.expand_as(u), u]
        without = _estimates(h, w[:, others], r[:, others], n, lost)
        moved[chosen != j, column] = samples[others] - without
    pairs = len(chosen) * (len(chosen) - 1)
    return float((moved * moved.t()).sum()) / pairs


def standard_error(h: Tensor, w: Tensor, r: Tensor, n: int, samples: Tensor) -> float:
    """That of the mean of ``samples``: ``s²/m`` and their covariance, where it is positive.

    ``s²`` alone estimates the variance of one less the covariance of two.
    """
    alone = float(samples.var()) / h.shape[0]
    return math.sqrt(alone + max(0.0, covariance(h, w, r, n, samples)))
