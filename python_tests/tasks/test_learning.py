"""The tasks can be learned by a recurrent network, and not without memory."""

import math

import pytest
import torch
from torch import Tensor, nn

import rtrl_ext as rx
from rtrl_ext import tasks
from rtrl_ext.tasks import Task

#: tasks with coarser steps, trained in seconds
QUICK = {
    "delayed-match": "delayed-match:num_train=1024",
    "pattern": "pattern",
    "delayed-xor": "delayed-xor:dt=10",
    "evidence": "evidence:dt=10:num_train=1024",
}


class Net(nn.Module):
    def __init__(self, rnn: nn.Module, outputs: int) -> None:
        super().__init__()
        self.rnn, self.readout = rnn, nn.Linear(rnn.hidden_size, outputs)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0])


def leaky(task: Task, hidden: int, leak: float, nonlinearity: str) -> Net:
    rnn = rx.LeakyRNN(task.input_size, hidden, leak=leak, nonlinearity=nonlinearity)
    with torch.no_grad():
        rnn.weight_ih_l0.normal_(0.0, math.sqrt(2 / task.input_size))
        rnn.weight_hh_l0.normal_(0.0, math.sqrt(2 / hidden))
    return Net(rnn, task.output_size)


def trained(model: nn.Module, task: Task, updates: int, lr: float) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    batches = task.loader(32, shuffle=True, seed=0).forever()
    for _, (x, target) in zip(range(updates), batches, strict=False):
        optimizer.zero_grad()
        task.loss_fn(model(x), target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def score(model: nn.Module, task: Task) -> float:
    with torch.no_grad():
        x, target = task.batch(slice(None))
        return task.metric(model(x), target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hidden", "leak", "nonlinearity", "updates", "lr"),
    [
        ("delayed-match", 64, 0.2, "relu", 300, 3e-3),
        ("pattern", 100, 0.2, "tanh", 300, 3e-3),
        ("delayed-xor", 64, 0.1, "relu", 150, 3e-3),
        ("evidence", 64, 0.01, "tanh", 60, 3e-3),
    ],
)
def test_a_recurrent_network_learns_it(
    name: str, hidden: int, leak: float, nonlinearity: str, updates: int, lr: float
) -> None:
    torch.manual_seed(0)
    train = tasks.make(QUICK[name])
    model = trained(leaky(train, hidden, leak, nonlinearity), train, updates, lr)
    found = score(model, tasks.make(QUICK[name], "test"))
    if train.metric_name == "error":
        assert found < 0.2
    else:
        assert found > 0.85


@pytest.mark.slow
def test_a_gru_learns_delayed_match() -> None:
    torch.manual_seed(0)
    text = "delayed-match:dt=100:num_train=1024"
    train = tasks.make(text)
    model = trained(Net(rx.GRU(train.input_size, 64), 2), train, 500, 5e-3)
    assert score(model, tasks.make(text, "test")) > 0.85


@pytest.mark.parametrize("name", list(QUICK))
def test_the_input_of_the_moment_does_not_tell_the_target(name: str) -> None:
    """A network without recurrence, which is trained long on many trials, stays at chance."""
    torch.manual_seed(0)
    more = {} if name == "pattern" else {"num_train": 1000, "num_test": 1000}
    text = name if name in ("delayed-match", "pattern") else f"{name}:dt=10"
    train, test = (tasks.make(text, split, **more) for split in ("train", "test"))
    last = (lambda x: x) if name == "pattern" else (lambda x: x[-1:])
    model = nn.Sequential(
        nn.Linear(train.input_size, 32), nn.Tanh(), nn.Linear(32, train.output_size)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(10):
        for x, target in train.loader(50, shuffle=True, seed=0):
            optimizer.zero_grad()
            train.loss_fn(model(last(x)), target).backward()
            optimizer.step()
    with torch.no_grad():
        x, target = test.batch(slice(None))
        found = test.metric(model(last(x)), target)
    if name == "pattern":
        assert found > 0.95
    else:
        assert abs(found - 0.5) < 0.06  # four standard deviations


def test_one_cue_alone_does_not_tell_xor() -> None:
    task = tasks.make("delayed-xor:dt=10", "test")
    for part in (slice(0, 10), slice(80, 90)):
        channel = task.x[:, part].sum(1).argmax(1)
        for k in (0, 1):
            assert float(task.target[channel == k].double().mean()) == 0.5
