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


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.GRU(3, 4), "torch.nn.GRU; only torch.nn.RNN"),
        (nn.LSTM(3, 4), "torch.nn.LSTM"),
        (nn.RNN(3, 4, bidirectional=True), "bidirectional=True"),
        (nn.RNN(3, 4, 2, dropout=0.5), "dropout=0.5"),
        (OwnRNN(3, 4), "OwnRNN, a subclass"),
    ],
)
def test_refusals_name_the_path_and_change_nothing(module, words):
    model = Model()
    model.other = nn.Sequential(nn.Identity(), module)
    before = list(model.modules())
    with pytest.raises(ValueError, match=rf"^other\.1 .*{words}"):
        rx.convert(model)
    assert list(model.modules()) == before


def test_bad_arguments():
    with pytest.raises(TypeError, match="model is a int"):
        rx.convert(3)
    with pytest.raises(ValueError, match="unknown rule"):
        rx.convert(Model(), rule="backprop")
    plain = nn.Linear(2, 2)
    assert rx.convert(plain) is plain
