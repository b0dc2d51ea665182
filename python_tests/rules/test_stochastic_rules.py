"""UORO, KFRTRL and OK as values: seeds, parameters, cells, modes."""

import copy
import pickle

import pytest
import torch

from rtrl_ext.rules.kfrtrl import KFRTRL
from rtrl_ext.rules.ok import OK
from rtrl_ext.rules.uoro import UORO

MAKE = [UORO, KFRTRL, lambda **options: OK(3, **options)]


@pytest.mark.parametrize("make", MAKE)
def test_seed(make):
    assert make(seed=5) == make(seed=5) != make(seed=6)
    torch.manual_seed(1)
    first, second = make(), make()
    torch.manual_seed(1)
    assert first == make() and first != second
    assert isinstance(first.seed, int) and 0 <= first.seed < 2**63
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first)), eval(repr(first))):
        assert twin == first and hash(twin) == hash(first)
    with pytest.raises(AttributeError):
        first.seed = 3


@pytest.mark.parametrize("make", MAKE)
def test_refusals(make):
    for seed, error in ((1.0, TypeError), (True, TypeError), (-1, ValueError), (2**63, ValueError)):
        with pytest.raises(error, match="seed is"):
            make(seed=seed)


def test_rank():
    assert OK(2, seed=1) != OK(3, seed=1)
    for rank, error in ((0, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="rank is"):
            OK(rank)


def test_cells_and_modes():
    assert set(UORO.cells) == {"LeakyRNN", "GRU", "LSTM", "ALIF", "LIF"}
    assert set(KFRTRL.cells) == set(OK.cells) == {"LeakyRNN", "LSTM", "ALIF", "LIF"}
    for rule in (UORO(), KFRTRL(), OK(2)):
        assert rule.modes == ("sequence", "streaming") and not rule.native
    UORO().check("GRU", 4)
    for rule in (KFRTRL(), OK(2)):
        with pytest.raises(ValueError, match="is not defined for GRU; it goes with LeakyRNN"):
            rule.check("GRU", 4)
