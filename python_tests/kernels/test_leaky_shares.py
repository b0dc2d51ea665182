"""The layer ops split the batch over threads and time into chunks: the split must not show."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rtrl_ext import LeakyRNN, _kernels, rules

pytestmark = pytest.mark.skipif(not _kernels.HAVE_COMPILED, reason="needs the compiled kernels")

F64 = torch.float64


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gradients(
    rnn: LeakyRNN, x: Tensor, h0: Tensor, drive: Tensor | None, lengths: Tensor | None
) -> list[Tensor]:
    x, h0 = (t.clone().requires_grad_() for t in (x, h0))
    extra = [] if drive is None else [drive.clone().requires_grad_()]
    y, h_n = rnn(x, h0, drive=extra[0] if extra else None, lengths=lengths)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    loss = (y * weight).sum() + h_n.square().sum()
    leaves = [*rnn.parameters(), x, h0, *extra]
    return [y.detach(), h_n.detach(), *torch.autograd.grad(loss, leaves)]


# batches below, at and above the number of threads, of one and of several tiles; sizes with tails
@pytest.mark.parametrize(
    ("T", "B", "m", "n"),
    [
        (40, 1, 5, 7),
        (9, 2, 16, 33),
        (3, 3, 1, 17),
        (70, 5, 3, 20),
        (5, 130, 19, 40),
        (300, 4, 64, 64),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rule", ["bptt", "eprop"])
def test_threads_and_chunks_do_not_show(
    T: int, B: int, m: int, n: int, count: int, rule: str
) -> None:
    torch.manual_seed(0)
    rnn = LeakyRNN(m, n, leak=0.6, learn_leak=B % 2 == 0, rule=rule, dtype=F64)
    x, h0 = torch.randn(T, B, m, dtype=F64), torch.randn(1, B, n, dtype=F64)
    drive = torch.randn(T, B, n, dtype=F64) if B == 5 else None
    lengths = torch.arange(B) % T + 1 if B in (3, 130) else None
    with _kernels.use_reference():
        want = gradients(rnn, x, h0, drive, lengths)
    with threads(count):
        got = gradients(rnn, x, h0, drive, lengths)
        again = gradients(rnn, x, h0, drive, lengths)
    for a, b, c in zip(got, again, want, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-10)


def test_outputs_do_not_depend_on_threads() -> None:
    torch.manual_seed(1)
    rnn = LeakyRNN(13, 70, leak=0.3, rule=rules.EProp())
    x = torch.randn(20, 37, 13)
    results = []
    for count in (1, 2, 3, 4):
        with threads(count):
            results.append(rnn(x)[0])
    assert all(torch.equal(results[0], r) for r in results[1:])
