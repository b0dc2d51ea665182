"""No kernel takes more registers, spills or shared memory than csrc_tests/budget.json allows."""

import json
import shutil

import pytest
import resources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
]


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_within_the_budget(architecture):
    allowed = json.loads(resources.BUDGET.read_text())[f"sm_{architecture}"]
    found = resources.measure(architecture)
    assert set(found) == set(allowed), "kernels came or went: run `make budget`"
    over = {
        name: (numbers, allowed[name])
        for name, numbers in found.items()
        if any(numbers[key] > allowed[name][key] for key in numbers)
    }
    assert not over
    assert all(n["spilled"] == 0 for n in found.values())
    # a persistent block of 256 threads must fit a multiprocessor's 65,536 registers
    assert all(n["registers"] <= 255 for n in found.values())
