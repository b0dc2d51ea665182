"""One differentiable layer of spiking units: its inputs, then the recurrence under a rule."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _alif_fused, _state
from ._autograd import in_transform
from ._cells import CELLS
from ._cells.alif import Options
from ._checks import check_choice, check_flag, check_per_unit, check_positive
from ._dtypes import computed
from ._formulas import with_lead
from ._gated_layer import under_wrapper
from ._layer import masked, preactivation, without_padding
from ._recurrence import recurrence
from .reference.alif import surrogate_slope
from .rules import BPTT, Rule
from .rules.wrappers import Wrapper

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "tau_v", "tau_a", "beta")
RESETS = ("subtract", "zero")
SURROGATES = ("triangular", "fast_sigmoid", "arctan")
LONGEST = 2**24 - 1  # a refractory period and the spike before it, counted in float32
SMALLEST_TAU = 0.1  # in units of dt


@dataclass(frozen=True)
class Settings:
    """What the units of a layer share; see ``reference.alif``. ``dt`` in the unit of the τ."""

    dt: float
    v_th: float
    gamma: float
    scaling: bool
    reset: int
    surrogate: int
    refractory: int


def check_settings(
    dt: Any,
    v_th: Any,
    gamma: Any,
    input_scaling: Any,
    refractory: Any,
    reset: Any,
    surrogate: Any,
) -> Settings:
    """The settings as a caller gives them, ``reset`` and ``surrogate`` by name: TypeError or
    ValueError for what is none."""
    if isinstance(refractory, bool) or not isinstance(refractory, int):
        raise TypeError(f"refractory is a {type(refractory).__name__}; expected an int")
    if not 0 <= refractory < LONGEST:
        raise ValueError(
            f"refractory is {refractory}; expected 0 to {LONGEST - 1} steps, which float32 counts"
        )
    check_choice("reset", reset, RESETS)
    check_choice("surrogate", surrogate, SURROGATES)
    return Settings(
        check_positive("dt", dt), check_positive("v_th", v_th), check_positive("gamma", gamma),
        check_flag("input_scaling", input_scaling), RESETS.index(reset),
        SURROGATES.index(surrogate), refractory,
    )  # fmt: skip


def check_constant(name: str, value: Any, n: int) -> Tensor:
    """τ (finite, above 0) or ``beta`` (finite) of n units as float64 (n,) on the CPU.

    ``value`` is a number or a tensor () or (n,); TypeError or ValueError.
    """
    if name == "beta":
        return check_per_unit(name, value, n, -math.inf, "finite numbers")
    return check_per_unit(name, value, n, 0.0, "finite numbers above 0")


def state_names(adapts: bool, refractory: int) -> tuple[str, ...]:
    """The initial states of ALIF (``adapts``) or LIF, in order."""
    return ("v0", *(["a0"] if adapts else []), *(["count0"] if refractory else []))


def decay(tau: Tensor, dt: float) -> Tensor:
    """exp(-dt/τ), τ at least a tenth of ``dt``; below that with the gradient of τ itself."""
    low = tau.detach().clamp(min=SMALLEST_TAU * dt)
    return torch.exp(-dt / (low + (tau - tau.detach())))


def decay_and_slope(tau: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """`decay` and its derivative by τ, both constants."""
    low = tau.detach().clamp(min=SMALLEST_TAU * dt)
    value = torch.exp(-dt / low)
    return value, value * (dt / low.square())


def first_spikes(
    v: Tensor,
    a: Tensor | None,
    count: Tensor | None,
    beta: Tensor | None,
    settings: "Settings | Options",
) -> tuple[Tensor, Tensor | None]:
    """The spikes of the step that left this state, with the surrogate's slope, and its counter.

    All ((R,) B, n), beta ((R,) n).
    """
    threshold: Tensor | float = settings.v_th
    if a is not None and beta is not None:
        threshold = settings.v_th + beta.unsqueeze(-2) * a
    above = v - threshold
    fixed = above.detach()
    fired = fixed > 0
    height, x = settings.gamma / settings.v_th, fixed / settings.v_th
    psi = height * surrogate_slope(x, settings.surrogate)
    if count is not None:
        silent = (count >= 1) & (count < settings.refractory + 1)
        fired = fired & ~silent
        psi = torch.where(silent, 0.0, psi)
        count = torch.where(fired, settings.refractory + 1.0, count)
    # a step's value with the surrogate's slope
    return fired.to(v.dtype) + psi * (above - fixed), count


def alif_layer(
    x: Tensor,
    states: tuple[Tensor | None, ...],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    tau_v: Tensor,
    tau_a: Tensor | None,
    beta: Tensor | None,
    *,
    settings: Settings,
    drive: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    rule: Rule,
    state: dict[str, Any] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Spikes ((R,) T, B, n) and final states ((R,) B, n) of one layer; arguments already checked.

    x ((R,) T, B, m); states: v, a (ALIF alone) and the refractory counter (with a refractory
    period), ((R,) B, n) each or None for zeros; weights ((R,) n, m) and ((R,) n, n), biases ((R,)
    n), time constants and beta ((R,) n), None for LIF; drive ((R,) T, B, n); mask (n, n).
    Half-precision arguments are computed in float32. ``state`` keeps what a stateful rule remembers
    between calls.
    """
    if isinstance(rule, Wrapper) and _state.exact_enabled():
        rule = BPTT()
    if isinstance(rule, Wrapper):
        given = (weight_ih, weight_hh, bias_ih, bias_hh, tau_v, tau_a, beta)
        run = partial(alif_layer, settings=settings, mask=mask, lengths=lengths)
        return under_wrapper(
            run, x, states, dict(zip(NAMES, given, strict=True)), rule,
            {} if state is None else state, mask, drive,
        )  # fmt: skip
    x = without_padding(x, lengths)
    dtype, wide = x.dtype, computed(x.dtype)
    most = int(2 / torch.finfo(dtype).eps)  # beyond, not every count is a number of this dtype
    if settings.refractory >= most:
        raise ValueError(
            f"refractory is {settings.refractory}; expected at most {most - 1} steps with {dtype}, "
            "the dtype of the final state's counter"
        )

    def widened(t: Any) -> Any:
        return t if t is None or wide == dtype else t.to(wide)

    x, weight_ih, weight_hh = widened(x), widened(weight_ih), widened(weight_hh)
    bias_ih, bias_hh, drive = widened(bias_ih), widened(bias_hh), widened(drive)
    tau_v, tau_a, beta = widened(tau_v), widened(tau_a), widened(beta)
    w = masked(weight_hh, mask)
    learned = in_transform() or any(t is not None and t.requires_grad for t in (tau_v, tau_a, beta))
    alpha = decay(tau_v, settings.dt)
    rho = None if tau_a is None else decay(tau_a, settings.dt)
    given_states = iter(widened(s) for s in states)
    v = next(given_states)
    a = next(given_states) if beta is not None else None
    count = next(given_states) if settings.refractory else None
    z: Tensor | None = None
    if v is not None:
        if count is None and settings.refractory:
            count = torch.zeros_like(v)
        z, count = first_spikes(v, a, count, beta, settings)
    factor = 1 - alpha.detach() if settings.scaling else torch.ones_like(alpha)
    options = Options(
        settings.v_th, settings.gamma, settings.scaling, settings.reset, settings.surrogate,
        settings.refractory, learned,
    )  # fmt: skip
    spec = rule.policy(w.detach(), factor)
    constants = (w, alpha, rho, beta)
    theta = (x, weight_ih, bias_ih, bias_hh, drive, *constants, z, v, a, count)
    native = spec.get("adjoint") is None or _state.exact_enabled()
    if native and _alif_fused.available(theta):
        z_n, v_n, a_n, count_n = _alif_fused.layer(theta, lengths, options, spec)
    else:
        bias, _ = CELLS["alif"].biases(bias_ih, bias_hh, weight_hh.shape[-1], weight_hh)
        pre = preactivation(x, weight_ih, bias, None, drive)
        zero = pre.new_zeros(x.shape[-2], w.shape[-1])
        z, v = (zero if s is None else s for s in (z, v))
        a = zero if a is None and beta is not None else a
        count = zero if count is None and settings.refractory else count
        tensors = (pre, *constants, z, v, a, count)
        z_n, v_n, a_n, count_n = _recurrence(tensors, lengths, options, spec)
    kept = [v_n, *([] if beta is None else [a_n])]
    if settings.refractory:
        kept.append(count_n.detach())
    return z_n.to(dtype), tuple(s.to(dtype) for s in kept)


def _recurrence(
    tensors: tuple[Tensor | None, ...], lengths: Tensor | None, options: Options,
    spec: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(z, v_n, a_n, count_n) by the recurrence alone.

    tensors: pre, w, alpha, rho, beta, z, v, a and counter.

    Without leading dimension where no tensor has one.
    """
    pairs = list(zip(tensors, (3, 2, 1, 1, 1, 2, 2, 2, 2), strict=True))
    pre, w, *rest = (with_lead(t, rank + 1) for t, rank in pairs)
    assert pre is not None and w is not None
    z, finals = recurrence(
        CELLS["alif"], pre, w, rest[:3], rest[3:], lengths=lengths, options=tuple(options), **spec
    )
    single = all(t is None or t.dim() == rank for t, rank in pairs)
    # what is absent is (0,)
    z, v, a, count = (s.squeeze(0) if single and s.dim() > 1 else s for s in (z, *finals[1:]))
    return z, v, a, count
