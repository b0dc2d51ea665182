"""Whether a module's rule gives the gradient that it should, on a small problem in float64."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _state
from .._checks import check_size
from .._reverse import uncompiled
from ..curvature._evaluation import _generators, kept_random_state
from ..nn.lru import LRU
from ..rules import TBPTT, Immediate, KeRNL, Rule
from ..rules._seeded import SeededRule
from ._expected import expected_of, reduced
from ._verification import ParameterCheck, Verification
from .explain import chosen_rule, recurrent
from .liveness import Liveness, liveness

#: relative error in float64 below which two gradients count as the same
TOLERANCE = 1e-9

Gradients = dict[str, Tensor]


def verify(
    module: nn.Module,
    rule: "str | Rule | None" = None,
    *,
    x: Tensor | None = None,
    seq_len: int = 20,
    batch_size: int = 4,
    seed: int = 0,
    seeds: int = 1,
    tolerance: float = TOLERANCE,
) -> Verification:
    """Compare the gradient of a rule with that of BPTT, parameter by parameter.

    A copy of the module in float64 runs on ``x`` or on normally distributed input; the loss is a
    random linear function of its outputs. Noise of the module is the same in all runs. The
    module, its gradients, its rule's memory and torch's random state stay as they are.

    What must hold, and so has a verdict: BPTT, RTRL, SnAp(k) where it keeps everything, TBPTT(k)
    for k >= T and, in an LRU, SnAp1 are exact: the error is at most ``tolerance``; in a stack
    rules that run forward in time are exact in the last layer alone. The biased rules differ from
    BPTT: the error is above ``tolerance``, if there is anything to differ in: T of at least 2
    (for hop rules more steps than hops), a connection between units and a gradient other than
    zero. Rules that are right in the mean, wrappers and rules written in Python have none. And
    summed over steps, gradients of streaming mode equal those of sequence mode in the last layer
    (TBPTT is exempt).

    `KeRNL` and `DNI` have streaming mode alone: there their gradient is taken, with a loss at every
    step. While they learn nothing they are another rule, whose sequence mode they must equal:
    ``KeRNL("identity", decay_rate=0)`` on leaky units `EProp`, ``DNI(rate=0)`` `Immediate`.

    Args:
        module: a recurrent module of this library.
        rule: a name or a rule object; None for the module's own.
        x: input as the module takes it, with three dimensions; None for a random one.
        seq_len, batch_size: of a random input.
        seed: of input and loss.
        seeds: so many seeds of a stochastic rule are averaged, from 0 on; 1 keeps the rule's own.
        tolerance: largest relative error of what counts as equal.

    Returns:
        `Verification`; ``print`` shows it.

    Raises:
        TypeError: ``module`` is no recurrent module of this library, another argument of a wrong
            type.
        ValueError: a size below 1, ``x`` of a wrong shape, a rule that the cell doesn't have,
            ``seeds`` above 1 for a rule without a seed.
    """
    model = recurrent(module)
    chosen = chosen_rule(model, rule)
    steps, batch = check_size("seq_len", seq_len), check_size("batch_size", batch_size)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed is a {type(seed).__name__}; expected an int")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; expected 0 to 2^63 - 1")
    if check_size("seeds", seeds) > 1 and not isinstance(chosen, SeededRule | KeRNL):
        raise ValueError(f"seeds is {seeds}; expected 1 for {chosen!r}, which has no seed")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"tolerance is a {type(tolerance).__name__}; expected a number")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; expected a number between 0 and 1")
    device = model._first_weight().device
    with warnings.catch_warnings(), kept_random_state(device), uncompiled():
        warnings.filterwarnings("ignore", message=".*no unit of layer.*")  # liveness says it
        own = copy.deepcopy(model).double()
        problem = _problem(own, x, steps, batch, seed, device)
        return _verify(own, chosen, problem, seeds, float(tolerance))


@dataclass(frozen=True)
class _Problem:
    """x: as the module takes it. weights (T, B, o): of the outputs in the loss. seed: of noise."""

    x: Tensor
    weights: Tensor
    seed: int


def _problem(
    own: Any, x: Tensor | None, steps: int, batch: int, seed: int, device: torch.device
) -> _Problem:
    outputs = getattr(own, "output_size", own.hidden_size)
    generator = torch.Generator().manual_seed(seed)
    if x is None:
        shape = (steps, batch, own.input_size)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        x = x.transpose(0, 1) if own.batch_first else x
    else:
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; expected a tensor (T, B, input_size)")
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}; expected a floating one")
        layout = "(B, T, input_size)" if own.batch_first else "(T, B, input_size)"
        if x.dim() != 3 or x.shape[2] != own.input_size or 0 in x.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected {layout} with input_size "
                f"{own.input_size}, T >= 1 and B >= 1"
            )
        x = x.detach().double()
    x = x.to(device)
    major = x.transpose(0, 1) if own.batch_first else x
    shape = (*major.shape[:2], outputs)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    return _Problem(x, weights, seed)


def _verify(own: Any, rule: Rule, problem: _Problem, seeds: int, tolerance: float) -> Verification:
    with _state.exact_gradients():
        exact = _sequence(own, problem)
    steps, batch = problem.weights.shape[:2]
    mode = "sequence" if "sequence" in rule.modes else "streaming"
    gradients = _sequence if mode == "sequence" else _streaming
    same = rule if mode == "sequence" else reduced(own, rule)
    several = [rule] if seeds == 1 else [_with_seed(rule, s) for s in range(seeds)]
    found: Gradients = {}
    for r in several:
        own.rule = r
        for name, g in gradients(own, problem).items():
            found[name] = found[name] + g / seeds if name in found else g / seeds
    expected = "" if same is None else expected_of(own, same, steps)
    end = f"_l{own.num_layers - 1}"  # a parametrized one has it inside its name
    last = set(exact)
    if own.num_layers > 1:
        last = {name for name in exact if any(p.endswith(end) for p in name.split("."))}
    blocks, said = {}, expected
    if own.num_layers > 1 and expected == "exact" and rule.forward_mode:
        said = ""
    for name, g in exact.items():
        # a bias and the input's weights may well be right under a biased rule
        here = expected if expected == "exact" and (said or name in last) else ""
        blocks[name] = _check(found[name], g, here, tolerance)
    flat = [torch.cat([g[k].reshape(-1) for k in exact]) for g in (found, exact)]
    total = _check(flat[0], flat[1], said, tolerance)
    law, reason = _law(own, rule, same, problem, last)
    alive = None if isinstance(own, LRU) else liveness(own, problem.x)
    assert alive is None or isinstance(alive, Liveness)
    return Verification(
        own.cell, repr(rule), steps, batch, seeds, tolerance, total, blocks, law, reason, alive,
        mode, "" if same in (None, rule) else repr(same),
    )  # fmt: skip


def _with_seed(rule: Rule, seed: int) -> Rule:
    parameters = rule._parameters() | {"seed": seed}
    return type(rule)(**parameters)


def _gradients(own: Any, run: Callable[[], None], problem: _Problem) -> Gradients:
    """What ``run`` leaves in ``.grad``, with the same noise every time."""
    for p in own.parameters():
        p.grad = None
    own.rule = own.rule  # forgets what a stateful rule remembers
    for generator in _generators(problem.x.device):
        generator.manual_seed(problem.seed)
    with torch.inference_mode(False), torch.enable_grad():
        run()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in own.named_parameters()
        if p.requires_grad
    }


def _sequence(own: Any, problem: _Problem) -> Gradients:
    def run() -> None:
        y = own(problem.x)[0]
        y = y.transpose(0, 1) if own.batch_first else y
        loss = (y * problem.weights).sum()
        if loss.requires_grad:
            loss.backward()

    return _gradients(own, run, problem)


def _streaming(own: Any, problem: _Problem) -> Gradients:
    def run() -> None:
        x = problem.x.transpose(0, 1) if own.batch_first else problem.x
        state = own.init_state(x.shape[1])
        for now, weights in zip(x, problem.weights, strict=True):
            y, state = own.step(now, state)
            loss = (y * weights).sum()
            if loss.requires_grad:
                loss.backward()

    return _gradients(own, run, problem)


def _law(
    own: Any, rule: Rule, same: Rule | None, problem: _Problem, last: set[str]
) -> tuple[float | None, str]:
    """The largest relative error of streaming mode against sequence mode under the rule ``same``,
    or why there is none."""
    if isinstance(rule, TBPTT):
        return None, "each loss goes back through its own last k steps there"
    if same is None:
        return None, "the rule has no sequence mode"
    own.rule = rule
    try:
        rule.streaming(own.cell)
        streaming = _streaming(own, problem)
    except ValueError as error:
        return None, str(error)
    own.rule = same
    sequence = _sequence(own, problem)
    names = sequence if isinstance(same, Immediate) else last & sequence.keys()
    worst = 0.0
    for name in names:
        size = float(sequence[name].norm())
        difference = float((streaming[name] - sequence[name]).norm())
        worst = max(worst, difference / size if size > 0 else difference)
    return worst, ""


def _check(found: Tensor, exact: Tensor, expected: str, tolerance: float) -> ParameterCheck:
    size, own = float(exact.norm()), float(found.norm())
    error = float((found - exact).norm())
    cosine = float((found * exact).sum()) / (size * own) if size * own > 0 else math.nan
    passed: bool | None = None
    if expected == "exact":
        passed = error <= tolerance * size
    elif expected == "biased" and size > 0:
        passed = error > tolerance * size
    relative = error / size if size > 0 else math.nan
    ratio = own / size if size > 0 else math.nan
    return ParameterCheck(relative, cosine, ratio, expected if passed is not None else "", passed)


__all__ = ["TOLERANCE", "ParameterCheck", "Verification", "verify"]
