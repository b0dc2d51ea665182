"""Stochastic Lanczos quadrature against dense decompositions."""

import math

import pytest
import torch

from rtrl_ext.curvature import GaussNewton, Hessian, spectral, spectral_density

SPECTRUM = torch.cat([torch.linspace(-1, 2, 150), torch.tensor([9.0, 7.5, -4.0])]).double()


def smoothed(values, grid, sigma):
    """The mean over eigenvalues of Gaussian densities, by torch.distributions."""
    return torch.stack(
        [torch.distributions.Normal(v, sigma).log_prob(grid).exp() for v in values.double()]
    ).mean(0)


def probes(size, count, seed):
    """The documented probes: random unit vectors from the seed's own generator."""
    g = torch.Generator().manual_seed(seed)
    v = torch.stack([torch.randn(size, generator=g, dtype=torch.float64) for _ in range(count)])
    return v / v.norm(dim=1, keepdim=True)


def test_quadrature_is_exact_for_polynomials(tools):
    """A Gauss quadrature with m nodes integrates polynomials up to degree 2m - 1."""
    op = tools.with_spectrum(torch.linspace(-1, 1.2, 60))
    found = spectral_density(op, 3, 5, seed=4)
    assert found.nodes.shape == found.weights.shape == (3, 5)
    for i, v in enumerate(probes(60, 3, 4)):
        power = v
        for degree in range(10):
            exact = float(v @ power)
            quadrature = float((found.weights[i] * found.nodes[i] ** degree).sum())
            assert quadrature == pytest.approx(exact, rel=1e-11, abs=1e-13)
            power = op.matrix @ power
        assert float((found.weights[i] * found.nodes[i] ** 10).sum()) != pytest.approx(
            float(v @ power), rel=1e-6
        )


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_all_steps_give_each_probe_its_whole_measure(tools, dtype, tol):
    """After P steps the nodes are the eigenvalues, the weights the probe's squared components."""
    values = torch.linspace(-1, 3, 40)
    op = tools.with_spectrum(values, dtype)
    found = spectral_density(op, 2, 1000, seed=0)
    assert found.num_products == op.count == 80  # no more than P steps each
    exact, vectors = torch.linalg.eigh(op.matrix.double())
    for i, v in enumerate(probes(40, 2, 0)):
        assert float((found.nodes[i] - exact).abs().max()) < tol
        assert float((found.weights[i] - (vectors.T @ v) ** 2).abs().max()) < 10 * tol


def test_orthogonal_where_plain_lanczos_makes_ghosts(tools):
    """Without reorthogonalization converged outliers come again and again."""
    op = tools.with_spectrum(torch.cat([torch.linspace(0, 1, 200), torch.tensor([1e4])]))
    found = spectral_density(op, 1, 120, seed=0)
    assert int((found.nodes > 100).sum()) == 1


def test_density_covers_the_smoothed_spectrum(tools):
    op = tools.with_spectrum(SPECTRUM)
    found = spectral_density(op, 200, 90, seed=1, bandwidth=0.2)
    exact = smoothed(SPECTRUM, found.grid, 0.2)
    error = (found.density - exact).abs()
    assert float((error / (found.std / math.sqrt(200) + 1e-6)).max()) < 5
    few = spectral_density(op, 10, 90, seed=1, bandwidth=0.2)
    inside = (few.density - exact).abs() < 2.262 * few.std / math.sqrt(10) + 1e-9  # t, 9 degrees
    assert float(inside.double().mean()) > 0.8
    for f in (found, few):
        assert float(torch.trapezoid(f.density, f.grid)) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(f.weights.sum(1), torch.ones(len(f.nodes)).double())


def test_moments_and_quantiles(tools):
    op = tools.with_spectrum(SPECTRUM)
    found = spectral_density(op, 50, 60, seed=0)
    for order in (1, 2, 3):
        value, stderr = found.moment(order)
        assert abs(value - float((SPECTRUM**order).mean())) < 4 * stderr
    assert abs(found.quantile(0.5) - float(SPECTRUM.median())) < 0.1
    assert found.quantile(0) == pytest.approx(-4, abs=1e-6)
    assert found.quantile(1) == pytest.approx(9, abs=1e-6)
    with pytest.raises(ValueError, match="q: got 1"):
        found.quantile(1.5)
    with pytest.raises(ValueError, match="order: got 0"):
        found.moment(0)


@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_of_a_network(tools, cls):
    p = tools.problem(leak=0.4)
    op = cls(p.net, p.loss_fn, p.data)
    values = torch.linalg.eigvalsh(op.dense())
    found = op.spectral_density(num_probes=30, lanczos_steps=40, seed=0)
    exact = smoothed(values, found.grid, found.bandwidth)
    outside = (found.density - exact).abs() > 5 * found.std / math.sqrt(30) + 1e-3 * exact.max()
    assert float(outside.double().mean()) < 0.02
    assert float(found.nodes.max()) == pytest.approx(float(values.max()), rel=1e-8)
    assert found.converged and found.num_products <= 30 * min(40, op.shape[0])


