"""Silent and saturated units, against loops in plain Python."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext.diagnostics import Liveness, LivenessByPath, liveness

THRESHOLD = 1e-3
T, B, M, N = 9, 4, 3, 6
LENGTHS = torch.tensor([9, 2, 5, 1])


def scaled(net, by=3.0):
    """The same network with larger weights, so that units reach the ends of their range."""
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(by)
    return net


def inputs(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(T, B, M, generator=g, dtype=torch.float64).to(dtype)


def weights(net, layer):
    return [getattr(net, f"{k}_l{layer}").detach() for k in ("weight_ih", "weight_hh", "bias_ih")]


def rows(lengths):
    return [(t, b) for b in range(B) for t in range(T if lengths is None else int(lengths[b]))]


PHI = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda v: v,
    "softplus": lambda v: torch.log1p(v.exp()),
}
SLOPE = {
    "tanh": lambda v: 1 / torch.cosh(v) ** 2,
    "relu": lambda v: (v > 0).to(v.dtype),
    "identity": torch.ones_like,
    "softplus": torch.sigmoid,
}


def leaky_loop(net, x, lengths, h0):
    """Per layer the slopes (steps, n), from u or v itself."""
    found = []
    k, phi, slope = net.leak, PHI[net.nonlinearity], SLOPE[net.nonlinearity]
    for layer in range(net.num_layers):
        u_w, w, b = weights(net, layer)
        b = b + getattr(net, f"bias_hh_l{layer}").detach()
        s = h0[layer]
        y = s if net.form == "rate" else phi(s)
        ys, slopes = [], []
        for t in range(T):
            u = x[t] @ u_w.T + b + y @ w.T
            if net.form == "rate":
                s = (1 - k) * s + k * phi(u)
                y, inner = s, u
            else:
                s = (1 - k) * s + k * u
                y, inner = phi(s), s
            ys.append(y)
            slopes.append(slope(inner))
        x = torch.stack(ys)
        found.append(torch.stack([slopes[t][b] for t, b in rows(lengths)]))
    return found


@pytest.mark.parametrize("form", ["rate", "voltage"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "softplus", "identity"])
@pytest.mark.parametrize("leak", [1.0, 0.3])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_leaky_units(form, nonlinearity, leak, lengths):
    torch.manual_seed(0)
    net = scaled(
        rx.LeakyRNN(M, N, 2, nonlinearity, leak=leak, form=form, dtype=torch.float64),
        1.5 if nonlinearity in ("relu", "softplus") else 4.0,
    )
    with torch.no_grad():  # one unit that is always off, one that is always driven hard
        net.bias_ih_l0[0], net.bias_ih_l0[1] = -200.0, 200.0
    x = inputs()
    h0 = torch.randn(2, B, N, dtype=torch.float64)
    found = liveness(net, x, h0=h0, lengths=lengths)
    assert isinstance(found, Liveness) and len(found.layers) == 2
    kinds = 0
    for layer, slopes in zip(found.layers, leaky_loop(net, x, lengths, h0), strict=True):
        flat = slopes < THRESHOLD
        assert layer.steps == len(slopes)
        torch.testing.assert_close(layer.fractions["flat"], flat.double().mean(0))
        always = flat.all(0)
        none = torch.zeros(N, dtype=torch.bool)
        tanh = nonlinearity == "tanh"
        assert torch.equal(layer.saturated, always if tanh else none)
        assert torch.equal(layer.silent, none if tanh else always)
        assert torch.equal(layer.no_slope, always)
        kinds += int(always.sum())
    first = found.layers[0].no_slope
    if form == "rate" or leak == 1.0:  # a voltage takes some steps to get there
        assert bool(first[0]) is (nonlinearity != "identity")
        assert bool(first[1]) is (nonlinearity == "tanh")
        assert kinds > 0 or nonlinearity == "identity"


def gated_loop(net, x, lengths):
    """Per layer the gates and squashed values (steps, n) by name."""
    found = []
    for layer in range(net.num_layers):
        u_w, w, b = weights(net, layer)
        b_hh = getattr(net, f"bias_hh_l{layer}").detach()
        h, c = torch.zeros(B, N, dtype=x.dtype), torch.zeros(B, N, dtype=x.dtype)
        ys, seen = [], []
        for t in range(T):
            a, p = x[t] @ u_w.T + b, h @ w.T + b_hh
            if isinstance(net, rx.GRU):
                r, z = torch.sigmoid(a + p)[:, :N], torch.sigmoid(a + p)[:, N : 2 * N]
                q = torch.tanh(a[:, 2 * N :] + r * p[:, 2 * N :])
                h = (1 - z) * q + z * h
                seen.append({"r": r, "z": z, "q": q})
            else:
                i, f, g, o = (a + p).split(N, 1)
                i, f, o, g = i.sigmoid(), f.sigmoid(), o.sigmoid(), g.tanh()
                c = f * c + i * g
                h = o * c.tanh()
                seen.append({"i": i, "f": f, "o": o, "g": g, "c": c.tanh()})
            ys.append(h)
        x = torch.stack(ys)
        found.append({k: torch.stack([seen[t][k][b] for t, b in rows(lengths)]) for k in seen[0]})
    return found


@pytest.mark.parametrize("cell", [rx.GRU, rx.LSTM])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_gates(cell, lengths):
    torch.manual_seed(1)
    net = scaled(cell(M, N, 2, dtype=torch.float64), 6.0)
    with torch.no_grad():  # units 0, 1: gate 0, 1 closed; units 3, 4: the same gates open
        for gate in range(2):
            net.bias_ih_l0[gate * N + gate] = -500.0
            net.bias_ih_l0[gate * N + gate + 3] = 500.0
        if cell is rx.LSTM:  # unit 5 lets nothing out
            net.bias_ih_l0[3 * N + 5] = -500.0
    x = inputs(1)
    found = liveness(net, x, lengths=lengths)
    gates = ("r", "z") if cell is rx.GRU else ("i", "f", "o")
    for layer, values in zip(found.layers, gated_loop(net, x, lengths), strict=True):
        closed, opened, flat = {}, {}, {}
        for name, value in values.items():
            if name in gates:
                closed[name], opened[name] = value < THRESHOLD, value > 1 - THRESHOLD
                for kind, got in (("closed", closed), ("open", opened)):
                    expected = got[name].double().mean(0)
                    torch.testing.assert_close(layer.fractions[f"{name}_{kind}"], expected)
                shut, wide = layer.stuck(name)
                assert torch.equal(shut, closed[name].all(0))
                assert torch.equal(wide, opened[name].all(0))
            else:
                flat[name] = 1 - value**2 < THRESHOLD
                expected = flat[name].double().mean(0)
                torch.testing.assert_close(layer.fractions[f"{name}_flat"], expected)
        if cell is rx.GRU:
            silent = opened["z"].all(0)
        else:
            silent = closed["i"].all(0) | closed["o"].all(0)
        assert torch.equal(layer.silent, silent)
        stuck = [v.all(0) for kind in (closed, opened, flat) for v in kind.values()]
        assert torch.equal(layer.saturated, torch.stack(stuck).any(0))
        assert layer.no_slope is None
    first = found.layers[0]
    assert bool(first.stuck(gates[0])[0][0]) and bool(first.stuck(gates[0])[1][3])
    assert first.silent.any() and not first.silent.all() and not first.saturated.all()
    with pytest.raises(ValueError, match=f"gate is 'x'; expected one of {gates[0]}"):
        first.stuck("x")


@pytest.mark.parametrize("cell", [rx.LeakyRNN, rx.GRU, rx.LSTM])
def test_the_reference_kernels_are_seen_too(cell):
    from rtrl_ext import _kernels

    torch.manual_seed(2)
    net, x = scaled(cell(M, N, 2, dtype=torch.float64), 5.0), inputs(2)
    compiled = liveness(net, x, lengths=LENGTHS)
    with _kernels.use_reference():
        reference = liveness(net, x, lengths=LENGTHS)
    assert compiled.to_dict() == reference.to_dict()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = rx.LeakyRNN(M, N, nonlinearity="relu", noise_std=0.3)
        self.norm = nn.BatchNorm1d(N)
        self.inner = nn.ModuleDict({"rnn": rx.GRU(N, N, 2)})
        self.unused = rx.LSTM(N, N)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, lengths=None):
        y, _ = self.encoder(x, lengths=lengths)
        y = self.norm(y.flatten(0, 1)).view_as(y)
        return self.inner["rnn"](self.drop(y), lengths=lengths)[0]


def test_a_model_gives_its_modules_by_path():
    torch.manual_seed(0)
    model, x = Model(), inputs(dtype=torch.float32)
    found = liveness(model, x, lengths=LENGTHS)
    assert isinstance(found, LivenessByPath) and list(found) == ["encoder", "inner.rnn"]
    assert [len(f.layers) for f in found.values()] == [1, 2]
    assert all(layer.steps == int(LENGTHS.sum()) for f in found.values() for layer in f.layers)
    lines = str(found).splitlines()
    assert lines[0].startswith("encoder: LeakyRNN") and len(lines) == 5
    assert list(json.loads(json.dumps(found.to_dict()))) == ["encoder", "inner.rnn"]


def test_calls_of_one_module_are_added_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn = scaled(rx.LeakyRNN(M, N, 2, leak=0.5), 4.0)

        def forward(self, x):
            return self.rnn(x[:4])[0], self.rnn(x[4:])[0]

    model, x = Twice(), inputs(dtype=torch.float32)
    both = liveness(model, x)["rnn"]
    parts = [liveness(model.rnn, part) for part in (x[:4], x[4:])]
    for layer, a, b in zip(both.layers, *(p.layers for p in parts), strict=True):
        expected = (4 * a.fractions["flat"] + 5 * b.fractions["flat"]) / 9
        torch.testing.assert_close(layer.fractions["flat"], expected)
        assert torch.equal(layer.saturated, a.saturated & b.saturated)


def test_nothing_is_changed():
    torch.manual_seed(0)
    model, x = Model(), inputs(dtype=torch.float32)
    model.encoder.rule = rules.MatchedNoise(rules.EProp(), 3)
    model.inner.eval()
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict())
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    versions = {n: t._version for n, t in model.state_dict(keep_vars=True).items()}
    remembered = copy.deepcopy(model.encoder._rule_states)
    state = torch.get_rng_state()
    first, second = liveness(model, x), liveness(model, x)
    assert first.to_dict() == second.to_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and model.encoder.training and not model.inner["rnn"].training
    assert str(model.encoder._rule_states) == str(remembered)
    for name, t in model.state_dict(keep_vars=True).items():
        assert torch.equal(t, before[name]) and t._version == versions[name]
    for name, p in model.named_parameters():
        assert p.requires_grad
        assert p.grad is None if grads[name] is None else torch.equal(p.grad, grads[name])
    with pytest.raises(ValueError):
        liveness(model, x[:0])
    for m in model.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks
        assert not m._forward_hooks_always_called


def test_other_layouts():
    torch.manual_seed(0)
    net, x = scaled(rx.GRU(M, N), 6.0), inputs(dtype=torch.float32)
    expected = liveness(net, x, lengths=LENGTHS).to_dict()
    packed = nn.utils.rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    assert liveness(net, packed).to_dict() == expected
    turned = rx.GRU(M, N, batch_first=True)
    turned.load_state_dict(net.state_dict())
    assert liveness(turned, x.transpose(0, 1), lengths=LENGTHS).to_dict() == expected
    assert liveness(net, x[:, 0]).to_dict() == liveness(net, x[:, :1]).to_dict()
    empty = liveness(net, x[:, :0])
    assert empty.layers[0].steps == 0 and not empty.silent[0].any() and not empty.saturated[0].any()
    assert empty.to_dict()["layers"][0]["fractions"]["r_open"] == [None] * N
    assert "0 silent" in str(empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty.warn()


@pytest.mark.parametrize(
    "rule",
    ["eprop", rules.Projected(rules.EProp(), "parallel"), rules.MatchedNoise("eprop", 3)],
    ids=repr,
)
def test_rules_make_no_difference(rule):
    torch.manual_seed(0)
    net, x = scaled(rx.LeakyRNN(M, N, 2, leak=0.5), 4.0), inputs(dtype=torch.float32)
    expected = liveness(net, x).to_dict()
    net.rule = rule
    assert liveness(net, x).to_dict() == expected


def test_a_compiled_model():
    torch.manual_seed(0)
    net, x = scaled(rx.LeakyRNN(M, N), 4.0), inputs(dtype=torch.float32)
    expected = liveness(net, x).to_dict()
    assert liveness(torch.compile(net, backend="eager"), x).to_dict() == expected
    inside = nn.Sequential(torch.compile(net, backend="eager"))
    assert next(iter(liveness(inside, x).values())).to_dict() == expected


def test_the_threshold():
    net = rx.LeakyRNN(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        net.weight_ih_l0.fill_(1.0)
        net.weight_hh_l0.zero_()
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None, None]
    slopes = 1 / torch.cosh(x.flatten()) ** 2  # 0.42, 0.071, 0.0099, 0.0013
    for threshold in (0.1, 0.05, 0.005, 0.001):
        flat = float((slopes < threshold).double().mean())
        assert float(liveness(net, x, threshold=threshold).layers[0].fractions["flat"]) == flat


def test_warnings():
    torch.manual_seed(0)
    net, x = rx.LeakyRNN(M, N, nonlinearity="relu"), inputs(dtype=torch.float32)
    with torch.no_grad():
        net.bias_ih_l0.fill_(3.0)
        net.weight_ih_l0.mul_(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        liveness(net, x).warn()
    with torch.no_grad():
        net.bias_ih_l0[:2] = -100.0
    found = liveness(net, x)
    words = r"^LeakyRNN layer 0: 2 of 6 units have a slope near zero at all 36 steps"
    with pytest.warns(RuntimeWarning, match=words) as caught:
        found.warn()
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.warn(share=0.5)
    model = nn.ModuleDict({"a": net, "b": net})
    model.forward = lambda x: net(x)
    with pytest.warns(RuntimeWarning, match="^a: LeakyRNN layer 0: 2 of 6") as caught:
        liveness(model, x).warn()
    assert len(caught) == 1
    for share, error in ((2, ValueError), ("a", TypeError), (True, TypeError)):
        with pytest.raises(error, match="share"):
            found.warn(share=share)


def test_printing():
    torch.manual_seed(0)
    x = inputs(dtype=torch.float32)
    text = str(liveness(rx.LeakyRNN(M, N, 2), x))
    assert text.splitlines()[0] == "LeakyRNN, 36 steps"
    assert text.splitlines()[2].startswith("  layer 1: 6 units: 0 silent, 0 saturated, slope below")
    assert "gates always closed/open: r 0/0 z 0/0" in str(liveness(rx.GRU(M, N), x))
    assert "i 0/0 f 0/0 o 0/0" in str(liveness(rx.LSTM(M, N), x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, x: liveness("net", x), TypeError, "model: got str"),
        (lambda net, x: liveness(nn.Linear(3, 2), x), ValueError, "no recurrent module with a kn"),
        (lambda net, x: liveness(rx.LRU(3, 2), x), ValueError, "linear.*expected LeakyRNN, GRU, L"),
        (lambda net, x: liveness(nn.Sequential(rx.LRU(3, 2)), x), ValueError, "nothing to saturat"),
        (lambda net, x: liveness(nn.RNN(3, 2), x), ValueError, r"rtrl_ext\.convert"),
        (lambda net, x: liveness(net, x, threshold=0), ValueError, "threshold is 0"),
        (lambda net, x: liveness(net, x, threshold=0.5), ValueError, "threshold is 0.5"),
        (lambda net, x: liveness(net, x, threshold="a"), TypeError, "threshold is a str"),
        (lambda net, x: liveness(net, x.double()), TypeError, "x has dtype"),
        (lambda net, x: liveness(net, x, lengths=[1]), ValueError, "lengths has shape"),
        (lambda net, x: liveness(net, x, h0=x), ValueError, "h0 has shape"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(rx.LeakyRNN(M, N), inputs(dtype=torch.float32))


def test_linear_units_are_left_out():
    model = nn.ModuleDict({"linear": rx.LRU(M, 3), "rnn": rx.LeakyRNN(3, N)})
    model.forward = lambda x: model["rnn"](model["linear"](x)[0])
    x = inputs(dtype=torch.float32)
    found = liveness(model, x)
    assert list(found) == ["rnn"]
    alone = liveness(model["rnn"], model["linear"](x)[0].detach())
    assert found["rnn"].to_dict() == alone.to_dict()


def test_a_model_whose_modules_do_not_run():
    model = nn.ModuleDict({"rnn": rx.LeakyRNN(M, N)})
    model.forward = lambda x: x
    with pytest.raises(ValueError, match=r"none of its recurrent modules ran \(rnn\)"):
        liveness(model, inputs())


@pytest.mark.parametrize("cell", ["LeakyRNN", "GRU", "LSTM", "ALIF", "LIF"])
def test_nan_is_no_state_to_judge(cell):
    net = nn.ModuleDict({"rnn": getattr(rx, cell)(M, N, 2)})
    net.forward = lambda x: net["rnn"](x)[0]
    x = inputs(dtype=torch.float32)
    liveness(net, x)
    x[1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{cell} layer 0 has NaN in its state"):
        liveness(net, x)
