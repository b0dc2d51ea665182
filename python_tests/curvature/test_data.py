"""Batches: splitting, weights, iterables, and what is refused."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rtrl_ext as rx
from rtrl_ext.curvature import EmpiricalFisher, GaussNewton, Hessian

OPERATORS = [Hessian, GaussNewton, EmpiricalFisher]


def close(actual, expected, tol=1e-10):
    return float((actual - expected).abs().max()) <= tol * float(expected.abs().max())


@pytest.mark.parametrize("cls", OPERATORS)
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_ragged_pieces_add_up(tools, cls, batch_size):
    p = tools.problem(steps=4, batch=7)
    whole = cls(p.net, p.loss_fn, p.data)
    v = torch.randn(whole.shape[0], 2, dtype=torch.float64)
    pieces = cls(p.net, p.loss_fn, p.data, batch_size=batch_size)
    assert close(pieces @ v, whole @ v)
    if batch_size < 7:
        batches = [(p.x[:, :2], p.target[:, :2]), (p.x[:, 2:], p.target[:, 2:])]
        assert close(cls(p.net, p.loss_fn, batches) @ v, whole @ v)
        assert close(cls(p.net, p.loss_fn, batches, batch_size=batch_size) @ v, whole @ v)


def test_weights_are_numbers_of_valid_terms(tools):
    p = tools.problem(steps=6, batch=5, loss="cross_entropy")
    target = p.target.clone()
    target[3:, 0] = -100
    target[1:, 3] = -100
    target[:, 4] = -100

    def loss_fn(output, t):
        return nn.functional.cross_entropy(output.flatten(0, 1), t.flatten())

    expected = tools.dense_hessian(p.plain, loss_fn, p.x, target)

    def valid(t):
        return (t != -100).sum()

    right = Hessian(p.net, loss_fn, (p.x, target), batch_size=1, num_terms=valid)
    assert close(right.dense(), expected)  # the last sequence has no valid term and no weight
    assert not close(
        Hessian(p.net, loss_fn, (p.x[:, :4], target[:, :4]), batch_size=1).dense(), expected, 1e-2
    )


def test_no_valid_term_is_refused(tools):
    p = tools.problem()
    op = Hessian(p.net, p.loss_fn, p.data, num_terms=lambda t: 0)
    with pytest.raises(ValueError, match="no valid term"):
        op @ torch.zeros(op.shape[0], dtype=torch.float64)
    op = Hessian(p.net, p.loss_fn, p.data, num_terms=lambda t: float("nan"))
    with pytest.raises(ValueError, match="num_terms: returned nan"):
        op @ torch.zeros(op.shape[0], dtype=torch.float64)


def test_one_shot_iterator_is_kept(tools):
    p = tools.problem(batch=4)
    op = Hessian(p.net, p.loss_fn, ((p.x[:, [b]], p.target[:, [b]]) for b in range(4)))
    v = torch.randn(op.shape[0], dtype=torch.float64)
    expected = Hessian(p.net, p.loss_fn, p.data) @ v
    assert close(op @ v, expected)
    assert close(op @ v, expected)


def test_shuffling_loader_is_the_same_in_every_pass(tools):
    p = tools.problem(batch=6)
    dataset = TensorDataset(p.x.transpose(0, 1), p.target.transpose(0, 1))

    def collate(items):
        return tuple(torch.stack(part, 1) for part in zip(*items, strict=True))

    for generator in (None, torch.Generator().manual_seed(3)):
        loader = DataLoader(
            dataset, 2, shuffle=True, drop_last=True, collate_fn=collate, generator=generator
        )
        loader.dataset.tensors = tuple(t[:5] for t in dataset.tensors)  # one is dropped, at random
        op = Hessian(p.net, p.loss_fn, loader)
        v = torch.randn(op.shape[0], dtype=torch.float64)
        state = torch.get_rng_state()
        assert torch.equal(op @ v, op @ v)
        assert torch.equal(state, torch.get_rng_state())


def test_target_along_dimension_0(tools):
    torch.manual_seed(0)

    class LastStep(tools.Net):
        def forward(self, x):
            return super().forward(x)[-1]

    net = LastStep()
    x, target = torch.randn(4, 5, 2, dtype=torch.float64), torch.randint(0, 3, (5,))
    data = x, target
    whole = Hessian(net, nn.CrossEntropyLoss(), data)
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    assert close(Hessian(net, nn.CrossEntropyLoss(), data, batch_size=2) @ v, whole @ v)
    fisher = EmpiricalFisher(net, nn.CrossEntropyLoss(), data)
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(
                    nn.functional.cross_entropy(net(x[:, [b]]), target[[b]]), net.parameters()
                )
            ]
        )
        for b in range(5)
    ]
    g = torch.stack(rows)
    assert close(fisher @ v, g.T @ (g @ v) / 5)


class LastStep(nn.Module):
    """The readout of the last step, (B, o), with the dimensions in any order."""

    def __init__(self, net, permute=(0, 1), also=False):
        super().__init__()
        self.net, self.permute, self.also = net, permute, also
        self.calls = []

    def forward(self, x):
        self.calls.append(x.shape[1])
        y = self.net(x)
        last = y[-1].permute(self.permute)
        return (y, last) if self.also else last


def own_gradients(model, loss_of, x, target):
    """(B, P), from one call of the model for each sequence."""
    rows = []
    for b in range(x.shape[1]):
        loss = loss_of(model(x[:, [b]]), target[[b]])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())]))
    return torch.stack(rows)


@pytest.mark.parametrize("permute", [(0, 1), (1, 0)])
@pytest.mark.parametrize("also", [False, True])
def test_as_many_sequences_as_outputs_and_steps(tools, permute, also):
    torch.manual_seed(0)
    model = LastStep(tools.Net(o=4), permute, also)
    x, target = torch.randn(4, 4, 2).double(), torch.randint(0, 4, (4,))

    def loss_of(output, t):
        last = output[1] if also else output
        loss = nn.functional.cross_entropy(last.permute(permute), t)
        return loss + output[0].square().mean() if also else loss

    g = own_gradients(model, loss_of, x, target)
    fisher = EmpiricalFisher(model, loss_of, (x, target))
    v = torch.randn(fisher.shape[0], 2, dtype=torch.float64)
    model.calls.clear()
    assert close(fisher @ v, g.T @ (g @ v) / 4)
    assert model.calls.count(5) == 1
    assert close(fisher @ v[:, 0], g.T @ (g @ v[:, 0]) / 4)
    assert model.calls.count(5) == 1  # looked at once
    state = torch.get_rng_state()
    EmpiricalFisher(model, loss_of, (x, target)) @ v
    assert torch.equal(state, torch.get_rng_state())


def test_one_sequence_and_one_output(tools):
    torch.manual_seed(0)
    model = LastStep(tools.Net(o=1))
    x, target = torch.randn(4, 1, 2).double(), torch.randn(1, 1).double()
    g = own_gradients(model, nn.MSELoss(), x, target)
    assert close(EmpiricalFisher(model, nn.MSELoss(), (x, target)).dense(), g.T @ g)


def only_four(model, args):
    args[0].view(4, 4, 2)


def test_a_model_for_one_number_of_sequences(tools):
    torch.manual_seed(0)
    model = LastStep(tools.Net(o=4))
    model.register_forward_pre_hook(only_four)
    x, target = torch.randn(4, 4, 2).double(), torch.randint(0, 4, (4,))
    free = LastStep(model.net)
    g = own_gradients(free, nn.functional.cross_entropy, x, target)
    fisher = EmpiricalFisher(model, nn.functional.cross_entropy, (x, target))
    assert close(fisher.dense(), g.T @ g / 4)


def test_outputs_without_sequences_are_refused(tools):
    class Pairs(LastStep):
        def forward(self, x):
            y = super().forward(x)
            return y @ y.T

    class Summed(LastStep):
        def forward(self, x):
            return super().forward(x).sum(0)

    x, target = torch.randn(3, 4, 2).double(), torch.randn(4).double()

    def loss_of(output, t):
        return output.square().mean()

    for cls, words in (
        (Pairs, r"shape \(4, 4\) has the batch's 4 sequences along dimensions 0, 1, of which 2 go"),
        (Summed, r"shape \(3,\) has no dimension with the batch's 4 sequences"),
    ):
        fisher = EmpiricalFisher(cls(tools.Net(o=3)), loss_of, (x, target))
        with pytest.raises(ValueError, match=words):
            fisher @ torch.zeros(fisher.shape[0], dtype=torch.float64)


def test_batch_dim_0(tools):
    torch.manual_seed(0)
    net = tools.Net(batch_first=True)
    x, target = torch.randn(5, 4, 2).double(), torch.randn(5, 4, 3).double()
    whole = Hessian(net, nn.MSELoss(), (x, target))
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    pieces = Hessian(net, nn.MSELoss(), (x, target), batch_size=2, batch_dim=0)
    assert close(pieces @ v, whole @ v)


def test_ambiguous_target_is_refused(tools):
    p = tools.problem(steps=4, batch=4)
    with pytest.raises(ValueError, match=r"target: shape \(4, 4, 3\) .* target_batch_dim="):
        Hessian(p.net, p.loss_fn, p.data, batch_size=2)
    whole = Hessian(p.net, p.loss_fn, p.data)  # nothing to split: nothing to decide
    pieces = Hessian(p.net, p.loss_fn, p.data, batch_size=2, target_batch_dim=1)
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    assert close(pieces @ v, whole @ v)
    wrong = (p.x, p.target[:, :3])
    with pytest.raises(ValueError, match="target_batch_dim: got 1"):
        Hessian(p.net, p.loss_fn, wrong, batch_size=2, target_batch_dim=1)
    with pytest.raises(ValueError, match="neither along dimension 1 nor along 0"):
        Hessian(p.net, p.loss_fn, (p.x, p.target[:3, :3]), batch_size=2)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"data": torch.zeros(3)}, TypeError, r"data: got Tensor, expected \(x, target\)"),
        ({"data": 3}, TypeError, "data: got int"),
        ({"data": []}, ValueError, "data: got no batch"),
        ({"data": iter([])}, ValueError, "data: got no batch"),
        ({"data": [(1, 2, 3)]}, TypeError, "data: got an entry of type tuple of length 3"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size: got float"),
        ({"batch_size": 1, "batch_dim": 3}, ValueError, "batch_dim: got 3"),
        ({"num_terms": 3}, TypeError, "num_terms: got int"),
    ],
)
def test_wrong_data_is_refused(tools, change, error, message):
    p = tools.problem()
    arguments = {"data": p.data} | change
    with pytest.raises(error, match=message):
        Hessian(p.net, p.loss_fn, **arguments)


class Stored:
    """An iterable that hands out one and the same iterator."""

    def __init__(self, pairs):
        self.pairs = iter(pairs)

    def __iter__(self):
        return (pair for pair in self.pairs)


def test_an_iterable_that_is_used_up(tools):
    p = tools.problem(batch=4)
    pairs = [(p.x[:, [b]], p.target[:, [b]]) for b in range(4)]
    op = Hessian(p.net, p.loss_fn, Stored(pairs))
    v = torch.randn(op.shape[0], dtype=torch.float64)
    assert close(op @ v, Hessian(p.net, p.loss_fn, p.data) @ v)
    with pytest.raises(ValueError, match="gave 4 batches in the first pass and 0 now"):
        op @ v

    class Fewer:
        def __iter__(self):
            pairs.pop()
            return iter(pairs)

    op = Hessian(p.net, p.loss_fn, Fewer())
    op @ v
    with pytest.raises(ValueError, match="gave 3 batches in the first pass and 2 now"):
        op @ v


def test_packed_targets_are_weighted_by_their_data():
    torch.manual_seed(0)

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rx.LeakyRNN(2, 3, leak=0.5, dtype=torch.float64)

        def forward(self, x):
            return self.rnn(x)[0]

    def pack(lengths):
        steps = [torch.randn(t, 2).double() for t in lengths]
        return nn.utils.rnn.pack_sequence(steps, enforce_sorted=False)

    def packed_target(x):
        return x._replace(data=torch.randn(len(x.data), 3).double())

    def loss_fn(output, target):
        return (output.data - target.data).square().mean()

    net, first, second = Packed(), pack([5, 2]), pack([1, 7, 3])
    data = [(x, packed_target(x)) for x in (first, second)]
    v = torch.randn(Hessian(net, loss_fn, data).shape[0]).double()
    parts = [Hessian(net, loss_fn, [pair]) @ v for pair in data]
    expected = (7 * parts[0] + 11 * parts[1]) / 18
    assert close(Hessian(net, loss_fn, data) @ v, expected)


def test_fisher_of_packed_sequences(tools):
    torch.manual_seed(0)

    class Padded(tools.Net):
        def forward(self, x):
            y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(x)[0])
            return self.out(y)

    lengths = torch.tensor([3, 5, 2, 5])
    net, x = Padded(leak=0.4), torch.randn(5, 4, 2).double()
    target = torch.randn(5, 4, 3).double()
    target[torch.arange(5)[:, None] >= lengths] = 0.0
    target[..., 0] = (torch.arange(5)[:, None] < lengths).double()  # says what is valid

    def loss_fn(output, t):
        return ((output - t) ** 2 * t[..., :1]).sum() / t[..., 0].sum()

    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    rows = []
    for b, t in enumerate(lengths.tolist()):
        loss = loss_fn(net.out(net.rnn(x[:t, [b]])[0]), target[:t, [b]])
        grads = torch.autograd.grad(loss, net.parameters())
        rows.append(torch.cat([g.flatten() for g in grads]))
    g = torch.stack(rows)
    assert close(EmpiricalFisher(net, loss_fn, (packed, target)).dense(), g.T @ g / 4)
    batches = [
        (nn.utils.rnn.pack_padded_sequence(x[:, s], lengths[s], enforce_sorted=False), target[:, s])
        for s in (slice(0, 2), slice(2, 4))
    ]
    assert close(EmpiricalFisher(net, loss_fn, batches).dense(), g.T @ g / 4)
    with pytest.raises(TypeError, match="x is PackedSequence; only tensors can be split"):
        EmpiricalFisher(net, loss_fn, (packed, target), batch_size=1)


def test_an_iterable_that_gives_nothing(tools):
    class Empty:
        def __iter__(self):
            return iter(())

    p = tools.problem()
    op = Hessian(p.net, p.loss_fn, Empty())
    with pytest.raises(ValueError, match="gave no batch"):
        op @ torch.zeros(op.shape[0], dtype=torch.float64)


def columns(batch):
    """Pairs of sequences side by side."""
    return tuple(torch.stack(part, 1) for part in zip(*batch, strict=True))


def test_a_loader_that_drops_the_last_batch_drops_the_same_in_every_pass(tools):
    """Whatever was drawn from torch's generator in between, as training does."""
    p = tools.problem(steps=4, batch=7)
    pairs = list(zip(p.x.unbind(1), p.target.unbind(1), strict=True))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = DataLoader(pairs, 3, shuffle=True, drop_last=True, collate_fn=columns)
    op = Hessian(p.net, p.loss_fn, loader)
    assert torch.equal(torch.get_rng_state(), before)
    v = torch.ones(op.shape[0], dtype=torch.float64)
    first = op @ v
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(5)
    assert torch.equal(op @ v, first)
    torch.randn(5)
    others = [Hessian(p.net, p.loss_fn, loader) @ v for _ in range(4) if torch.randn(5).dim()]
    assert any(not torch.equal(o, first) for o in others)  # what is dropped matters


