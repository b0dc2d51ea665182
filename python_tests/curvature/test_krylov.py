"""The search space of eigsh, and what its single-vector mode may call converged."""

import pytest
import torch

from rtrl_ext.curvature import eigsh
from rtrl_ext.curvature._krylov import Space, orthonormal_part, wanted


def krylov_space(op, steps):
    g = torch.Generator().manual_seed(3)
    start = torch.randn(op.shape[0], 2, generator=g, dtype=op.dtype)
    start = orthonormal_part(start / start.norm(dim=0))
    space = Space(start, op @ start, 2 * steps + 2)
    for _ in range(steps):
        values, coeff = space.ritz()
        pick = wanted(values, "LM")[:2]
        residual = space.residuals(values[pick], coeff[:, pick])
        new = orthonormal_part(residual / residual.norm(dim=0), space.basis)
        space.append(new, op @ new)
    return space


@pytest.mark.parametrize("dtype, floor", [(torch.float32, 1e-5), (torch.float64, 1e-7)])
def test_residual_norms_are_those_of_the_pairs(tools, dtype, floor):
    """Down to small ones, in float32 too, where products are symmetric to rounding only."""
    values = torch.cat([torch.tensor([-7.5]), torch.linspace(-5, 6, 60), torch.zeros(90)])
    op = tools.with_spectrum(values, dtype)
    small = 0
    for steps in range(4, 16):
        space = krylov_space(op, steps)
        values, coeff = space.ritz()
        pick = wanted(values, "LM")[:4]
        values, coeff = values[pick], coeff[:, pick]
        x, image = space.basis.double() @ coeff, space.image.double() @ coeff
        expected = (image - x * values).norm(dim=0)
        found = space.residual_norms(values, coeff, 0.0)
        scale = float(values.abs().max())
        assert float((found - expected).abs().max()) < floor * scale
        small += int((expected < 1e-2 * scale).sum())
    assert small > 10  # it was about small residuals


def test_default_tolerance_is_reached_in_float32(tools):
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.zeros(150)
        values[:35] = 3 * torch.randn(35, generator=g)
        found = eigsh(tools.with_spectrum(values, torch.float32), 2)
        assert found.converged, found


def test_copies_that_were_not_looked_for_are_not_converged(tools, monkeypatch):
    """One vector's Krylov space has one copy of an eigenvalue; the bound leaves no product more."""
    monkeypatch.setattr(tools.Dense, "one_by_one", lambda self, k: True, raising=False)
    op = tools.with_spectrum(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    found = eigsh(op, 2, "LA", max_products=4)
    assert float(found.residual_norms.max()) < 1e-9
    assert found.num_products <= 4 and not found.converged
    found = eigsh(op, 2, "LA", max_products=40)
    assert found.converged
    torch.testing.assert_close(found.values, torch.ones(2).double())


@pytest.mark.parametrize("part", [0, 1])
def test_interrupted_shrinking_keeps_pairs(tools, part):
    op = tools.with_spectrum(torch.linspace(-1, 2, 40))
    space = krylov_space(op, 5)

    class Cut:
        """The stored rows; Ctrl-C comes before the first write to basis (0) or image (1)."""

        rows, done = space._rows, False

        def __getitem__(self, index):
            return self.rows[index]

        def __setitem__(self, index, value):
            if index[0] == part and not self.done:
                self.done = True
                raise KeyboardInterrupt
            self.rows[index] = value

    space._rows = Cut()
    _, coeff = space.ritz()
    with pytest.raises(KeyboardInterrupt):
        space.shrink(coeff[:, :3])
    assert len(space) == 3
    torch.testing.assert_close(space.image, op @ space.basis)
