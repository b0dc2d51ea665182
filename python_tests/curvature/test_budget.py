"""A stated budget of memory: pieces that fit, the same numbers, and a word where that can't be."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

import rtrl_ext as rx
from rtrl_ext.curvature import EmpiricalFisher, GaussNewton, Hessian, SharpnessTracker
from rtrl_ext.curvature._live import peak_bytes

CLASSES = [Hessian, GaussNewton, EmpiricalFisher]


class Net(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(24, 3, dtype=torch.float64)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


MODELS = {
    "leaky": lambda: Net(rx.LeakyRNN(3, 24, 2, leak=0.4, dtype=torch.float64)),
    "gru": lambda: Net(rx.GRU(3, 24, dtype=torch.float64)),
    "torch": lambda: Net(nn.RNN(3, 24, dtype=torch.float64)),
    "steps": lambda: nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 3)).double(),
}


def setting(name, steps=12, batch=64):
    torch.manual_seed(0)
    net = MODELS[name]()
    x = torch.randn(steps, batch, 3, dtype=torch.float64)
    return net, (x, torch.randn(steps, batch, 3, dtype=torch.float64))


def allocated(call):
    """Peak bytes that torch's CPU allocator gives out during ``call``, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = call()
        del result
    held = peak = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def close(a, b, rel=1e-12):
    return float((a - b).abs().max()) <= rel * (1 + float(b.abs().max()))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", MODELS)
def test_the_peak_stays_within_the_budget(name, cls):
    """With single products, with a solver that keeps passes, and with several directions."""
    net, data = setting(name)
    op = cls(net, nn.MSELoss(), data)
    v = torch.randn(op.shape[0], 4, dtype=torch.float64)
    expected = op @ v
    vectors = 6 * v.nbytes  # the directions by rows, their products by batch, summed and returned
    alone = allocated(lambda: op @ v[:, 0])
    for share in (2, 4):
        memory = alone // share
        assert alone > memory + vectors
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            small = cls(net, nn.MSELoss(), data, memory=memory)
            assert close(small @ v[:, 0], expected[:, 0])
        for made in (one, together, solved):
            assert allocated(partial(made, small, v)) <= memory + vectors
        assert close(together(small, v), expected)
        assert close(solved(small, v), expected[:, :3])


def one(op, v):
    return op @ v[:, 0]


def together(op, v):
    return op @ v


def solved(op, v):
    with op.at_fixed_point():
        return torch.stack([op @ v[:, i] for i in range(3)], 1)


def test_a_budget_that_suffices_leaves_the_batch_whole():
    net, data = setting("leaky")
    calls = []
    op = Hessian(net, nn.MSELoss(), data, memory=2**30)
    v = torch.ones(op.shape[0], dtype=torch.float64)
    op @ v
    net.register_forward_pre_hook(lambda m, a: calls.append(a[0].shape[1]))
    with op.at_fixed_point():
        for _ in range(3):
            op @ v
    assert calls == [64]  # one pass, kept
    torch.testing.assert_close(op @ v, Hessian(net, nn.MSELoss(), data) @ v, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["leaky", "torch"])
def test_live_tensors_against_the_allocator(name):
    net, data = setting(name)
    op = Hessian(net, nn.MSELoss(), data)
    v = torch.ones(op.shape[0], dtype=torch.float64)
    op @ v
    assert peak_bytes(lambda: op @ v) == pytest.approx(allocated(lambda: op @ v), rel=0.12)
    assert peak_bytes(lambda: data[0].view(-1)) == 0
    assert peak_bytes(lambda: (data[0] + 1, data[0] + 2)) == 2 * data[0].nbytes
    assert peak_bytes(lambda: [data[0] + i for i in range(3)].clear()) == 3 * data[0].nbytes
    assert peak_bytes(lambda: sum(float((data[0] + i).sum()) for i in range(3))) < (
        1.1 * data[0].nbytes
    )


def masked(output, target):
    """The mean over valid terms."""
    valid = ~target.isnan()
    return (output - target)[valid].square().mean()


def ragged(steps=12, batch=64):
    net, (x, target) = setting("leaky", steps, batch)
    for b in range(batch):
        target[steps - b % steps :, b] = torch.nan
    return net, (x, target)


def test_a_loss_that_is_no_mean_over_sequences_stays_whole_and_says_so():
    net, data = ragged()
    op = Hessian(net, masked, data)
    v = torch.randn(op.shape[0], dtype=torch.float64)
    memory = allocated(lambda: op @ v) // 4
    with pytest.warns(RuntimeWarning, match="its loss is not the mean .* num_terms=") as seen:
        small = Hessian(net, masked, data, memory=memory)
        assert close(small @ v, op @ v)
        small @ v
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counted = Hessian(
            net, masked, data, memory=memory, num_terms=lambda t: int((~t.isnan()).sum())
        )
        assert close(counted @ v, op @ v)
    assert allocated(lambda: counted @ v) <= memory + 4 * v.nbytes


@pytest.mark.parametrize("ignored", [slice(0, 1), slice(5, 9)])
def test_pieces_without_terms_are_no_pieces_of_a_mean(ignored):
    """Their loss is 0/0, their gradient zero: counted like others they dilute the mean."""
    net, (x, _) = setting("leaky", steps=5, batch=9)
    target = torch.arange(9) % 3
    target[ignored] = -100

    def loss_fn(output, target):
        return nn.functional.cross_entropy(output[-1], target)

    op = Hessian(net, loss_fn, (x, target))
    v = torch.randn(op.shape[0], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="its loss is not the mean"):
        assert close(Hessian(net, loss_fn, (x, target), memory=0) @ v, op @ v)


