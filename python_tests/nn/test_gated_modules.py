"""GRU and LSTM as modules: errors, copies, autocast, fake tensors, compilation, checkpoints."""

import copy
import io
import pickle

import pytest
import torch
from gated_oracle import CELLS, gradients, handed, operands, received
from oracles import relative
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import checkpoint

import rtrl_ext as rx
from rtrl_ext.rules import MDGL, TBPTT, EProp, Projected, Scaled

pytestmark = pytest.mark.parametrize("cell", CELLS)
RULES = {"bptt": "bptt", "tbptt": TBPTT(2), "eprop": EProp(0.4), "snap1": "snap1"}
MASK = torch.rand(4, 4, generator=torch.Generator().manual_seed(2)) < 0.5


def build(cell, *sizes, **options):
    return getattr(rx, cell)(*sizes, **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"input_size": 2.0}, TypeError, "input_size is a float; expected an int"),
        ({"hidden_size": 0}, ValueError, "hidden_size is 0; expected at least 1"),
        ({"num_layers": True}, TypeError, "num_layers is a bool; expected an int"),
        ({"bias": 1}, TypeError, "bias is a int; expected a bool"),
        ({"batch_first": None}, TypeError, "batch_first is a NoneType; expected a bool"),
        ({"mask": torch.ones(3, 4).bool()}, ValueError, r"mask has shape \(3, 4\); .*\(4, 4\)"),
        ({"mask": torch.ones(4, 4)}, TypeError, "mask has dtype torch.float32; expected torch.boo"),
        ({"dtype": torch.int64}, TypeError, "dtype is torch.int64; expected a floating one"),
        ({"rule": 3}, TypeError, "rule is a int; expected a name or an object of rtrl_ext.rules"),
        ({"rule": "backprop"}, ValueError, "unknown rule 'backprop'; known rules: bptt"),
        ({"rule": "tbptt"}, ValueError, "rule 'tbptt' needs k"),
        ({"rule": MDGL(cell_specific=True)}, ValueError, "'mdgl' is not defined for"),
        ({"dropout": 0.5}, TypeError, "unexpected keyword argument 'dropout'"),
        ({"leak": 0.5}, TypeError, "unexpected keyword argument 'leak'"),
    ],
)
def test_constructor_refusals(cell, options, error, words):
    with pytest.raises(error, match=words):
        build(cell, **({"input_size": 3, "hidden_size": 4} | options))


def calls(cell):
    """Arguments of a call with x (5, 2, 3), and the error that they give."""
    x, s = torch.zeros(5, 2, 3), torch.zeros(2, 2, 4)
    short = handed([s[:1]] * len(CELLS[cell]))
    wide = handed([s.double()] * len(CELLS[cell]))
    gates = 3 if cell == "GRU" else 4
    common = [
        ((None,), {}, TypeError, "x is a NoneType; expected a tensor"),
        ((x[0, 0],), {}, ValueError, r"x has shape \(3,\); expected \(T, B, input_size\)"),
        ((x[..., :2],), {}, ValueError, r"x has shape \(5, 2, 2\); .* last size to be 3"),
        ((x[:0],), {}, ValueError, "x has T = 0 steps; expected at least one"),
        ((x.double(),), {}, TypeError, "x has dtype torch.float64; expected torch.float32, as the"),
        ((x.long(),), {}, TypeError, "x has dtype torch.int64"),
        ((x.to("meta"),), {}, ValueError, "x is on meta; expected cpu, as the weights"),
        ((x.to_sparse(),), {}, TypeError, "x is a torch.sparse_coo tensor; expected a dense one"),
        ((x, short), {}, ValueError, r"h0 has shape \(1, 2, 4\); expected \(2, 2, 4\)"),
        ((x, wide), {}, TypeError, "h0 has dtype torch.float64; expected torch.float32"),
        ((x,), {"drive": x}, ValueError, rf"drive has shape \(5, 2, 3\); .*\(5, 2, {4 * gates}\)"),
        ((x,), {"lengths": [1, 2, 3]}, ValueError, r"lengths has shape \(3,\); expected \(2,\)"),
        ((x,), {"lengths": [0, 5]}, ValueError, "lengths holds 0; expected values from 1 to 5"),
        ((x,), {"lengths": [1, 6]}, ValueError, "lengths holds 6; expected values from 1 to 5"),
        ((x,), {"lengths": [1.0, 2.0]}, TypeError, "lengths has dtype torch.float32"),
        ((x[:, 0],), {"lengths": [5]}, ValueError, "lengths came with an unbatched x"),
    ]
    if cell == "GRU":
        return [*common, ((x, (s, s)), {}, TypeError, "h0 is a tuple; expected a tensor")]
    return [
        *common,
        ((x, s), {}, TypeError, r"h0 is a Tensor; expected a tuple \(h0, c0\)"),
        ((x, (s,)), {}, ValueError, r"h0 has 1 tensors; expected a tuple \(h0, c0\)"),
        ((x, (s, s[:1])), {}, ValueError, r"c0 has shape \(1, 2, 4\); expected \(2, 2, 4\)"),
        ((x, (s, s.double())), {}, TypeError, "c0 has dtype torch.float64; expected torch.float32"),
        ((x, (s, None)), {}, TypeError, "c0 is a NoneType; expected a tensor"),
    ]


