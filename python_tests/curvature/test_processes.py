"""Recurrent models over shares of the data in two processes: operators, diagnostics, training."""

import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rtrl_ext as rx
from rtrl_ext import _inspection, diagnostics
from rtrl_ext.curvature import EmpiricalFisher, GaussNewton, Hessian

pytestmark = pytest.mark.slow

CELLS = {
    "linear": None,
    "leaky": lambda: rx.LeakyRNN(2, 3, leak=0.4, rule="eprop"),
    "gru": lambda: rx.GRU(2, 3, rule="snap1"),
    "lstm": lambda: rx.LSTM(2, 3),
}
OPERATORS = (Hessian, GaussNewton, EmpiricalFisher)
WORLD, BATCH = 2, 6
PIECES = {"linear": 4000, "gru": 12_000}  # bytes for some of the sequences


class Net(nn.Module):
    def __init__(self, rnn, feedback="symmetric"):
        super().__init__()
        self.rnn = rnn
        self.out = rx.FeedbackLinear(3, 2, feedback=feedback, seed=1)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def setting(cell):
    torch.manual_seed(0)
    if cell == "linear":
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    else:
        net = Net(CELLS[cell]()).double()
    return net, torch.randn(5, BATCH, 2).double(), torch.randn(5, BATCH, 2).double()


def measures(net, cell, data):
    """Everything that is to be the same in one process with all the data."""
    found = {}
    for cls in OPERATORS:
        op = cls(net, nn.MSELoss(), data)
        found[cls.__name__] = op.dense()
        found[f"{cls.__name__} one"] = op @ torch.ones(op.shape[0], dtype=torch.float64)
        if cell in PIECES:
            small = cls(net, nn.MSELoss(), data, memory=PIECES[cell])
            one = torch.ones(op.shape[0], dtype=torch.float64)
            found[f"{cls.__name__} in pieces"] = small @ torch.stack([one, one.cumsum(0)], 1)
            found[f"{cls.__name__}, eigenvalues in pieces"] = small.eigsh(k=2, tol=1e-8).values
    op = Hessian(net, nn.MSELoss(), data)
    found["eigenvalues"] = op.eigsh(k=2, tol=1e-8).values
    found["power"] = torch.tensor(op.power_iteration(tol=1e-8).value)
    found["trace"] = torch.tensor(op.trace("hutchinson", 10, seed=3).value)
    if cell != "linear":
        s = diagnostics.stability(net, nn.MSELoss(), data, 0.3)
        found["stability"] = torch.tensor([s.leading_eigenvalue, s.rho, s.multiplier])
        a = diagnostics.alignment(net, nn.MSELoss(), data, rules=["bptt", "immediate"])
        found["alignment"] = torch.tensor([[m.rho, m.cosine, m.norm_ratio] for m in a.values()])
    return found


TRAINED = {
    "leaky": lambda: Net(rx.LeakyRNN(2, 3, 2, leak=0.4, rule="eprop")),
    "leaky, leak trained": lambda: Net(rx.LeakyRNN(2, 3, leak=0.4, learn_leak=True, rule="snap1")),
    "feedback": lambda: Net(rx.LeakyRNN(2, 3, leak=0.4, rule="eprop"), "random"),
    "gru": lambda: Net(rx.GRU(2, 3)),
    "lstm": lambda: Net(rx.LSTM(2, 3, rule="eprop")),
    "rtrl": lambda: Net(rx.GRU(2, 3, rule="rtrl")),
    "alif": lambda: Net(rx.ALIF(2, 3, rule="eprop")),
}


def trained(name, x, target, wrap=lambda net: net):
    """The parameters after some steps of SGD with momentum."""
    torch.manual_seed(1)
    net = TRAINED[name]().double()
    model = wrap(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        nn.MSELoss()(model(x), target).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def share(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    wait = timedelta(seconds=120)  # for products that one process makes alone
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=wait)
    # of one process's share alone, directions would go one by one
    _inspection.ROWS, _inspection.BYTES = 3, 1
    try:
        part = slice(0, 2) if rank == 0 else slice(2, BATCH)  # unequal shares
        found = {}
        for cell in CELLS:
            net, x, target = setting(cell)
            if cell == "gru":
                net = DistributedDataParallel(net)
            found[cell] = measures(net, cell, (x[:, part], target[:, part]))
        half = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
        for name in TRAINED:
            _, x, target = setting("linear")
            x, target = 10 * x[:, half], target[:, half]
            found[f"trained {name}"] = trained(name, x, target, DistributedDataParallel)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    mp.spawn(share, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def close(a, b, rel=1e-11):
    assert float((a - b).abs().max()) <= rel * (1e-3 + float(b.abs().max()))


@pytest.mark.parametrize("cell", CELLS)
def test_shares_add_up(found, cell):
    net, x, target = setting(cell)
    expected = measures(net, cell, (x, target))
    half = Hessian(net, nn.MSELoss(), (x[:, :2], target[:, :2])).dense()
    assert float((half - expected["Hessian"]).norm()) > 1e-2  # a share alone is another matrix
    for one in found:
        assert list(one[cell]) == list(expected)
        for name, value in expected.items():
            iterative = "eigenvalues" in name or name in ("power", "stability")
            close(one[cell][name], value, 1e-6 if iterative else 1e-11)


@pytest.mark.parametrize("name", TRAINED)
def test_data_parallel_training_is_training_on_the_whole_batch(found, name):
    _, x, target = setting("linear")
    expected = trained(name, 10 * x, target)
    torch.manual_seed(1)
    start = copy.deepcopy(dict(TRAINED[name]().double().named_parameters()))
    for block in ("rnn.weight_hh_l0", "out.weight"):
        assert float((expected[block] - start[block].detach()).abs().max()) > 1e-3
    for one in found:
        for parameter, value in expected.items():
            close(one[f"trained {name}"][parameter], value)
