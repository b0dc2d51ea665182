"""What nvcc makes of the kernels keeps within csrc_tests/budget.json, and is what it should be."""

import json

import bounds
import pytest
import resources
import sass

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(resources.missing() is not None, reason=str(resources.missing())),
]


#: Kernels whose rows aren't read or written in words of 16 bytes, and why.
NARROW = {
    "snap_gradient": "to the columns that an owner has, one by one",
    "draw": "lanes write their signs side by side",
    "norms": "partial sums, one for each part of a row",
    "weigh": "a number for each row of the parameters",
    "move": "a warp takes a row of the Jacobian, lanes side by side",
}
AT_LEAST = ("occupancy", "LDG.128", "STG.128", "LDG.64", "STG.64", "LDS.128", "HMMA")


def complaints(name: str, n: dict[str, int]) -> list[str]:
    """What is wrong with a kernel, whatever the budget says."""
    half = "loat16" in name
    bare = name.removeprefix("(anonymous namespace)::").partition("<")[0]
    persistent, begins = name.startswith("persistent"), name.endswith(", 0>")
    # where a double's logarithm is a function, it keeps a register or two in local memory
    none = ("atomic",) if "<double" in name else ("local", "atomic")
    wrong = [f"{key} is {n[key]}" for key in none if n[key]]
    if n["spilled"] > (16 if "<double" in name and not persistent else 0):
        wrong.insert(0, f"spilled is {n['spilled']}")
    # half-precision rows in words of 8 bytes, all others in words of 16
    needed = ["STG.64" if half else "STG.128"]
    if bare in NARROW:
        needed = []
    elif bare == "pass" and "Pass)0" in name:  # it only reads theta
        needed = ["LDG.128"]
    elif not begins:  # what the last part reads is float32
        needed.append("LDG.64" if half and not name.endswith(", 2>") else "LDG.128")
    if persistent:
        needed += ["LDS.128"] + ["HMMA"] * half
    wrong += [f"no {key}" for key in needed if not n[key]]
    if n["HMMA"] and not half:
        wrong.append("tensor cores in an exact product")
    if n["registers"] > 255:
        wrong.append("a block of 256 threads doesn't fit")
    return wrong


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_within_the_budget(architecture):
    budget = json.loads(resources.BUDGET.read_text())
    allowed = budget[f"sm_{architecture}"]
    if architecture != "90" and budget["of"] == resources.sources():
        # the same sources and compiler: the same code, seen again for one architecture
        assert not {name: wrong for name, n in allowed.items() if (wrong := complaints(name, n))}
        return
    found, code = resources.measure(architecture)
    assert set(found) == set(allowed), "kernels came or went: run `make budget`"
    over = {
        name: (numbers, allowed[name])
        for name, numbers in found.items()
        if any(numbers[key] < allowed[name][key] for key in AT_LEAST)
        or any(
            numbers[key] > allowed[name][key] for key in ("registers", "spilled", "shared", "local")
        )
    }
    assert not over
    assert not {name: wrong for name, n in found.items() if (wrong := complaints(name, n))}
    if architecture == "90":
        check_loops(code)
        page = bounds.PAGE.read_text()
        if f"nvcc {resources.compiler()} " in page:
            assert page == bounds.page(code, resources.compiler()), "run `make budget`"


def check_loops(code: dict[str, sass.Code]) -> None:
    """Most of what the products' loops issue are the products."""
    seen = 0
    for name, body in code.items():
        if name.startswith("persistent<"):
            opcode = "HMMA" if "loat16" in name else "DFMA" if "<double" in name else "FFMA"
            loop = sass.main_loop(body, opcode)
            share = sass.count(loop, opcode) / sass.instructions(loop)
            assert share >= (0.4 if opcode == "HMMA" else 0.6), (name, share)
            seen += 1
    assert seen > 30


def test_complaints():
    """The rules notice what they are for."""
    good = {
        "registers": 96, "spilled": 0, "local": 0, "atomic": 0, "HMMA": 0, "LDS.128": 4,
        "LDG.128": 2, "STG.128": 2, "LDG.64": 0, "STG.64": 0,
    }  # fmt: skip
    name, half = "persistent<ForwardStep<float, false, true>, 8>", "persistent<Step<BFloat16>, 8>"
    assert complaints(name, good) == []
    assert complaints(name, good | {"spilled": 4, "local": 1}) == ["spilled is 4", "local is 1"]
    double = "pointwise<ForwardJvpStep<double, true>, 1>"
    assert complaints(double, good | {"spilled": 16, "local": 2}) == []
    assert complaints(double, good | {"spilled": 24}) == ["spilled is 24"]
    assert complaints(name, good | {"LDG.128": 0}) == ["no LDG.128"]
    assert complaints(name, good | {"HMMA": 3}) == ["tensor cores in an exact product"]
    assert complaints(half, good) == ["no STG.64", "no LDG.64", "no HMMA"]
    assert complaints(half, good | {"STG.64": 1, "LDG.64": 1, "HMMA": 1}) == []
