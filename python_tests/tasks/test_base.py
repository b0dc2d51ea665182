import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rtrl_ext import tasks
from rtrl_ext.tasks import Task


def make(count: int = 10) -> Task:
    x = torch.arange(count * 6.0).reshape(count, 3, 2)
    return Task(x, torch.arange(count) % 4, output_size=4, loss_fn=F.cross_entropy)


def test_items_and_time_major_batches() -> None:
    task = make()
    x, target = task[3]
    assert x.shape == (3, 2) and int(target) == 3
    batches = list(task.loader(4))
    assert [b[0].shape for b in batches] == [(3, 4, 2), (3, 4, 2), (3, 2, 2)]
    assert torch.equal(batches[1][0][:, 2], task[6][0])
    assert torch.equal(torch.cat([t for _, t in batches]), task.target)
    assert len(task.loader(4)) == 3 and len(task.loader(4, drop_last=True)) == 2


def test_collate_fn_serves_torchs_own_loader() -> None:
    task = make()
    ours = list(task.loader(4))
    theirs = list(DataLoader(task, batch_size=4, collate_fn=task.collate_fn))
    for (x, t), (x2, t2) in zip(ours, theirs, strict=True):
        assert torch.equal(x, x2) and torch.equal(t, t2)


def test_shuffled_order_is_decided_by_the_seed_and_new_each_epoch() -> None:
    task = make(50)
    first, same, other = (task.loader(50, shuffle=True, seed=s) for s in (1, 1, 2))
    epochs = [next(iter(first))[1] for _ in range(2)]
    again = [next(iter(same))[1] for _ in range(2)]
    assert torch.equal(epochs[0], again[0]) and torch.equal(epochs[1], again[1])
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], next(iter(other))[1])
    assert torch.equal(epochs[0].sort().values, task.target.sort().values)


def test_forever_goes_on_past_an_epoch() -> None:
    stream = make(4).loader(4, shuffle=True, seed=0).forever()
    assert len([next(stream) for _ in range(5)]) == 5


def test_refusals_name_the_argument() -> None:
    with pytest.raises(ValueError, match="batch_size: got 0"):
        make().loader(0)
    with pytest.raises(TypeError, match="batch_size: got str"):
        make().loader("4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most the 10 sequences"):
        make().loader(11, drop_last=True)
    with pytest.raises(
        ValueError, match=r"'mnist', expected one of seqmnist.*did you mean 'seqmnist'"
    ):
        tasks.get("mnist")
    with pytest.raises(ValueError, match=r"x: got shape \(3, 2\)"):
        Task(torch.zeros(3, 2), torch.zeros(3), output_size=1, loss_fn=F.mse_loss)