def test_call_refusals_change_nothing(cell):
    net = build(cell, 3, 4, 2)
    before = copy.deepcopy(net)
    for args, more, error, words in calls(cell):
        with pytest.raises(error, match=words):
            net(*args, **more)
    for p, q in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q) and p.grad is None


@pytest.mark.parametrize("rule", RULES)
def test_copies(cell, rule):
    net = build(cell, 3, 4, 2, rule=RULES[rule], mask=MASK)
    x = torch.randn(5, 2, 3)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(net), saved, pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x)[0], net(x)[0])
        assert twin.rule == net.rule and repr(twin) == repr(net)
        assert torch.equal(twin.mask, MASK)
        assert twin.weight_hh_l0 is not net.weight_hh_l0
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = build(cell, 3, 4, 2, rule=RULES[rule], mask=MASK)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x)[0], net(x)[0])


def test_repr(cell):
    net = build(cell, 3, 4, 2, bias=False, batch_first=True, mask=MASK, rule=TBPTT(3))
    kept = int(MASK.sum())
    assert repr(net) == (
        f"{cell}(3, 4, num_layers=2, bias=False, batch_first=True, connected={kept}/16, "
        "rule=TBPTT(k=3))"
    )


def test_autocast_follows_torch(cell):
    torch.manual_seed(0)
    theirs, ours = getattr(nn, cell)(3, 5, 2), build(cell, 3, 5, 2)
    theirs.load_state_dict(ours.state_dict())
    x, first = torch.randn(6, 2, 3), handed([torch.randn(2, 2, 5) for _ in CELLS[cell]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = theirs(x, first), ours(x, first)
        for s, t in zip((a[0], *received(a[1])), (b[0], *received(b[1])), strict=True):
            # on the CPU torch's GRU leaves its float32 state as it is; on CUDA it does as here
            assert t.dtype == torch.bfloat16 and (s.dtype == t.dtype or cell == "GRU")
            assert torch.allclose(s.float(), t.float(), atol=0.03)
        ours(x.bfloat16())[0].float().square().sum().backward()
    found = ours.weight_hh_l0.grad.clone()
    assert found.dtype == torch.float32
    ours.zero_grad()
    ours(x)[0].square().sum().backward()
    assert relative(found, ours.weight_hh_l0.grad) < 0.03
    double = ours.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert double(x.double())[0].dtype == torch.float64


def test_half_precision_weights(cell):
    """State and sums in float32, results rounded."""
    net = build(cell, 3, 5, dtype=torch.bfloat16)
    wide = build(cell, 3, 5)
    wide.load_state_dict(net.state_dict())
    x = torch.randn(6, 2, 3).bfloat16()
    y, states = net(x)
    assert y.dtype == received(states)[-1].dtype == torch.bfloat16
    assert torch.equal(y, wide(x.float())[0].bfloat16())
    y.float().square().sum().backward()
    assert net.weight_hh_l0.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("rule", RULES)
def test_empty_batch(cell, rule):
    net = build(cell, 3, 4, 2, rule=RULES[rule])
    x = torch.zeros(5, 0, 3, requires_grad=True)
    y, states = net(x)
    assert y.shape == (5, 0, 4) and all(s.shape == (2, 0, 4) for s in received(states))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not any(p.grad.any() for p in net.parameters())


def test_meta(cell):
    net = build(cell, 3, 4, 2, mask=MASK, device="meta")
    y, states = net(torch.empty(4, 2, 3, device="meta"))
    assert y.is_meta and y.shape == (4, 2, 4)
    assert all(s.is_meta and s.shape == (2, 2, 4) for s in received(states))
    made = net.to_empty(device="cpu")
    made.reset_parameters()
    assert torch.equal(made.mask, MASK) and made(torch.randn(4, 2, 3))[0].isfinite().all()


FAKE = {
    "default": {},
    "mask": {"mask": torch.ones(5, 5).bool()},
    "stack": {"num_layers": 2, "rule": "eprop"},
    "snap1": {"rule": "snap1", "bias": False},
    "wrapper": {"rule": Scaled(EProp(), 2.0)},
    "half": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", FAKE)
def test_fake_training_step(cell, name):
    options = FAKE[name]
    dtype = options.get("dtype", torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=name == "mask"):
        net = build(cell, 3, 5, **options)
        layers = net.num_layers
        assert repr(net).startswith(f"{cell}(3, 5")
        x = torch.randn(7, 2, 3, dtype=dtype, requires_grad=True)
        first = handed([torch.zeros(layers, 2, 5, dtype=dtype) for _ in CELLS[cell]])
        for more in ({}, {"h0": first}, {"lengths": torch.tensor([3, 7])}):
            y, states = net(x, **more)
            assert isinstance(y, FakeTensor) and (tuple(y.shape), y.dtype) == ((7, 2, 5), dtype)
            for s in received(states):
                assert isinstance(s, FakeTensor)
                assert (tuple(s.shape), s.dtype) == ((layers, 2, 5), dtype)
            y.float().sum().backward()
    for p in net.parameters():
        assert p.grad.shape == p.shape
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_checkpointed(cell, rule, ragged, reentrant):
    net = build(cell, 3, 5, 2, rule=RULES[rule])
    x = torch.randn(6, 2, 3, requires_grad=True)
    call = {"lengths": torch.tensor([6, 2])} if ragged else {}
    inputs, results = [x, *net.parameters()], []
    for y in (
        net(x, **call)[0],
        checkpoint(lambda x: net(x, **call)[0], x, use_reentrant=reentrant),
    ):
        for t in inputs:
            t.grad = None
        y.pow(2).sum().backward()
        results.append([t.grad for t in inputs])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_deterministic(cell, rule):
    """The same bits again, also under torch's strict mode; outputs and the input's gradient
    whatever the number of threads, by which sums over rows differ in the last bits."""
    net = build(cell, 3, 33, 2, rule=RULES[rule])
    x = torch.randn(20, 9, 3, requires_grad=True)
    threads = torch.get_num_threads()
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for count in (1, 2, 2, 1):
            torch.set_num_threads(count)
            net.zero_grad()
            x.grad = None
            y, states = net(x)
            (y.square().sum() + sum(s.sum() for s in received(states))).backward()
            results.append([y.detach(), x.grad, *(p.grad.clone() for p in net.parameters())])
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    one, two, again_two, again_one = results
    for first, again in ((one, again_one), (two, again_two)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    for a, b in zip(one, two, strict=True):
        assert relative(b, a) < 1e-5


CONFIGURATIONS = [
    {},
    {"rule": EProp(0.3), "num_layers": 2, "batch_first": True},
    {"rule": "snap1", "bias": False, "mask": MASK},
    {"rule": TBPTT(2)},
    {"rule": Projected("eprop")},
]


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        *((options, "aot_eager") for options in CONFIGURATIONS),
        pytest.param(CONFIGURATIONS[1], "inductor", marks=pytest.mark.slow),
    ],
    ids=["bptt", "eprop", "snap1", "tbptt", "projected", "inductor"],
)
def test_compiled_equals_eager(cell, options, backend):
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = build(cell, 3, 4, **options)
    x = torch.randn(5, 6, 3)
    run = torch.compile(net, fullgraph=True, backend=backend)
    results = []
    for f in (net, run):
        net.zero_grad()
        y, states = f(x)
        (y.square().sum() + sum(s.sum() for s in received(states))).backward()
        results.append([y, *received(states), *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(run(x)[0], net(x)[0], atol=1e-6)
    with rx.exact_gradients():
        found = torch.autograd.grad(run(x)[0].sum(), list(net.parameters()))
        expected = torch.autograd.grad(net(x)[0].sum(), list(net.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_compiled_with_sizes_that_change(cell):
    torch._dynamo.reset()
    net = build(cell, 3, 5)
    run = torch.compile(net, fullgraph=True, backend="aot_eager")
    for steps, batch in ((4, 2), (9, 2), (5, 7), (6, 4)):
        x = torch.randn(steps, batch, 3)
        first = handed([torch.randn(1, batch, 5) for _ in CELLS[cell]])
        drive = torch.randn(steps, batch, net.gates * 5)
        lengths = torch.arange(batch) % steps + 1
        (y, s), (z, e) = (f(x, first, drive=drive, lengths=lengths) for f in (run, net))
        for a, b in zip((y, *received(s)), (z, *received(e)), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    torch._dynamo.reset()


def test_training_on_a_device_argument(cell):
    net = build(cell, 3, 4, device="cpu", dtype=torch.float64)
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    assert gradients(net, operands(net))["weight_hh_l0"].dtype == torch.float64
