"""Operators over shares of the data in several processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from rtrl_ext.curvature import Hessian, SharpnessTracker, landscape, perturbation_sharpness


def setting():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    return net, torch.randn(4, 5, 2).double(), torch.randn(4, 5, 1).double()


def share(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        net, x, target = setting()
        part = slice(0, 2) if rank == 0 else slice(2, 5)  # unequal shares
        op = Hessian(net, nn.MSELoss(), (x[:, part], target[:, part]))
        data = x[:, part], target[:, part]
        torch.manual_seed(rank)  # the first process's is taken
        traces = [op.trace("hutchinson", 5).value, op.spectral_density(2, 4).quantile(0.5)]
        assert not landscape(net, nn.MSELoss(), data, "random", 2, 0.5).loss.isnan().any()
        rises = perturbation_sharpness(net, nn.MSELoss(), data, num=3).rises.tolist()
        traces = torch.tensor(traces + rises)
        plane = landscape(net, nn.MSELoss(), data, "random", 3, 0.5, seed=0)
        rise = perturbation_sharpness(net, nn.MSELoss(), data, num=3, seed=0)
        # the processes' clocks disagree on what the budget allows
        ticks = (float(n) if rank == 0 else float(n**2) for n in range(1000))
        tracker = SharpnessTracker(net, nn.MSELoss(), data, budget=0.6, clock=lambda: next(ticks))
        for step in range(30):
            tracker.update(step)
        found = op.dense(), op.eigsh(k=2, tol=1e-8).values, plane.loss, rise.rises
        torch.save((*found, traces, [r["step"] for r in tracker.records]), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_shares_add_up(tmp_path):
    net, x, target = setting()
    op = Hessian(net, nn.MSELoss(), (x, target))
    mp.spawn(share, (str(tmp_path),), nprocs=2)
    steps, seeded = [], []
    for rank in range(2):
        dense, values, plane, rises, drawn, measured = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(
            plane, landscape(net, nn.MSELoss(), (x, target), "random", 3, 0.5, seed=0).loss
        )
        torch.testing.assert_close(
            rises, perturbation_sharpness(net, nn.MSELoss(), (x, target), num=3, seed=0).rises
        )
        steps.append(measured)
        seeded.append(drawn)
        torch.testing.assert_close(dense, op.dense(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(values, op.eigsh(k=2, tol=1e-8).values)
    assert torch.equal(*seeded)  # the same probes in all processes
    assert steps[0] == steps[1] and 1 < len(steps[0]) < 30