@pytest.mark.parametrize(
    "values", [torch.ones(20), torch.zeros(20), torch.tensor([3.0] * 10 + [-1.0] * 10), [-2.0]]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_few_distinct_eigenvalues(tools, values, dtype):
    """Lanczos ends early on an invariant subspace."""
    values = torch.as_tensor(values)
    op = tools.with_spectrum(values, dtype)
    found = spectral_density(op, 4, 20, seed=0)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-4)
    for node, weight in zip(found.nodes.reshape(-1), found.weights.reshape(-1), strict=True):
        assert weight < 1e-8 or float((values - node).abs().min()) < 1e-5
    if dtype == torch.float64:
        assert found.num_products <= 4 * (1 + len(values.unique()))


def test_groups_of_probes_give_the_same(tools, monkeypatch):
    op = tools.with_spectrum(SPECTRUM)
    together = spectral_density(op, 5, 12, seed=3)
    monkeypatch.setattr(spectral, "MEMORY", 2 * 8 * 12 * len(SPECTRUM))
    widths = []
    product = type(op).__matmul__

    def counted(self, v):
        widths.append(v.shape[1])
        return product(self, v)

    monkeypatch.setattr(type(op), "__matmul__", counted)
    apart = spectral_density(op, 5, 12, seed=3)
    assert widths == [2] * 24 + [1] * 12
    torch.testing.assert_close(apart.density, together.density, rtol=1e-10, atol=1e-12)


def test_seeds(tools):
    op = tools.with_spectrum(SPECTRUM)
    state = torch.get_rng_state()
    first, again = (spectral_density(op, 2, 10, seed=1) for _ in range(2))
    assert torch.equal(first.density, again.density)
    assert not torch.equal(spectral_density(op, 2, 10).nodes, spectral_density(op, 2, 10).nodes)
    assert torch.equal(torch.get_rng_state(), state)


def test_interrupted(tools, monkeypatch):
    op = tools.with_spectrum(SPECTRUM)
    whole = spectral_density(op, 3, 6, seed=0)
    stop = tools.interrupting(op, after=6)
    with pytest.warns(RuntimeWarning, match="spectral_density: interrupted after 18 of at most 60"):
        found = spectral_density(stop, 3, 20, seed=0)
    assert found.interrupted and not found.converged and found.num_products == 18
    torch.testing.assert_close(found.nodes, whole.nodes)
    assert "interrupted" in repr(found)
    with pytest.raises(KeyboardInterrupt):
        spectral_density(tools.interrupting(op, after=0), 3, 20, seed=0)
    monkeypatch.setattr(spectral, "MEMORY", 1)  # one probe at a time
    with pytest.warns(RuntimeWarning, match="interrupted after 8"):
        found = spectral_density(tools.interrupting(op, after=8), 3, 6, seed=0)
    assert found.nodes.shape == (2, 6) and int((found.weights[1] > 0).sum()) == 2
    torch.testing.assert_close(found.nodes[0], whole.nodes[0])


def test_plot_and_table(tools):
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("pandas")
    found = spectral_density(tools.with_spectrum(SPECTRUM), 4, 20, seed=0)
    ax = found.plot()
    assert ax.get_yscale() == "log" and ax.get_xlabel() == "eigenvalue"
    assert ax.lines[0].get_xdata().tolist() == found.grid.tolist()
    linear = plt.figure().subplots()
    assert found.plot(ax=linear, log=False) is linear and linear.get_yscale() == "linear"
    spectral_density(tools.with_spectrum(SPECTRUM), 1, 20, seed=0).plot(linear)
    plt.close("all")
    table = found.to_dataframe()
    assert list(table) == ["eigenvalue", "density", "std"]
    assert table["density"].to_list() == found.density.tolist()


def test_progress_line(tools, capsys):
    p = tools.problem()
    Hessian(p.net, p.loss_fn, p.data, progress=True).spectral_density(2, 5)
    assert "spectral density: 2/10 products" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"num_probes": 0}, ValueError, "num_probes: got 0, expected at least 1"),
        ({"num_probes": 2.0}, TypeError, "num_probes: got float"),
        ({"lanczos_steps": 1}, ValueError, "lanczos_steps: got 1, expected at least 2"),
        ({"lanczos_steps": "5"}, TypeError, "lanczos_steps: got str"),
        ({"seed": 0.5}, TypeError, "seed: got float"),
        ({"bandwidth": 0}, ValueError, "bandwidth: got 0"),
        ({"bandwidth": "a"}, TypeError, "bandwidth: got str"),
        ({"bandwidth": 1e-9}, ValueError, r"bandwidth: got 1e-09, which takes \d+ points"),
    ],
)
def test_wrong_arguments(tools, arguments, error, message):
    with pytest.raises(error, match=message):
        spectral_density(tools.with_spectrum(SPECTRUM), **({"lanczos_steps": 5} | arguments))


def test_products_that_are_not_finite(tools):
    op = tools.Dense(torch.full((9, 9), math.inf, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="not finite"):
        spectral_density(op, 2, 4)
