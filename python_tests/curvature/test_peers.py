"""curvlinops, PyHessian and hessian-eigenthings, written for plain PyTorch and unchanged, on models
that use our layers: against dense matrices of plain models and against our operators."""

import math

import pytest
import torch
from compatibility import CELLS, LOSSES, plain_twin, problem

from rtrl_ext.curvature import GaussNewton, Hessian

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


@pytest.fixture(params=LOSSES)
def p(request, cell):
    return problem(cell, request.param)


def gauss_newton(p):
    """``Jᵀ H J`` by autograd of the plain model."""
    model = plain_twin(p.net)
    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        out = model(p.x)
        rows = [
            torch.autograd.grad(o, list(model.parameters()), retain_graph=True)
            for o in out.reshape(-1)
        ]
    finally:
        torch.backends.mkldnn.enabled = before
    j = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    h = torch.autograd.functional.hessian(
        lambda o: p.loss_fn(o.reshape(out.shape), p.target), out.detach().reshape(-1)
    )
    return j.T @ h @ j


def same(found, expected, rel=1e-9):
    assert float((found - expected).abs().max()) <= rel * float(expected.abs().max())


@pytest.mark.parametrize("name", ["HessianLinearOperator", "GGNLinearOperator"])
def test_curvlinops(p, name):
    curvlinops = pytest.importorskip("curvlinops")
    op = getattr(curvlinops, name)(
        p.net, p.loss_fn, list(p.net.parameters()), [(p.x, p.target)],
        check_deterministic=True, batch_size_fn=lambda x: x.shape[1],
    )  # fmt: skip
    ours, expected = (Hessian, p.H) if name[0] == "H" else (GaussNewton, gauss_newton(p))
    same(op @ torch.eye(len(p.v)), expected)
    same(ours(p.net, p.loss_fn, (p.x, p.target)).dense(), expected)


def test_pyhessian(p):
    pyhessian = pytest.importorskip("pyhessian")
    torch.manual_seed(0)
    peer = pyhessian.hessian(p.net, p.loss_fn, data=(p.x, p.target), cuda=False)
    eigenvalues = torch.linalg.eigvalsh(p.H)
    leading = float(eigenvalues[eigenvalues.abs().argmax()])
    values, vectors = peer.eigenvalues(maxIter=3000, tol=1e-10, top_n=1)
    assert values[0] == pytest.approx(leading, rel=1e-5)  # it divides by ‖v‖ + 1e-6
    v = torch.cat([x.reshape(-1) for x in vectors[0]])
    assert float((p.H @ v - leading * v).norm()) < 1e-3 * abs(leading)
    samples = torch.tensor(peer.trace(maxIter=300, tol=-math.inf))
    spread = float(samples.std()) / len(samples) ** 0.5
    assert abs(float(samples.mean()) - float(p.H.trace())) < 4 * spread
    ours = Hessian(p.net, p.loss_fn, (p.x, p.target)).eigsh(tol=1e-10)
    assert float(ours.values[0]) == pytest.approx(leading, rel=1e-9)
    p.net.zero_grad()  # PyHessian leaves gradients with a graph behind


def test_hessian_eigenthings(p):
    peer = pytest.importorskip("hessian_eigenthings")
    batch = [(p.x, p.target)]
    params = {n: q for n, q in p.net.named_parameters() if q.requires_grad}
    assert len(params) == len(list(p.net.parameters()))

    def loss_fn(model, data):
        return p.loss_fn(model(data[0]), data[1])

    hessian = peer.HessianOperator(p.net, batch, loss_fn)
    ggn = peer.GGNOperator(
        p.net, batch, lambda model, data: model(data[0]), lambda out, data: p.loss_fn(out, data[1])
    )
    for op, expected in ((hessian, p.H), (ggn, gauss_newton(p))):
        same(torch.stack([op.matvec(e) for e in torch.eye(len(p.v))], 1), expected)
    ours = Hessian(p.net, p.loss_fn, (p.x, p.target))
    for which, at in (("LA", -1), ("SA", 0)):
        found = peer.lanczos(hessian, k=1, which=which, max_iter=20, seed=0, reorthogonalize=True)
        value = float(torch.as_tensor(found.eigenvalues)[0])
        assert value == pytest.approx(float(torch.linalg.eigvalsh(p.H)[at]), rel=1e-5)
        assert value == pytest.approx(float(ours.eigsh(which=which, tol=1e-9).values[0]), rel=1e-5)