def test_what_a_data_set_draws_is_the_same_in_every_pass(tools):
    p = tools.problem(steps=4, batch=6)
    seen = []

    class Noisy:
        def __iter__(self):
            for i in range(3):
                x = p.x[:, 2 * i : 2 * i + 2] + 0.1 * torch.randn(4, 2, 2, dtype=torch.float64)
                seen.append(x)
                yield x, p.target[:, 2 * i : 2 * i + 2]

    p.net.rnn.register_forward_pre_hook(lambda m, a: (nn.functional.dropout(a[0], 0.2),))
    op = Hessian(p.net, p.loss_fn, Noisy())
    one = torch.ones(op.shape[0], dtype=torch.float64)
    first = op @ one
    torch.randn(3)
    torch.testing.assert_close((op @ torch.stack([one, one], 1))[:, 1], first)
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:6], strict=True))
    assert not torch.equal(seen[0] - p.x[:, :2], seen[1] - p.x[:, 2:4])


def test_a_piece_with_as_many_sequences_as_steps(tools):
    """What counts the target's sequences is clear from the whole batch."""
    p = tools.problem(steps=4, batch=8)
    v = torch.ones(EmpiricalFisher(p.net, p.loss_fn, p.data).shape[0], dtype=torch.float64)
    flat = p.x, p.target.transpose(0, 1).contiguous()  # the batch first

    def loss_fn(output, target):
        return p.loss_fn(output, target.transpose(0, 1))

    whole = EmpiricalFisher(p.net, p.loss_fn, p.data) @ v
    torch.testing.assert_close(EmpiricalFisher(p.net, p.loss_fn, p.data, batch_size=4) @ v, whole)
    torch.testing.assert_close(EmpiricalFisher(p.net, loss_fn, flat, batch_size=4) @ v, whole)
    with pytest.raises(ValueError, match="target_batch_dim="):  # from this batch alone it isn't
        EmpiricalFisher(p.net, loss_fn, (p.x[:, :4], flat[1][:4])) @ v


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_terms": lambda t: float("inf")}, ValueError, "num_terms: returned inf, expected a"),
        ({"num_terms": lambda t: None}, TypeError, "num_terms: returned NoneType, expected a num"),
        ({"num_terms": lambda t: t}, TypeError, "num_terms: returned Tensor, expected a number"),
        ({"batch_size": True}, TypeError, "batch_size: got bool"),
    ],
)
def test_wrong_weights_are_refused(tools, options, error, message):
    p = tools.problem()
    with pytest.raises(error, match=message):
        op = Hessian(p.net, p.loss_fn, p.data, **options)
        op @ torch.ones(op.shape[0], dtype=torch.float64)


def test_dictionaries_are_refused_with_the_remedy(tools):
    p = tools.problem()
    batch = {"x": p.x, "y": p.target}
    with pytest.raises(TypeError, match=r"data: got dict, expected \(x, target\)"):
        Hessian(p.net, p.loss_fn, batch)
    with pytest.raises(TypeError, match=r"entry of type dict, .*; pick them: \(\(b\['x'\], b"):
        Hessian(p.net, p.loss_fn, [batch])
    op = Hessian(p.net, p.loss_fn, ((b["x"], b["y"]) for b in [batch]))
    v = torch.ones(op.shape[0], dtype=torch.float64)
    assert torch.equal(op @ v, Hessian(p.net, p.loss_fn, p.data) @ v)
