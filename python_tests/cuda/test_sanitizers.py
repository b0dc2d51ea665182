"""The CUDA kernels under address, undefined-behaviour and thread sanitizers, on small shapes with
tails; and without, in every order of threads."""

import emulated
import mutations
import pytest
import torch
from leaky_cases import ELEMENTS, FORWARD, RANDOM, REVERSED


@pytest.mark.parametrize("cell", emulated.CELLS)
@pytest.mark.parametrize("mode", emulated.MODES)
def test_small_shapes(mode, cell, tmp_path):
    program, of = emulated.driver(mode, tmp_path, cell), mutations.CASES[cell]
    cases = tmp_path / "cases"
    orders = [(FORWARD, 0), (REVERSED, 0), (RANDOM, 1)] if mode == "plain" else [(RANDOM, 1)]
    dtypes = ELEMENTS if mode == "plain" else (torch.float64, torch.bfloat16)
    lists = [of.small_problems(mode == "thread", dtype) for dtype in dtypes]
    if mode == "thread":  # it runs 30 times slower: each problem in one of the types
        lists = [list(problems)[i::2] for i, problems in enumerate(lists)]
    problems = [p for one in lists for p in one]
    count = of.write(cases, problems, orders=orders)
    assert count > (50 if mode == "thread" else 100)
    done = emulated.run(program, cases)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} cases" in done.stdout


def test_every_check_has_its_number():
    """The mutation test takes out barriers and bound checks by their numbers."""
    found = mutations.numbers()
    assert sorted(found) == list(range(1, len(found) + 1))
    table = (emulated.ROOT / "csrc_tests" / "MUTATIONS.md").read_text()
    rows = [f"| {number} | {where} | " for number, where in sorted(found.items())]
    assert [line for line in table.splitlines() if line.startswith("| ")][1:] == [
        next((line for line in table.splitlines() if line.startswith(row)), row) for row in rows
    ], "run `make mutate`"
    assert "nobody" not in table


def test_taking_out_a_check_is_noticed(tmp_path):
    """One of them; `make mutate` takes out each in turn."""
    for number in mutations.sample(1, seed=len(mutations.numbers())):
        assert mutations.noticed(number, tmp_path) is not None, mutations.numbers()[number]
