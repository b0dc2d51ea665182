"""Operators over shares of the data in several processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from rtrl_ext.curvature import Hessian


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
        torch.save((op.dense(), op.eigsh(k=2, tol=1e-8).values), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_shares_add_up(tmp_path):
    net, x, target = setting()
    op = Hessian(net, nn.MSELoss(), (x, target))
    mp.spawn(share, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        dense, values = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(dense, op.dense(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(values, op.eigsh(k=2, tol=1e-8).values)
