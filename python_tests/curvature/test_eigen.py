"""Eigensolvers against dense decompositions."""

import math

import pytest
import torch

from rtrl_ext.curvature import Hessian, eigsh, power_iteration

SPECTRA = {
    "spread": torch.linspace(-1, 2, 120),
    "clustered": torch.cat([10 + 1e-5 * torch.arange(5), torch.linspace(-1, 1, 100)]),
    "degenerate": torch.tensor([3.0] * 4 + [-3.0] * 2 + [1.0] * 30 + [0.0] * 60),
    "negative dominant": torch.cat([torch.tensor([-9.0, -8.5]), torch.linspace(0, 5, 90)]),
    "both signs": torch.cat([torch.tensor([5.0, -5.0]), torch.linspace(-1, 1, 90)]),
    "one outlier": torch.tensor([7.0] + [0.0] * 60),
    "identity": torch.ones(20),
    "zero": torch.zeros(20),
    "large": torch.linspace(0, 1, 80) * 1e12,
    "small": torch.linspace(0, 1, 80) * 1e-12,
    "P = 1": torch.tensor([-2.0]),
    "P = 2": torch.tensor([2.0, -3.0]),
}


@pytest.fixture(autouse=True, params=["blocks", "single vectors"])
def width(request, tools, monkeypatch):
    """How many directions are added at a time: k, or one where company saves nothing."""
    single = request.param == "single vectors"
    monkeypatch.setattr(tools.Dense, "one_by_one", lambda self, k: single, raising=False)
    return request.param


def expected(values, which, k):
    values = values.double()
    order = {
        "LM": values.abs().argsort(descending=True),
        "LA": values.argsort(descending=True),
        "SA": values.argsort(),
    }[which]
    return values[order[:k]]


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_pairs_against_the_spectrum(tools, name, which, dtype, tol):
    op = tools.with_spectrum(SPECTRA[name], dtype)
    size = op.shape[0]
    scale = max(float(SPECTRA[name].abs().max()), 1e-300)
    for k in {1, min(3, size), size - 1 if size <= 20 and size > 1 else 1}:
        op.count = 0
        found = eigsh(op, k, which, tol=tol)
        assert found.converged and found.num_products == op.count
        assert found.values.shape == (k,) and found.vectors.shape == (size, k)
        assert found.values.dtype == found.vectors.dtype == dtype
        wanted = expected(SPECTRA[name], which, k)
        values = found.values.double()
        if which == "LM":  # equal moduli may come in either order
            wanted, values = wanted.abs(), values.abs()
            assert bool((values.diff() <= 1e-6 * scale).all())
        assert float((values - wanted).abs().max()) <= max(tol, 1e-6) * scale
        x = found.vectors.double()
        assert float((x.T @ x - torch.eye(k)).abs().max()) < 1e-6
        residuals = (op.matrix.double() @ x - x * found.values.double()).norm(dim=0)
        assert float((residuals - found.residual_norms).abs().max()) <= 1e-6 * scale
        assert float(found.residual_norms.max()) <= tol * scale * (1 + 1e-6)


def test_multiplicity_up_to_k_is_found(tools):
    op = tools.with_spectrum(SPECTRA["degenerate"])
    values = eigsh(op, 6, "LM", tol=1e-8).values
    assert sorted(values.round(decimals=6).tolist()) == [-3.0, -3.0, 3.0, 3.0, 3.0, 3.0]


def test_single_vectors_need_fewer_products(tools, monkeypatch):
    op = tools.with_spectrum(torch.linspace(0, 1, 600) ** 4)
    found = {}
    for single in (False, True):
        monkeypatch.setattr(tools.Dense, "one_by_one", lambda self, k, single=single: single)
        found[single] = eigsh(op, 5, tol=1e-6)
        assert found[single].converged
    assert found[True].num_products < 0.7 * found[False].num_products
    torch.testing.assert_close(found[True].values, found[False].values, rtol=1e-6, atol=0)


def test_k_up_to_P(tools):
    op = tools.with_spectrum(torch.linspace(-1, 1.5, 12))
    for k in (10, 11, 12):
        found = eigsh(op, k, "SA", tol=1e-10)
        assert found.converged
        torch.testing.assert_close(
            found.values, torch.linspace(-1, 1.5, 12)[:k].double(), rtol=1e-6, atol=1e-7
        )


def test_bound_on_products(tools):
    op = tools.with_spectrum(torch.linspace(0, 1, 400))
    for k, bound in ((1, 2), (1, 15), (3, 20), (3, 6)):
        op.count = 0
        found = eigsh(op, k, "LA", tol=1e-12, max_products=bound)
        assert op.count == found.num_products <= bound
        assert not found.converged
        x = found.vectors  # honest all the same
        residuals = (op.matrix @ x - x * found.values).norm(dim=0)
        torch.testing.assert_close(residuals, found.residual_norms)


def test_more_products_than_vectors_are_kept(tools):
    op = tools.with_spectrum(torch.linspace(0, 1, 600))  # needs several restarts
    found = eigsh(op, 2, "LA", tol=1e-6, max_products=2000)
    assert found.converged and found.num_products > 100
    torch.testing.assert_close(
        found.values, torch.tensor([1.0, 598 / 599]).double(), rtol=0, atol=1e-9
    )


