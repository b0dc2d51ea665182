"""The checking methods of torch.nn.RNNBase: the same results and types of errors as torch's."""

import pytest
import torch
from torch import nn

import rtrl_ext as rx

SIZES = torch.tensor([2, 2, 1])


@pytest.fixture(params=[False, True], ids=["time first", "batch first"])
def pair(request):
    return (
        rx.LeakyRNN(3, 4, 2, batch_first=request.param),
        nn.RNN(3, 4, 2, batch_first=request.param),
    )


def outcome(module, name, arguments):
    try:
        return getattr(module, name)(*arguments)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check_input", (torch.ones(5, 2, 3), None)),
        ("check_input", (torch.ones(5, 3), None)),
        ("check_input", (torch.ones(5, 3), SIZES)),
        ("check_input", (torch.ones(5, 2, 3), SIZES)),
        ("check_input", (torch.ones(5, 2, 4), None)),
        ("check_input", (torch.ones(5, 2, 3).double(), None)),
        ("get_expected_hidden_size", (torch.ones(5, 2, 3), None)),
        ("get_expected_hidden_size", (torch.ones(5, 3), SIZES)),
        ("check_hidden_size", (torch.ones(2, 5, 4), (2, 5, 4))),
        ("check_hidden_size", (torch.ones(2, 5, 4), (2, 2, 4))),
        ("check_hidden_size", (torch.ones(2, 5, 4), (2, 2, 4), "{} or {}")),
        ("check_forward_args", (torch.ones(5, 2, 3), torch.ones(2, 5, 4), None)),
        ("check_forward_args", (torch.ones(5, 2, 3), torch.ones(2, 2, 4), None)),
        ("check_forward_args", (torch.ones(5, 3), torch.ones(2, 2, 4), SIZES)),
        ("check_forward_args", (torch.ones(5, 2, 4), torch.ones(2, 2, 4), None)),
    ],
)
def test_as_in_torch(pair, name, arguments):
    ours, theirs = pair
    expected = outcome(theirs, name, arguments)
    assert outcome(ours, name, arguments) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert outcome(ours, name, arguments) == outcome(theirs, name, arguments)


def test_permute_hidden(pair):
    ours, theirs = pair
    h = torch.randn(2, 3, 4)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(ours.permute_hidden(h, order), theirs.permute_hidden(h, order))
    assert ours.permute_hidden(h, None) is h


def test_messages_say_what_came(pair):
    ours = pair[0]
    with pytest.raises(RuntimeError, match="input has 2 dimensions; expected 3"):
        ours.check_input(torch.ones(5, 3), None)
    with pytest.raises(RuntimeError, match="input has last size 4; expected 3"):
        ours.check_input(torch.ones(5, 2, 4), None)
    with pytest.raises(ValueError, match=r"input has dtype torch.float64; expected torch.float32"):
        ours.check_input(torch.ones(5, 2, 3).double(), None)
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(2, 2, 4\), got \[2, 5, 4\]"):
        ours.check_hidden_size(torch.ones(2, 5, 4), (2, 2, 4))


def test_cells_with_two_states():
    """As torch.nn.LSTM's."""
    ours, theirs = rx.LSTM(3, 4, 2), torch.nn.LSTM(3, 4, 2)
    x, s = torch.randn(5, 2, 3), torch.zeros(2, 2, 4)
    order = torch.tensor([1, 0])
    state = (torch.randn(2, 2, 4), torch.randn(2, 2, 4))
    for net in (ours, theirs):
        net.check_forward_args(x, (s, s), None)
        with pytest.raises(RuntimeError):
            net.check_forward_args(x, (s, s[:, :1]), None)
        assert net.get_expected_cell_size(x, None) == (2, 2, 4)
    both = (net.permute_hidden(state, order) for net in (ours, theirs))
    for a, b in zip(*both, strict=True):
        assert torch.equal(a, b)
