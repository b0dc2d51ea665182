"""convert: torch's recurrent modules replaced inside existing models."""

import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext.rules import TBPTT


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.inner = nn.ModuleDict({"rnn": nn.RNN(3, 4, 2, "relu", batch_first=True, **options)})
        self.again = self.inner["rnn"]
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.inner["rnn"](x)[0])


def test_parameters_optimizer_and_results_survive():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())
    x = torch.randn(5, 6, 3)
    expected = model(x)
    assert rx.convert(model, rule=TBPTT(2)) is model
    new = model.inner["rnn"]
    assert isinstance(new, rx.LeakyRNN) and model.again is new and new.rule == TBPTT(2)
    assert {n: id(p) for n, p in model.named_parameters()} == {
        n: id(p) for n, p in parameters.items()
    }
    assert torch.allclose(model(x), expected, atol=1e-6)
    before = new.weight_hh_l0.clone()
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(new.weight_hh_l0, before)


def test_a_recurrent_model_itself_becomes_a_new_module():
    old = nn.RNN(3, 4, dtype=torch.float64).eval()
    old.weight_hh_l0.requires_grad_(False)
    new = rx.convert(old, rule="eprop")
    assert isinstance(new, rx.LeakyRNN) and new is not old and not new.training
    assert new.weight_hh_l0 is old.weight_hh_l0 and not new.weight_hh_l0.requires_grad
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    assert torch.allclose(new(x)[0], old(x)[0], rtol=1e-12)


def test_hooks_stay():
    model = Model()
    seen = []
    model.inner["rnn"].register_forward_hook(lambda *_: seen.append(1))
    rx.convert(model)(torch.randn(2, 3, 3))
    assert seen == [1]


class OwnRNN(nn.RNN):
    pass


class OwnLSTM(nn.LSTM):
    pass


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.RNN(3, 4, bidirectional=True), "bidirectional=True; expected False, as LeakyRNN"),
        (nn.RNN(3, 4, 2, dropout=0.5), "dropout=0.5; expected 0.0"),
        (nn.GRU(3, 4, bidirectional=True), "bidirectional=True; expected False, as GRU has none"),
        (nn.GRU(3, 4, 2, dropout=0.5), "dropout=0.5"),
        (nn.LSTM(3, 4, bidirectional=True), "bidirectional=True"),
        (nn.LSTM(3, 4, 2, dropout=0.5), "dropout=0.5; expected 0.0, as LSTM has none"),
        (nn.LSTM(3, 4, proj_size=2), "proj_size=2; expected 0, as LSTM has none"),
        (OwnRNN(3, 4), "OwnRNN, a subclass"),
        (OwnLSTM(3, 4), "OwnLSTM, a subclass of torch's; expected torch.nn.RNN, GRU or LSTM"),
    ],
)
def test_refusals_name_the_path_and_change_nothing(module, words):
    model = Model()
    model.other = nn.Sequential(nn.Identity(), module)
    before = list(model.modules())
    with pytest.raises(ValueError, match=rf"^other\.1 .*{words}"):
        rx.convert(model)
    assert list(model.modules()) == before


class Nested(nn.Module):
    """Every kind of recurrent module, one of them at two places."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"gru": nn.GRU(3, 4, 2, batch_first=True)})
        self.lstm = nn.LSTM(4, 5, bias=False, batch_first=True)
        self.list = nn.ModuleList([nn.RNN(5, 4, batch_first=True), self.inner["gru"]])
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        x, h_n = self.inner["gru"](x)
        x, (_, c_n) = self.lstm(x)
        return self.out(self.list[0](x)[0]), h_n, c_n


def test_gru_and_lstm_inside_a_model():
    model = Nested().double().eval()
    model.lstm.weight_hh_l0.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: id(p) for name, p in model.named_parameters()}
    seen = []
    model.inner["gru"].register_forward_hook(lambda m, *_: seen.append(type(m)))
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    expected = model(x)
    assert rx.convert(model, rule="eprop") is model
    gru, lstm, rnn = model.inner["gru"], model.lstm, model.list[0]
    assert (type(gru), type(lstm), type(rnn)) == (rx.GRU, rx.LSTM, rx.LeakyRNN)
    assert model.list[1] is gru and not gru.training and not lstm.training
    assert {m.rule for m in (gru, lstm, rnn)} == {rx.rules.EProp()}
    assert (gru.num_layers, gru.batch_first, lstm.bias) == (2, True, False)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    found = model(x)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    assert seen == [nn.GRU, rx.GRU]
    start = gru.weight_hh_l1.clone()
    found[0].square().sum().backward()
    optimizer.step()
    assert not torch.equal(gru.weight_hh_l1, start) and lstm.weight_hh_l0.grad is None


@pytest.mark.parametrize("cls", [nn.GRU, nn.LSTM])
def test_a_gated_model_itself_becomes_a_new_module(cls):
    old = cls(3, 4, 2, dtype=torch.float64)
    new = rx.convert(old, rule=TBPTT(2))
    assert new is not old and new.rule == TBPTT(2) and type(new).__name__ == cls.__name__
    assert new.weight_hh_l1 is old.weight_hh_l1
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    assert torch.allclose(new(x)[0], old(x)[0], rtol=1e-12)


def test_a_rule_that_a_cell_lacks_names_the_path():
    model = Nested()
    before = list(model.modules())
    with pytest.raises(ValueError, match=r"^inner\.gru: rule 'mdgl' is not defined for GRU"):
        rx.convert(model, rule=rx.rules.MDGL(cell_specific=True))
    assert list(model.modules()) == before


def test_bad_arguments():
    with pytest.raises(TypeError, match="model is a int"):
        rx.convert(3)
    with pytest.raises(ValueError, match="unknown rule"):
        rx.convert(Model(), rule="backprop")
    plain = nn.Linear(2, 2)
    assert rx.convert(plain) is plain


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_what_would_be_lost_is_refused():
    net = torch.nn.GRU(3, 4)
    net.register_buffer("mine", torch.zeros(2))
    with pytest.raises(ValueError, match="0 has mine beside its parameters"):
        rx.convert(torch.nn.Sequential(net))
    normed = torch.nn.utils.weight_norm(torch.nn.GRU(3, 4), "weight_hh_l0")
    with pytest.raises(ValueError, match="0 has no parameter weight_hh_l0"):
        rx.convert(torch.nn.Sequential(normed))


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_dropout_without_effect_is_no_obstacle():
    net = torch.nn.GRU(3, 4, dropout=0.5)
    x = torch.randn(5, 2, 3)
    assert torch.allclose(rx.convert(net)(x)[0], net(x)[0], atol=1e-6)