def test_warm_start(tools):
    values = torch.cat([torch.tensor([4.0, 3.5]), torch.linspace(-1, 1, 300)])
    op = tools.with_spectrum(values)
    cold = eigsh(op, 1, tol=1e-3)
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(302, 302, generator=g, dtype=torch.float64)
    moved = tools.Dense(op.matrix + 1e-3 * (noise + noise.T))
    warm = eigsh(moved, 1, tol=1e-3, v0=cold.vectors)
    assert warm.converged
    assert warm.num_products < eigsh(moved, 1, tol=1e-3).num_products
    torch.testing.assert_close(
        warm.values, torch.linalg.eigvalsh(moved.matrix)[-1:], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("index", [0, 150, -2])
def test_eigenvector_of_another_eigenvalue_is_no_trap(tools, index):
    values = torch.cat([torch.linspace(-1, 1, 300), torch.tensor([3.0, 4.0])])
    op = tools.with_spectrum(values)
    v0 = torch.linalg.eigh(op.matrix)[1][:, index]
    found = eigsh(op, 1, v0=v0)
    torch.testing.assert_close(found.values, torch.tensor([4.0]).double(), rtol=1e-4, atol=0)


def test_same_call_same_result_and_v0_shapes(tools):
    op = tools.with_spectrum(SPECTRA["spread"])
    first, second = eigsh(op, 2), eigsh(op, 2)
    assert torch.equal(first.vectors, second.vectors)
    for v0 in (first.vectors[:, 0], first.vectors[:, :1], first.vectors, op.matrix):
        assert eigsh(op, 2, v0=v0).converged
    twice = torch.cat([first.vectors[:, :1]] * 2, 1)
    assert eigsh(op, 2, v0=twice).converged


def test_hessian_of_a_network(tools):
    p = tools.problem(leak=0.4)
    op = Hessian(p.net, p.loss_fn, p.data)
    values = torch.linalg.eigvalsh(op.dense())
    for which in ("LM", "LA", "SA"):
        found = op.eigsh(k=3, which=which, tol=1e-9)
        assert found.converged
        torch.testing.assert_close(found.values, expected(values, which, 3), rtol=1e-8, atol=1e-10)
    power = op.power_iteration(tol=1e-12, max_iter=3000)
    assert power.value == pytest.approx(float(expected(values, "LM", 1)), rel=1e-6)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"k": 0}, ValueError, "k: got 0, expected 1 <= k <= P = 20"),
        ({"k": 21}, ValueError, "k: got 21"),
        ({"k": 1.0}, TypeError, "k: got float"),
        ({"which": "SM"}, ValueError, "which: got 'SM', expected one of LM, LA, SA"),
        ({"tol": -1.0}, ValueError, "tol: got -1.0"),
        ({"tol": 0}, ValueError, "tol: got 0, expected a number > 0"),
        ({"tol": math.nan}, ValueError, "tol: got nan"),
        ({"tol": "small"}, TypeError, "tol: got str"),
        ({"k": 2, "max_products": 3}, ValueError, "max_products: got 3, expected at least 2k = 4"),
        ({"v0": torch.zeros(3)}, ValueError, r"v0: got shape \(3,\), expected \(20,\)"),
        ({"v0": torch.zeros(20)}, ValueError, "v0: expected finite vectors"),
        ({"v0": torch.full((20,), math.nan)}, ValueError, "v0: expected finite vectors"),
        ({"v0": [1.0] * 20}, TypeError, "v0: got list"),
    ],
)
def test_wrong_arguments(tools, arguments, error, message):
    op = tools.with_spectrum(SPECTRA["identity"])
    with pytest.raises(error, match=message):
        eigsh(op, **arguments)


