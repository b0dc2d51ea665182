"""The batched steps of KF-RTRL and OK equal their plain references."""

import pytest
import torch
from kernel_checks import same

from rtrl_ext import _kronecker
from rtrl_ext.reference import kronecker

# B, S, n, G, P, K
SHAPES = [(1, 1, 1, 1, 1, 1), (3, 1, 5, 1, 9, 1), (2, 2, 3, 4, 7, 3), (4, 2, 4, 1, 6, 2)]


def arguments(shape, dtype, rank=None, seed=0):
    B, S, n, G, P, K = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

    terms = [] if rank is None else [rank]
    count = 2 if rank is None else rank + 1
    states = S * n
    return {
        "u": normal(B, *terms, P),
        "a": normal(B, *terms, states, G * n),
        "jacobian": normal(K, B, states, states) / states**0.5,
        "psi": normal(K, B, S, G * n),
        "pre": normal(K, B, P),
        "signs": normal(K, B, count).sign(),
        "keep": torch.rand(B, generator=g) < 0.6,
        "signal": normal(max(1, K - 1), B, states),
        "grad": normal(G * n, P),
    }


def run(step, args, **changes):
    args = {k: x.clone() if isinstance(x, torch.Tensor) else x for k, x in args.items()}
    args.update(changes)
    step(**args)
    return args["u"], args["a"], args["grad"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kfrtrl_equals_the_reference(shape, dtype):
    args = arguments(shape, dtype)
    for changes in ({}, {"keep": None}, {"signal": None}):
        expected = run(kronecker.kfrtrl_step, args, **changes)
        same(run(_kronecker.kfrtrl_step, args, **changes), expected, dtype)


def test_mixing_equals_the_reference():
    """F Fᵀ, since the columns' basis is free; for values that are kept, mixed, equal or zero."""
    for d in (
        [1.0, 1.0], [3.0, 0.0], [0.0, 0.0], [5.0, 1.0, 0.3], [1.0, 1.0, 1.0], [2.0, 1.0, 0.0, 0.0],
        [9.0, 4.0, 1.0, 0.9, 0.8], [1.0, 0.9, 0.8, 0.7, 0.6], [1e3, 1.0, 1e-3, 1e-6],
    ):  # fmt: skip
        d = torch.tensor(d, dtype=torch.float64)
        signs = torch.randn(len(d), generator=torch.Generator().manual_seed(1)).sign().double()
        f = _kronecker.mixing(torch.stack([torch.ones_like(d), d]), signs.repeat(2, 1))[1]
        expected, size = kronecker.mixing(d, signs), 1e-13 * max(1, float(d[0]))
        assert torch.allclose(f @ f.T, expected @ expected.T, rtol=0, atol=size)
        assert torch.allclose((f @ f.T).diagonal(), d, rtol=1e-12, atol=size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ok_that_needs_no_mixing_equals_the_reference(shape, dtype):
    """So many terms that all are kept; then only the sum of products is theirs in common."""
    _, S, n, G, P, _ = shape
    rank = min(P, S * n * G * n) + 1
    args = arguments(shape, dtype, rank)
    results = []
    for step in (kronecker.ok_step, _kronecker.ok_step):
        u, a, grad = run(step, args)
        results.append((torch.einsum("bip,bisr->bsrp", u, a), grad))
    same(results[1], results[0], dtype)


def test_the_signs_of_a_decomposition_do_not_matter(monkeypatch):
    """Libraries differ in them, so that OK's numbers would differ from one device to another."""
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(3, 4, 9, generator=g), torch.randn(3, 4, 7, generator=g)
    signs = torch.randn(3, 4, generator=g).sign()
    expected = _kronecker.reduce_terms(left, right, signs)
    svd, qr = torch.linalg.svd, torch.linalg.qr

    def flips(columns):
        return torch.randn(3, 1, columns, generator=g).sign()

    def other_svd(x, full_matrices):
        u, d, v = svd(x, full_matrices=full_matrices)
        sign = flips(u.shape[2])
        return u * sign, d, v * sign.mT

    def other_qr(x):
        q, r = qr(x)
        sign = flips(q.shape[2])
        return q * sign, r * sign.mT

    monkeypatch.setattr(torch.linalg, "svd", other_svd)
    monkeypatch.setattr(torch.linalg, "qr", other_qr)
    for found, want in zip(_kronecker.reduce_terms(left, right, signs), expected, strict=True):
        torch.testing.assert_close(found, want)
