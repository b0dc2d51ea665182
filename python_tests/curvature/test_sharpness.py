"""Sharpness by weight perturbation."""

import math

import pytest
import torch
from torch import nn

from rtrl_ext.curvature import Hessian, perturbation_sharpness


def test_small_noise_measures_the_scaled_trace(tools):
    """E[rise] = σ²/2 Σ_tensors rms² tr(H of the tensor), to second order."""
    p = tools.problem(leak=0.4)
    sigma, expected = 1e-3, 0.0
    for name, q in p.net.named_parameters():
        block = Hessian(p.net, p.loss_fn, p.data, params=[name]).dense()
        expected += sigma**2 / 2 * float(q.detach().square().mean() * block.trace())
    found = perturbation_sharpness(p.net, p.loss_fn, p.data, sigma_rel=sigma, num=4000, seed=0)
    antithetic = found.mean  # the gradient's part has mean zero and shows in stderr
    assert abs(antithetic - expected) < 4 * found.stderr
    assert found.loss == pytest.approx(p.loss_fn(p.net(p.x), p.target).item(), rel=1e-12)


def test_statistics_and_seeds(tools):
    p = tools.problem()
    found = perturbation_sharpness(p.net, p.loss_fn, p.data, 0.1, 20, 3)
    assert found.rises.shape == (20,) and found.max == float(found.rises.max())
    assert found.mean == float(found.rises.mean())
    assert found.stderr == pytest.approx(float(found.rises.std()) / math.sqrt(20))
    again = perturbation_sharpness(p.net, p.loss_fn, p.data, 0.1, 20, 3)
    assert torch.equal(again.rises, found.rises)
    state = torch.get_rng_state()
    assert not torch.equal(
        perturbation_sharpness(p.net, p.loss_fn, p.data, 0.1, 20).rises, found.rises
    )
    assert torch.equal(torch.get_rng_state(), state)
    zero = perturbation_sharpness(p.net, p.loss_fn, p.data, sigma_rel=0, num=2)
    assert zero.mean == zero.max == 0
    assert "mean=" in repr(found)


def test_batches_are_weighted(tools):
    p = tools.problem(batch=5)
    batches = [(p.x[:, :2], p.target[:, :2]), (p.x[:, 2:], p.target[:, 2:])]
    whole = perturbation_sharpness(p.net, p.loss_fn, p.data, seed=0, num=5)
    parts = perturbation_sharpness(p.net, p.loss_fn, iter(batches), seed=0, num=5)
    torch.testing.assert_close(whole.rises, parts.rises, rtol=1e-10, atol=1e-14)


def test_a_step_function_has_a_sharpness():
    """No derivative is taken."""

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return (self.linear(x) > 0).float()

    torch.manual_seed(0)
    net, x = Steps(), torch.randn(50, 4, 3)
    found = perturbation_sharpness(net, nn.MSELoss(), (x, net(x)), 0.3, 20, 0)
    assert found.loss == 0 and found.mean > 0


def test_weights_are_the_same_also_after_an_exception(tools):
    p = tools.problem()
    before = {name: q.clone() for name, q in p.net.state_dict().items()}
    calls = []

    def loss_fn(output, target):
        calls.append(1)
        if len(calls) == 4:
            raise KeyError
        return nn.functional.mse_loss(output, target)

    with pytest.raises(KeyError):
        perturbation_sharpness(p.net, loss_fn, p.data)
    perturbation_sharpness(p.net, loss_fn, p.data, num=3)
    for name, q in p.net.state_dict().items():
        assert torch.equal(q, before[name])


def test_interrupted(tools):
    p = tools.problem()
    calls = []

    def loss_fn(output, target):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return nn.functional.mse_loss(output, target)

    with pytest.warns(RuntimeWarning, match="interrupted after 5 of 20 perturbations"):
        found = perturbation_sharpness(p.net, loss_fn, p.data, num=20, seed=0)
    whole = perturbation_sharpness(p.net, p.loss_fn, p.data, num=20, seed=0)
    assert found.interrupted and not found.converged and whole.converged
    assert torch.equal(found.rises, whole.rises[:5])
    assert found.mean == float(whole.rises[:5].mean())
    calls[:] = [1] * 4
    with pytest.raises(KeyboardInterrupt):
        perturbation_sharpness(p.net, loss_fn, p.data, num=20, seed=0)


def test_plot_table_and_progress(tools, capsys):
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("pandas")
    p = tools.problem()
    found = perturbation_sharpness(p.net, p.loss_fn, p.data, num=20, seed=0, progress=True)
    assert "perturbation sharpness: 1/20 perturbations" in capsys.readouterr().err
    ax = found.plot()
    assert ax.get_xlabel() == "rise of the loss" and len(ax.patches) > 1
    plt.close("all")
    assert found.to_dataframe()["rise"].to_list() == found.rises.tolist()


def test_overflow_counts_as_infinite(tools):
    p = tools.problem()

    def loss_fn(output, target):
        value = nn.functional.mse_loss(output, target)
        return value if torch.equal(output, clean) else value * math.inf

    with torch.no_grad():
        clean = p.net(p.x)
    found = perturbation_sharpness(p.net, loss_fn, p.data, num=3)
    assert found.max == math.inf and found.mean == math.inf


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"sigma_rel": -1}, ValueError, "sigma_rel: got -1"),
        ({"sigma_rel": math.inf}, ValueError, "sigma_rel: got inf"),
        ({"sigma_rel": "a"}, TypeError, "sigma_rel: got str"),
        ({"num": 1}, ValueError, "num: got 1, expected at least 2"),
        ({"num": 2.0}, TypeError, "num: got float"),
        ({"seed": "a"}, TypeError, "seed: got str"),
    ],
)
def test_wrong_arguments(tools, arguments, error, message):
    p = tools.problem()
    with pytest.raises(error, match=message):
        perturbation_sharpness(p.net, p.loss_fn, p.data, **arguments)


def test_a_loss_that_is_not_finite_is_refused(tools):
    p = tools.problem()
    with pytest.raises(ValueError, match="the loss is nan at the unperturbed weights"):
        perturbation_sharpness(p.net, lambda o, t: o.sum() * math.nan, p.data)