def test_products_that_are_not_finite(tools):
    op = tools.Dense(torch.full((5, 5), math.nan, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="not finite"):
        eigsh(op)
    with pytest.raises(RuntimeError, match="not finite"):
        power_iteration(op)


def test_power_iteration_is_signed(tools):
    op = tools.with_spectrum(SPECTRA["negative dominant"])
    found = power_iteration(op)
    assert found.converged and found.iterations == op.count
    assert found.value == pytest.approx(-9, rel=1e-4)
    assert found.norm == pytest.approx(9, rel=1e-4)
    v = found.vector
    assert float(v.norm()) == pytest.approx(1)
    assert float(v @ op.matrix @ v) == pytest.approx(found.value, rel=1e-12)
    assert float((op.matrix @ v).norm()) == pytest.approx(found.norm, rel=1e-12)


def test_power_iteration_with_both_signs_is_told_by_the_norm(tools):
    found = power_iteration(tools.with_spectrum(SPECTRA["both signs"]), max_iter=50)
    assert found.norm == pytest.approx(5, rel=1e-6)
    assert abs(found.value) < 4.9 and not found.converged


def test_power_iteration_limits(tools):
    op = tools.with_spectrum(SPECTRA["spread"])
    few = power_iteration(op, tol=1e-12, max_iter=7)
    assert few.iterations == op.count == 7 and not few.converged
    zero = power_iteration(tools.with_spectrum(SPECTRA["zero"]))
    assert zero.value == zero.norm == 0 and zero.converged
    start = torch.linalg.eigh(op.matrix)[1][:, -1]
    assert power_iteration(op, v0=start).iterations == 2
    with pytest.raises(ValueError, match="max_iter: got 0"):
        power_iteration(op, max_iter=0)
    with pytest.raises(ValueError, match=r"v0: got shape \(120, 2\)"):
        power_iteration(op, v0=torch.ones(120, 2))


def test_float32_power_iteration_uses_a_float64_quotient(tools):
    op = tools.with_spectrum(torch.cat([torch.tensor([100.0]), torch.linspace(0, 1, 200)]))
    single = tools.Dense(op.matrix.float())
    found = power_iteration(single)
    assert found.converged
    v = found.vector.double()
    exact = float(v @ (single.matrix @ found.vector).double()) / float(v @ v)
    assert found.value == pytest.approx(exact, rel=1e-12)


def test_progress_line(tools, capsys):
    p = tools.problem()
    Hessian(p.net, p.loss_fn, p.data, progress=True).eigsh(k=1)
    assert "eigsh: 1/300 products" in capsys.readouterr().err
    Hessian(p.net, p.loss_fn, p.data).eigsh(k=1)
    assert capsys.readouterr().err == ""


def test_results_print_well(tools):
    op = tools.with_spectrum(SPECTRA["identity"])
    assert repr(eigsh(op)).startswith("EigshResult(values=[1], largest residual")
    assert "converged after" in repr(power_iteration(op))


def test_power_iteration_keeps_its_history(tools):
    op = tools.with_spectrum(SPECTRA["spread"])
    found = power_iteration(op, max_iter=9)
    assert found.history.shape == (9,) and float(found.history[-1]) == found.value
    assert float(found.history[4]) == power_iteration(op, max_iter=5).value


def test_interrupted_eigsh(tools, monkeypatch):
    monkeypatch.delattr(tools.Dense, "one_by_one")
    op = tools.with_spectrum(SPECTRA["spread"])
    whole = eigsh(op, 2, "LA", tol=1e-12, max_products=34)
    with pytest.warns(RuntimeWarning, match="eigsh: interrupted after 32 of at most 300 products"):
        found = eigsh(tools.interrupting(op, 16), 2, "LA", tol=1e-12)
    assert found.interrupted and not found.converged and found.num_products == 32
    assert not whole.converged and not whole.interrupted
    torch.testing.assert_close(found.values, whole.values, rtol=1e-10, atol=0)
    x = found.vectors
    torch.testing.assert_close(x.T @ x, torch.eye(2).double())
    residuals = (op.matrix @ x - x * found.values).norm(dim=0)
    torch.testing.assert_close(residuals, found.residual_norms)
    assert "interrupted" in repr(found)
    with pytest.raises(KeyboardInterrupt):
        eigsh(tools.interrupting(op, 0), 2)


def test_interrupted_in_the_certificate(tools):
    op = tools.with_spectrum(SPECTRA["one outlier"])
    for products in range(1, 6):
        if eigsh(op, 1, tol=1e-9).num_products == products + 1:
            break
    with pytest.warns(RuntimeWarning, match="interrupted"):
        found = eigsh(tools.interrupting(op, products), 1, tol=1e-9)
    assert found.interrupted and float(found.values[0]) == pytest.approx(7)
    assert found.residual_norms.shape == (1,) and float(found.residual_norms) < 1e-8


def test_interrupted_power_iteration(tools):
    op = tools.with_spectrum(SPECTRA["spread"])
    with pytest.warns(RuntimeWarning, match="interrupted after 7 of at most 500 iterations"):
        found = power_iteration(tools.interrupting(op, 7))
    same = power_iteration(op, max_iter=7)
    assert found.interrupted and not found.converged and found.iterations == 7
    assert found.value == same.value and found.norm == same.norm
    assert torch.equal(found.vector, same.vector) and torch.equal(found.history, same.history)
    with pytest.raises(KeyboardInterrupt):
        power_iteration(tools.interrupting(op, 0))


def test_plots_and_tables(tools):
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("pandas")
    op = tools.with_spectrum(SPECTRA["spread"])
    pairs, power = eigsh(op, 3), power_iteration(op, max_iter=12)
    ax = pairs.plot()
    assert ax.lines[0].get_ydata().tolist() == pairs.values.tolist()
    own = plt.figure().subplots()
    assert power.plot(own) is own and own.lines[0].get_ydata().tolist() == power.history.tolist()
    with pytest.raises(ValueError, match="ax: got 2 axes, expected 1"):
        power.plot([own, own])
    plt.close("all")
    assert pairs.to_dataframe()["value"].to_list() == pairs.values.tolist()
    table = power.to_dataframe()
    assert table["iteration"].to_list() == list(range(1, 13))
    assert table["value"].to_list() == power.history.tolist()
