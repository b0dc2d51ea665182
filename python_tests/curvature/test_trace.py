"""Trace estimators: unbiased, with a standard error that covers."""

import math

import pytest
import torch

from rtrl_ext.curvature import GaussNewton, Hessian, trace

SPECTRUM = torch.cat([torch.tensor([10.0, -6.0, 5.0]), torch.linspace(-0.5, 1, 90)])
TRACE = float(SPECTRUM.double().sum())


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_unbiased(tools, method):
    op = tools.with_spectrum(SPECTRUM)
    found = [trace(op, method, num_products=24, seed=s) for s in range(200)]
    values = torch.tensor([f.value for f in found])
    assert abs(float(values.mean()) - TRACE) < 4 * float(values.std()) / math.sqrt(200)


@pytest.mark.parametrize("method, low", [("hutchinson", 0.9), ("hutch++", 0.87)])
def test_interval_covers(tools, method, low):
    op = tools.with_spectrum(SPECTRUM)
    found = [trace(op, method, num_products=60, seed=s) for s in range(400)]
    covered = sum(abs(f.value - TRACE) < 1.96 * f.stderr for f in found) / len(found)
    assert low <= covered <= 0.99  # 95 % nominal; a t quantile would widen the smaller samples


def test_hutchpp_and_xtrace_beat_hutchinson_on_decaying_spectra(tools):
    op = tools.with_spectrum(2.0 ** -torch.arange(100).double())
    error = {
        method: max(abs(trace(op, method, 40, seed=s).value - 2) for s in range(5))
        for method in ("hutchinson", "hutch++", "xtrace")
    }
    assert error["hutch++"] < 1e-2 * error["hutchinson"]
    assert error["xtrace"] < 1e-2 * error["hutchinson"]


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_exact_where_products_suffice(tools, method):
    p = tools.problem(leak=0.4)
    op = Hessian(p.net, p.loss_fn, p.data)
    found = op.trace(method, num_products=op.shape[0], seed=0)
    assert found.value == pytest.approx(float(op.dense().trace()), rel=1e-10)
    assert found.stderr == 0 and found.num_products == op.shape[0]


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_of_a_network(tools, method):
    p = tools.problem(leak=0.4)
    op = GaussNewton(p.net, p.loss_fn, p.data)
    found = op.trace(method, num_products=30, seed=2)
    assert abs(found.value - float(op.dense().trace())) < 5 * found.stderr
    assert found.num_products <= 30 and found.method == method
    assert f"{found.value:.6g}" in repr(found)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_low_rank_and_zero(tools, method):
    op = tools.with_spectrum(torch.tensor([3.0, 2.0] + [0.0] * 70))
    found = trace(op, method, 30, seed=0)
    assert found.num_products <= 30
    if method != "hutchinson":
        assert found.value == pytest.approx(5, abs=1e-9)
        assert found.stderr < 1e-8
    assert trace(tools.with_spectrum(torch.zeros(50)), method, 12, seed=0).value == 0


@pytest.mark.parametrize("num", [6, 7, 8, 11])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_number_of_products(tools, method, num):
    op = tools.with_spectrum(SPECTRUM, torch.float32)
    found = trace(op, method, num, seed=0)
    assert op.count == found.num_products <= num and found.stderr > 0


def test_seeds(tools):
    op = tools.with_spectrum(SPECTRUM)
    state = torch.get_rng_state()
    assert trace(op, "hutchinson", 10, seed=1).value == trace(op, "hutchinson", 10, seed=1).value
    assert trace(op, "hutchinson", 10, seed=1).value != trace(op, "hutchinson", 10, seed=2).value
    assert trace(op, "hutchinson", 10).value != trace(op, "hutchinson", 10).value
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"method": "exact"}, ValueError, r"method: got 'exact', .* hutch\+\+, hutchinson, xtrace"),
        (
            {"num_products": 5},
            ValueError,
            r"num_products: got 5, expected at least 6 for hutch\+\+",
        ),
        ({"num_products": 10.0}, TypeError, "num_products: got float"),
        ({"seed": 0.5}, TypeError, "seed: got float"),
    ],
)
def test_wrong_arguments(tools, arguments, error, message):
    with pytest.raises(error, match=message):
        trace(tools.with_spectrum(SPECTRUM), **arguments)


def test_products_that_are_not_finite(tools):
    op = tools.Dense(torch.full((9, 9), math.inf, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="not finite"):
        trace(op, "hutchinson", 4)
