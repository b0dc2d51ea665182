"""The whole Jacobian of a step, from each unit's own derivatives and the recurrent weights."""

import torch
from torch import Tensor

from .cells import StepCell
from .records import Factors, Record


def jacobian(cell: StepCell, record: Record, factors: Factors) -> Tensor:
    """J (B, S n, S n), d states after / d states before; row = new, state s of unit u is s n + u.

    ``factors`` as of `StepCell.without_weights`. Rows of the batch that start anew have zeros.
    """
    decay = factors.decay
    assert decay is not None
    _, b, s, _, n = decay.shape
    if cell.reaches:
        by_output = through_weights(cell, record, factors)  # (B, S, n, n)
        each = [
            by_output if read is None else by_output * read[:, None, None]
            for read in cell.read(record.before)
        ]
        full = each[0].unsqueeze(3) if s == 1 else torch.stack(each, 3)
    else:
        full = decay.new_zeros(b, s, n, s, n)
    full.diagonal(dim1=2, dim2=4).add_(decay[0])
    full = full.reshape(b, s * n, s * n)
    if record.fresh is not None:
        full.masked_fill_(record.fresh[:, None, None], 0.0)
    return full


def through_weights(cell: StepCell, record: Record, factors: Factors) -> Tensor:
    """d states after / d outputs before through the recurrent weights, (B, S, n, n)."""
    n = record.weights.w_hh.shape[1]
    psi = cell.into_output(factors.psi[0])
    w = record.weights.w_hh.unflatten(0, (-1, n))
    if w.shape[0] == 1:
        return psi.unsqueeze(3) * w[0]
    return torch.einsum("bsgu,guq->bsuq", psi.unflatten(2, (-1, n)), w)


def unit_terms(cell: StepCell, record: Record, factors: Factors) -> Tensor:
    """Immediate influence of the per-unit constants on all states, (B, S n, U n)."""
    units = factors.units
    assert units is not None
    _, b, s, count, n = units.shape
    out = units.new_zeros(b, s, n, count, n)
    out.diagonal(dim1=2, dim2=4).copy_(units[0])
    spread = cell.spread(record)
    if spread is not None:  # a constant that acts on the output before, and so on every unit
        at, by = spread
        out[:, :, :, at] += through_weights(cell, record, factors) * by[:, None, None]
    return out.reshape(b, s * n, count * n)
