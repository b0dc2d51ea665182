"""The rule by which a recurrence goes persistent or stepwise: a function of card and sizes."""

import re

import emulated
import pytest

PERSISTENT, STEPWISE, COLUMNS = 1, 2, 3


@pytest.fixture(scope="module")
def ops():
    return emulated.load()


def largest(ops, architecture, weight, number, gates=1, carries=1):
    """The largest n that goes persistent without being asked to."""
    card = ops.card(architecture)

    def persistent(n):
        return ops.rule(0, *card, n, gates, carries, weight, number, 32, True)[0] == PERSISTENT

    found = [n for n in range(1, 600) if persistent(n)]
    assert found == list(range(1, len(found) + 1))  # no gaps
    return len(found)


@pytest.mark.parametrize("architecture, shared", [(80, 163), (90, 227), (100, 227), (120, 99)])
def test_shared_memory(ops, architecture, shared):
    assert ops.card(architecture)[0] == shared << 10


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_sizes_that_must_fit(ops, architecture):
    assert largest(ops, architecture, 4, 4) >= 192
    assert largest(ops, architecture, 2, 4) >= 256


def test_the_table_of_the_documentation(ops):
    rows = re.findall(
        r"\| (sm_[\d, sm_]+) \| (\d+) KiB \| (\d+) \| (\d+) \| (\d+) \|",
        (emulated.ROOT / "docs" / "cuda.md").read_text(),
    )
    seen = []
    for names, shared, *sizes in rows:
        for architecture in map(int, re.findall(r"\d+", names)):
            seen.append(architecture)
            assert ops.card(architecture)[0] == int(shared) << 10
            found = [largest(ops, architecture, *bytes_) for bytes_ in ((4, 4), (8, 8), (2, 4))]
            assert found == list(map(int, sizes))
    assert seen == [80, 90, 100, 120]


def test_the_table_of_gated_cells(ops):
    """Largest n of the documentation, forward / backward."""
    text = (emulated.ROOT / "docs" / "cuda.md").read_text()
    pair = r" (\d+) / (\d+) \|"
    rows = re.findall(rf"\| (GRU|LSTM), (sm_[\d, sm_]+) \|{pair}{pair}{pair}", text)
    seen = []
    for cell, names, *sizes in rows:
        gates = {"GRU": 3, "LSTM": 4}[cell]
        for architecture in map(int, re.findall(r"\d+", names)):
            seen.append((cell, architecture))
            found = [
                largest(ops, architecture, *bytes_, gates, carries)
                for bytes_ in ((4, 4), (8, 8), (2, 4))
                for carries in (1, gates)
            ]
            assert found == list(map(int, sizes))
    assert seen == [(cell, a) for cell in ("GRU", "LSTM") for a in (80, 90, 100, 120)]


def test_sizes_that_must_fit_on_small_cards(ops):
    assert largest(ops, 120, 4, 4) >= 144
    assert largest(ops, 120, 2, 4) >= 192


def test_gates_and_double_precision_cost_memory(ops):
    one = largest(ops, 90, 4, 4)
    assert largest(ops, 90, 4, 4, gates=3) < one
    assert 128 <= largest(ops, 90, 8, 8) < one


def test_override(ops):
    card = ops.card(90)
    sizes = (1, 1, 4, 4, 32)
    assert ops.rule(2, *card, 64, *sizes, True)[0] == STEPWISE
    assert ops.rule(1, *card, 64, *sizes, True)[0] == PERSISTENT
    assert ops.rule(1, *card, 599, *sizes, True)[0] == 0  # asked for and not there
    assert ops.rule(0, *card, 599, *sizes, True)[0] == STEPWISE
    for asked in range(3):
        assert ops.rule(asked, *card, 64, *sizes, False)[0] == COLUMNS


def test_small_tiles_fill_the_card(ops):
    shared, processors = ops.card(90)
    rows = [
        ops.rule(0, shared, processors, 64, 1, 1, 4, 4, r, True)[1] for r in (1, 4 * processors)
    ]
    assert rows == [4, 4]
    assert ops.rule(0, shared, processors, 64, 1, 1, 4, 4, 4 * processors + 1, True)[1] == 8