def test_a_sum_at_a_minimum_is_not_taken_for_a_mean():
    net, (x, _) = setting("leaky")
    with torch.no_grad():
        data = x, net(x)
    loss = nn.MSELoss(reduction="sum")
    op = Hessian(net, loss, data)
    v = torch.randn(op.shape[0], dtype=torch.float64)
    assert loss(net(x), data[1]).item() == 0
    with pytest.warns(RuntimeWarning, match="not the mean"):
        assert close(Hessian(net, loss, data, memory=2**19) @ v, op @ v)


def test_time_is_not_taken_for_sequences():
    """Batch-first data, along whose dimension 1 the time runs."""
    torch.manual_seed(0)
    rnn = rx.GRU(3, 24, batch_first=True, dtype=torch.float64)
    net, x = Net(rnn), torch.randn(16, 40, 3, dtype=torch.float64)
    data = x, torch.randn(16, 40, 3, dtype=torch.float64)
    v = torch.randn(Hessian(net, nn.MSELoss(), data).shape[0], dtype=torch.float64)
    whole = Hessian(net, nn.MSELoss(), data) @ v
    with pytest.warns(RuntimeWarning, match="not the mean"):
        assert close(Hessian(net, nn.MSELoss(), data, memory=2**18) @ v, whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(Hessian(net, nn.MSELoss(), data, batch_dim=0, memory=2**19) @ v, whole)


def test_what_cannot_be_cut_is_told():
    net, (x, target) = setting("leaky", 30, 6)
    packed = pack_padded_sequence(x, torch.tensor([30, 28, 20, 9, 4, 4]))
    wide = pack_padded_sequence(target, torch.tensor([30, 28, 20, 9, 4, 4])).data

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, p):
            return self.inner.out(self.inner.rnn(p)[0].data)

    model = Packed()
    v = torch.randn(Hessian(model, nn.MSELoss(), (packed, wide)).shape[0], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"x is PackedSequence, not a tensor"):
        found = Hessian(model, nn.MSELoss(), (packed, wide), memory=1000) @ v
    assert close(found, Hessian(model, nn.MSELoss(), (packed, wide)) @ v)
    one = x[:, :1], target[:, :1]
    with pytest.warns(RuntimeWarning, match="memory=1000: .* it is one sequence"):
        Hessian(net, nn.MSELoss(), one, memory=1000) @ v
    with pytest.warns(RuntimeWarning, match="even one sequence takes that"):
        found = Hessian(net, nn.MSELoss(), (x, target), memory=1000) @ v
    assert close(found, Hessian(net, nn.MSELoss(), (x, target)) @ v)


def test_batches_of_other_lengths_get_pieces_of_their_own():
    net, _ = setting("leaky")
    sizes, data = [], []
    for steps, batch in ((10, 12), (80, 12), (10, 12)):
        x = torch.randn(steps, batch, 3, dtype=torch.float64)
        data.append((x, torch.randn(steps, batch, 3, dtype=torch.float64)))
    whole = Hessian(net, nn.MSELoss(), data)
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    small = Hessian(net, nn.MSELoss(), data, memory=2**20)
    assert close(small @ v, whole @ v)
    net.register_forward_pre_hook(lambda m, a: sizes.append(tuple(a[0].shape[:2])))
    small @ v
    assert sizes[0] == sizes[-1] == (10, 12)
    cut = [b for t, b in sizes if t == 80]
    assert sum(cut) == 12 and len(cut) > 1 and max(cut) - min(cut) <= 3


def test_tracker_with_a_budget():
    net, data = setting("leaky", 30, 12)
    sizes = []
    tracker = SharpnessTracker(net, nn.MSELoss(), data, memory=2**19, budget=None, rule="eprop")
    net.register_forward_pre_hook(lambda m, a: sizes.append(a[0].shape[1]))
    record = tracker.update(0)
    assert max(sizes) < 12
    whole = SharpnessTracker(net, nn.MSELoss(), data, budget=None, rule="eprop").update(0)
    for name in ("lambda1", "trace", "rho"):
        assert record[name] == pytest.approx(whole[name], rel=1e-6)


def test_no_estimator_forms_the_matrix():
    net = nn.Sequential(nn.Linear(60, 150), nn.Tanh(), nn.Linear(150, 3))
    data = torch.randn(16, 60), torch.randn(16, 3)
    op = Hessian(net, nn.MSELoss(), data, batch_dim=0)
    size = op.shape[0]
    with pytest.raises(
        ValueError, match=r"dense: a 9603 x 9603 matrix of torch.float32 takes 0\.34"
    ):
        op.dense(max_bytes=2**20)
    for call, vectors in (
        (lambda: op @ torch.ones(size), 20),
        (lambda: op.eigsh(2, max_products=8), 120),
        (lambda: op.power_iteration(max_iter=4), 30),
        (lambda: op.trace("hutchinson", 8), 120),
        (lambda: op.trace("xtrace", 8), 120),
        (lambda: op.spectral_density(2, 8), 200),
    ):
        assert allocated(call) <= vectors * size * 4 < size**2 * 4 / 10


def test_nothing_is_changed():
    net, data = setting("leaky")
    op = Hessian(net, nn.MSELoss(), data, memory=2**19)
    before = torch.get_rng_state(), [p.detach().clone() for p in net.parameters()]
    op.eigsh(max_products=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before[1], strict=True))
    assert all(p.grad is None for p in net.parameters())
