"""PyHessian and curvlinops, written for plain PyTorch, on a model that uses our cells."""

import pytest
import torch
from torch import nn

from rtrl_ext.curvature import GaussNewton, Hessian


class LastStep(nn.Module):
    def __init__(self, tools):
        super().__init__()
        self.net = tools.Net(leak=0.4)

    def forward(self, x):
        return self.net(x)[-1]


@pytest.fixture
def setting(tools):
    torch.manual_seed(0)
    net = LastStep(tools)
    return net, nn.CrossEntropyLoss(), torch.randn(4, 5, 2).double(), torch.randint(0, 3, (5,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "ours, theirs", [(Hessian, "HessianLinearOperator"), (GaussNewton, "GGNLinearOperator")]
)
def test_curvlinops(setting, ours, theirs):
    curvlinops = pytest.importorskip("curvlinops")
    net, loss_fn, x, target = setting
    op = ours(net, loss_fn, (x, target))
    params = list(net.parameters())
    first = torch.randn(op.shape[0], 3, dtype=torch.float64)
    peer = getattr(curvlinops, theirs)(
        net,
        loss_fn,
        params,
        [(x, target)],
        check_deterministic=False,
        batch_size_fn=lambda x: x.shape[1],
    )
    torch.testing.assert_close(peer @ first, op @ first, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_pyhessian(setting):
    pyhessian = pytest.importorskip("pyhessian")
    net, loss_fn, x, target = setting
    op = Hessian(net, loss_fn, (x, target))
    torch.manual_seed(0)
    peer = pyhessian.hessian(net, loss_fn, data=(x, target), cuda=False)
    values, _ = peer.eigenvalues(maxIter=1000, tol=1e-9, top_n=1)
    assert values[0] == pytest.approx(float(op.eigsh(tol=1e-10).values[0]), rel=1e-5)
    samples = torch.tensor(peer.trace(maxIter=400, tol=0))
    ours = op.trace("hutchinson", 400, seed=0)
    spread = float(samples.std()) / len(samples) ** 0.5
    assert abs(float(samples.mean()) - ours.value) < 4 * (spread**2 + ours.stderr**2) ** 0.5
