"""Problems for the steps of RTRL and SnAp: random numbers at shapes with tails."""

import torch
from influence_oracle import random_mask

from rtrl_ext._snap_pattern import make_pattern
from rtrl_ext.functional import snap_pattern
from rtrl_ext.reference import snap

SHAPES = [  # B, S, n, G, Q
    (1, 1, 1, 1, 1),
    (3, 1, 5, 1, 7),
    (2, 2, 7, 4, 9),
    (1, 1, 13, 3, 33),
    (2, 1, 26, 1, 70),
]


def patterns(shape):
    """Sparse ones with listed links (for n > 1), one whole, one of hop 1."""
    _, states, n, gates, columns = shape
    own = random_mask(max(n, columns), 0.6, seed=4)[:n, :columns]
    own[:, 0] = True
    if n > 2:
        own[1] = False  # a unit without parameters
    sparse = [] if n == 1 else [random_mask(n, 1.5 / n, seed=n)]
    listed = [make_pattern(mask, k, states, gates, own, whole=1) for mask in sparse for k in (2, 3)]
    options = {"states": states, "gates": gates, "columns": own}
    more = [snap_pattern(mask, 3, **options) for mask in sparse]
    return [*listed, *more, snap_pattern(n, 2, **options), snap_pattern(n, 1, **options)]


def problem(shape, steps, signals, dtype, pattern=None, seed=0):
    """(influence, jacobian, psi, pre, signal, grad); without signals both are None."""
    batch, states, n, gates, columns = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

    width, rows = states * n, gates * n
    size = (width, rows, columns) if pattern is None else (pattern.size,)
    parts = [
        normal(batch, *size),
        normal(steps, batch, width, width) / width**0.5,
        normal(steps, batch, states, rows),
        normal(steps, batch, columns),
    ]
    if signals == 0:
        return (*parts, None, None)
    return (*parts, normal(signals, batch, states, n), normal(rows, columns))


def lists(pattern):
    if pattern is None:
        return ()
    return (*pattern.tensors(torch.device("cpu")), pattern.size, pattern.most_units)


def run(op, parts, pattern=None):
    """(influence, grad) after a call on copies; grad left out if there is none."""
    influence, *between, signal, grad = parts
    influence, grad = influence.clone(), None if grad is None else grad.clone()
    op(influence, *between, *lists(pattern), signal, grad)
    return [influence] if grad is None else [influence, grad]


def run_both(op, reference, parts, pattern=None, alone=False):
    """Results of an operation and of its reference, or of the operation alone."""
    got = run(op, parts, pattern)
    return got if alone else (got, run(reference or snap.snap_step, parts, pattern))


def twice(op, parts, pattern=None):
    """Pairs of results: pending steps in one call, and in one call each."""
    influence, jacobian, psi, pre, signal, grad = parts
    whole = run(op, parts, pattern)
    single = [influence.clone(), grad.clone()]
    steps, signals = len(jacobian), len(signal)
    for k in range(steps):
        at = k - (steps - signals)
        one = [x[k : k + 1] for x in (jacobian, psi, pre)]
        ends = (None, None) if at < 0 else (signal[at : at + 1], single[1])
        op(single[0], *one, *lists(pattern), *ends)
    return list(zip(whole, single, strict=True))
