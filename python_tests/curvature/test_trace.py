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


@pytest.mark.parametrize("name", ["mixed", "decay", "flat"])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_interval_covers(tools, method, name):
    spectrum = {
        "mixed": SPECTRUM.double(),
        "decay": 0.9 ** torch.arange(300).double(),
        "flat": torch.linspace(0.5, 1.5, 200).double(),
    }[name]
    exact = float(spectrum.sum())
    op = tools.with_spectrum(spectrum)
    found = [trace(op, method, num_products=60, seed=s) for s in range(400)]
    covered = sum(abs(f.value - exact) < 1.96 * f.stderr for f in found) / len(found)
    assert 0.9 <= covered <= 0.985  # 95 % nominal, and binomial noise of 1 %
    values = torch.tensor([f.value for f in found]).double()
    stderrs = torch.tensor([f.stderr for f in found]).double()
    assert float(stderrs.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.12)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_t_interval_of_few_probes_covers(tools, method):
    pytest.importorskip("scipy.stats")
    op = tools.with_spectrum(SPECTRUM)
    found = [trace(op, method, num_products=12, seed=s) for s in range(400)]
    covered = sum(f.interval()[0] < TRACE < f.interval()[1] for f in found) / len(found)
    assert 0.92 <= covered <= 0.985
    low, high = found[0].interval(0.5)
    assert found[0].interval()[0] < low < found[0].value < high < found[0].interval()[1]
    assert found[0].value == pytest.approx(float(found[0].samples.mean()), rel=1e-12)
    with pytest.raises(ValueError, match="level: got 1"):
        found[0].interval(1)


def test_xtrace_against_its_definition(tools):
    """Leave-one-out by a new QR of the other columns, with the dense matrix."""
    op = tools.with_spectrum(SPECTRUM)
    n, m = op.shape[0], 9
    found = trace(op, "xtrace", 2 * m, seed=7)
    g = torch.Generator().manual_seed(7)
    omega = torch.randn(n, m, generator=g, dtype=torch.float64)
    omega *= math.sqrt(n) / omega.norm(dim=0)
    for i in range(m):
        others = [j for j in range(m) if j != i]
        q = torch.linalg.qr(op.matrix @ omega[:, others])[0]
        rest = omega[:, i] - q @ (q.T @ omega[:, i])
        scale = (n - m + 1) / float(rest @ rest)
        exact = float((q.T @ op.matrix @ q).trace() + scale * (rest @ op.matrix @ rest))
        assert float(found.samples[i]) == pytest.approx(exact, rel=1e-9)


def test_covariance_of_xtraces_estimates_is_right_in_the_mean(tools):
    """More probes than are looked at in pairs, too."""
    op = tools.with_spectrum(0.95 ** torch.arange(250).double())
    found = [trace(op, "xtrace", 140, seed=s) for s in range(150)]
    values = torch.tensor([f.value for f in found]).double()
    stderrs = torch.tensor([f.stderr for f in found]).double()
    naive = torch.stack([f.samples.std() / math.sqrt(70) for f in found])
    assert float(stderrs.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.15)
    assert float(naive.square().mean().sqrt()) < 0.85 * float(values.std())


@pytest.mark.parametrize(
    "method, after, made, used",
    [
        ("hutchinson", 3, "hutchinson", 48),
        ("hutch++", 1, "hutchinson", 16),  # in the sketch
        ("hutch++", 3, "hutchinson", 36),  # in the products with its basis
        ("hutch++", 5, "hutch++", 56),  # in the probes of the rest
        ("xtrace", 1, "hutchinson", 16),
        ("xtrace", 3, "hutchinson", 46),
    ],
)
def test_interrupted(tools, method, after, made, used):
    op = tools.with_spectrum(SPECTRUM)
    with pytest.warns(RuntimeWarning, match=f"trace: interrupted after {used} of 60 products"):
        found = trace(tools.interrupting(op, after), method, 60, seed=0)
    assert found.interrupted and not found.converged and found.method == made
    assert found.num_products == used == op.count
    assert abs(found.value - TRACE) < 5 * found.stderr and "interrupted" in repr(found)
    with pytest.raises(KeyboardInterrupt):
        trace(tools.interrupting(op, 0), method, 60, seed=0)
    with pytest.raises(KeyboardInterrupt):  # a part of the diagonal is no estimate
        trace(tools.interrupting(op, 2), "xtrace", 1000)


def test_plot_and_table(tools):
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("pandas")
    op = tools.with_spectrum(SPECTRUM)
    found = trace(op, "xtrace", 30, seed=0)
    ax = found.plot()
    assert sum(p.get_height() for p in ax.patches if hasattr(p, "get_height")) >= 15
    assert f"{found.value:.6g}" in ax.get_legend().get_texts()[0].get_text()
    assert trace(op, "xtrace", 1000).plot(ax) is ax
    plt.close("all")
    row = found.to_dataframe().iloc[0]
    assert row["value"] == found.value and row["stderr"] == found.stderr


def test_progress_line(tools, capsys):
    p = tools.problem()
    Hessian(p.net, p.loss_fn, p.data, progress=True).trace("hutchinson", 20, seed=0)
    assert "trace: 16/20 products" in capsys.readouterr().err


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
