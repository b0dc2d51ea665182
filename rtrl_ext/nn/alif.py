"""Spiking units, leaky integrate-and-fire, with adaptive threshold or without."""

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._alif_layer import (
    RESETS,
    SURROGATES,
    alif_layer,
    check_constant,
    check_settings,
    decay_and_slope,
    state_names,
)
from .._cells.alif import Options
from .._checks import check_flag, has_values
from .._stream.capture import is_capturing
from .._stream.cells import StepCell
from .._stream.records import version
from .._stream.spiking import Spiking
from ..rules import Rule
from .base import RecurrentBase, renewed


class SpikingRNN(RecurrentBase):
    """Base of `ALIF` and `LIF`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        *,
        values: dict[str, Any],
        learned: tuple[str, ...],
        v_th: float,
        gamma: float,
        dt: float,
        input_scaling: bool,
        refractory: int,
        reset: str,
        surrogate: str,
        autapses: bool,
        mask: Tensor | None,
        rule: str | Rule,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        settings = check_settings(dt, v_th, gamma, input_scaling, refractory, reset, surrogate)
        self._settings = settings
        super().__init__(
            self.cell, input_size, hidden_size, num_layers, bias, batch_first,
            autapses=autapses, mask=mask, rule=rule, device=device, dtype=dtype,
        )  # fmt: skip
        # exact in float64, so that a change of dtype loses nothing
        self._sources = {
            name: check_constant(name, value, hidden_size) for name, value in values.items()
        }
        self._learned = learned
        like = self.all_weights[0][0]
        for name, source in self._sources.items():
            value = source.to(like)
            self.register_buffer(name, None if name in learned else value, persistent=False)
            for layer in range(num_layers if name in learned else 0):
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(value.clone()))
        self.state_names = state_names("beta" in values, refractory)
        self._decays: dict[str, tuple[Tensor, int, torch.dtype, tuple[Tensor, Tensor]]] = {}
        self._told_silent = False

    # Settings are fixed when the module is made: assigning one raises AttributeError.

    @property
    def v_th(self) -> float:
        """The threshold at rest."""
        return self._settings.v_th

    @property
    def gamma(self) -> float:
        """The surrogate's height."""
        return self._settings.gamma

    @property
    def dt(self) -> float:
        """The length of a step, in the unit of the time constants."""
        return self._settings.dt

    @property
    def input_scaling(self) -> bool:
        """Whether the input is multiplied by 1-α."""
        return self._settings.scaling

    @property
    def refractory(self) -> int:
        """Steps of silence after a spike."""
        return self._settings.refractory

    @property
    def reset(self) -> str:
        """What a spike does to v: "subtract" or "zero"."""
        return RESETS[self._settings.reset]

    @property
    def surrogate(self) -> str:
        """The surrogate's shape."""
        return SURROGATES[self._settings.surrogate]

    def reset_parameters(self) -> None:
        """Draw weights and biases anew as ``torch.nn.RNN`` does; trained constants start anew."""
        super().reset_parameters()
        with torch.no_grad():
            for name in getattr(self, "_learned", ()):
                for layer in range(self.num_layers):
                    getattr(self, f"{name}_l{layer}").copy_(self._sources[name])

    def _apply(self, fn: Any, recurse: bool = True) -> "SpikingRNN":
        for name, source in self._sources.items():
            self._sources[name] = renewed(source, self._buffers[name])
        super()._apply(fn, recurse)
        for name, source in self._sources.items():
            buffer = self._buffers[name]
            if buffer is not None and not buffer.is_meta:
                buffer.copy_(source)
        return self

    def _constants(self, layer: int, dtype: torch.dtype) -> dict[str, Any]:
        out: dict[str, Any] = {"tau_a": None, "beta": None}
        for name in self._sources:
            fixed = self._buffers[name]
            value = getattr(self, f"{name}_l{layer}") if fixed is None else fixed
            out[name] = value if value.dtype == dtype else value.to(dtype)
        return out

    def _run_layer(
        self,
        layer: int,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        drive: Tensor | None,
        lengths: Tensor | None,
        rule: Rule,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        w_ih, w_hh, b_ih, b_hh = self._weights_as(layer, x.dtype)
        spikes, finals = alif_layer(
            x, (None,) * len(self.state_names) if states is None else states, w_ih, w_hh, b_ih,
            b_hh, **self._constants(layer, x.dtype), settings=self._settings, drive=drive,
            mask=self.mask, lengths=lengths, rule=rule, state=self._rule_states[layer],
        )  # fmt: skip
        if self.training and not self._told_silent and spikes.requires_grad:
            self._tell_silence(layer, spikes)
        return spikes, finals

    def _step_cell(self, layer: int) -> StepCell:
        s = self._settings
        options = Options(
            s.v_th, s.gamma, s.scaling, s.reset, s.surrogate, s.refractory, True
        )  # fmt: skip
        return Spiking(options, "beta" in self._sources)

    def _step_constants(
        self, layer: int, dtype: torch.dtype
    ) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        given = self._constants(layer, dtype)
        units: list[Tensor | None] = []
        chain: list[Tensor | None] = []
        for name in ("tau_v", "tau_a"):
            tau = given[name]
            if tau is None:
                units.append(None)
                chain.append(None)
                continue
            value, slope = self._decay_and_slope(name, tau)
            units.append(value)
            chain.append(slope)
        beta = given["beta"]
        units.append(None if beta is None else beta.detach())
        trained = {}
        for i, name in enumerate(("tau_v", "tau_a", "beta")):
            if name in self._learned:
                trained[f"u{i}"] = getattr(self, f"{name}_l{layer}")
        return trained, tuple(units), (*chain, None)

    def _decay_and_slope(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """α or ρ of a time constant, and the derivative; once for one that isn't trained."""
        fixed = self._buffers[name]
        if fixed is None:
            return decay_and_slope(tau, self.dt)
        known = self._decays.get(name)
        if known is not None and known[0] is fixed and known[1:3] == (version(fixed), tau.dtype):
            return known[3]
        found = decay_and_slope(tau, self.dt)
        # what a capture makes has no value yet
        kept = has_values(found[0]) and not torch.compiler.is_compiling()
        if kept and not is_capturing(tau.device):
            self._decays[name] = (fixed, version(fixed), tau.dtype, found)
        return found

    def _step_units(self, wanted: frozenset[str]) -> int:
        trained = any(name.startswith("u") for name in wanted)  # then the factors are of all
        return len(self._sources) if trained else 0

    def _tell_silence(self, layer: int, spikes: Tensor) -> None:
        """Warn, once, of a layer whose recurrent weights can't learn."""
        if torch.compiler.is_compiling() or spikes.numel() == 0 or spikes.is_cuda:
            return  # on a GPU to look is to wait
        seen = spikes.detach()
        some = (seen[-1] if seen.dim() == 3 else seen).any()
        if not has_values(some) or bool(some) or bool(seen.any()):
            return
        self._told_silent = True
        warnings.warn(
            f"{self.cell}: no unit of layer {layer} spiked in a training forward pass, so that its "
            f"recurrent weights and the layers above get no gradient; raise the input or its "
            f"weights (with input_scaling by about 1/(1-exp(-dt/tau_v))), or lower v_th = "
            f"{self.v_th:g}",
            RuntimeWarning,
            stacklevel=7,
        )

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        for name, values in self._sources.items():
            one = (values == values[0]).all()
            same = has_values(one) and bool(one)
            parts.append(f"{name}={float(values[0]):g}" if same else f"{name}=({len(values)},)")
        parts += [f"v_th={self.v_th:g}", f"gamma={self.gamma:g}", f"dt={self.dt:g}"]
        defaults = {
            "input_scaling": False, "refractory": 0, "reset": "subtract", "surrogate": "triangular",
        }  # fmt: skip
        changed = {k: getattr(self, k) for k, v in defaults.items() if getattr(self, k) != v}
        if self._learned:
            changed |= {"learned": ", ".join(self._learned)}
        return ", ".join([*parts, *(f"{k}={v!r}" for k, v in changed.items())])


class ALIF(SpikingRNN):
    """Spiking units whose threshold rises with every spike, trained by the rule of one's choice.

        v_t = α v_{t-1} + W z_{t-1} + U x_t + b - v_th z_{t-1},  α = exp(-dt/τ_v)
        a_t = ρ a_{t-1} + z_{t-1},  A_t = v_th + β a_t,          ρ = exp(-dt/τ_a)
        z_t = 1 where v_t > A_t, else 0;  ψ_t = (γ/v_th) max(0, 1 - |v_t - A_t|/v_th)

    The output is z; in gradients ψ stands for ∂z/∂(v-A) (Bellec et al. 2018, 2020). BPTT, TBPTT and
    SnAp1 keep the reset in the gradient, EProp, MDGL and ModProp detach it. Layers, parameters and
    their names are those of ``torch.nn.RNN``. In a stack each layer's rule is its own, and
    layer-local rules are what they are for a single layer only in the last one.

    input_size, hidden_size, num_layers, bias, batch_first: as in ``torch.nn.RNN``.
    tau_v, tau_a: time constants in the unit of ``dt``, above 0; beta: rise of the threshold per
        spike, in units of v; each a number or a tensor (n,), the same in all layers.
    v_th: threshold at rest. gamma: height of the surrogate, dimensionless. dt: length of a step.
    input_scaling: multiply ``W z + U x + b`` by 1-α, the reset not.
    autapses: True allows W_ii. mask: bool (n, n), True = connected, row = postsynaptic.
    rule: a name or an object of `rtrl_ext.rules`; can be read and assigned later.
    learn_tau: make τ parameters ``tau_v_l{i}``, ``tau_a_l{i}`` (n,) of each layer, at least a tenth
        of ``dt`` in the forward pass with a straight-through gradient. learn_beta: ``beta_l{i}``
        (n,). What isn't learned is a buffer outside the state dict.
    refractory: steps of silence after a spike, in which ψ is 0 too.
    reset: "subtract" v_th as above, or to "zero": ``α v_{t-1} (1 - z_{t-1})``.
    surrogate: ψ's shape, "triangular" as above, "fast_sigmoid" 1/(1+|x|)², or "arctan"
        1/(1+(πx)²), of ``x = (v-A)/v_th``.

    ``h0`` and ``h_n`` are tuples (v, a), with a refractory period (v, a, counter): the counter is
    ``refractory`` + 1 after a spike and falls by 1 a step to 0, in the dtype of the rest. The last
    spikes follow from them: a sequence may be run in pieces. There are no second derivatives and no
    forward mode. Raises TypeError for wrong types, ValueError for wrong values, shapes, or a rule
    that isn't defined here. A RuntimeWarning tells, once, of a training pass on the CPU in which a
    layer has no spike at all.
    """

    cell: ClassVar[str] = "ALIF"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = False,
        batch_first: bool = False,
        *,
        tau_v: float | Tensor = 20.0,
        tau_a: float | Tensor = 200.0,
        beta: float | Tensor = 0.184,
        v_th: float = 1.0,
        gamma: float = 0.3,
        dt: float = 1.0,
        input_scaling: bool = False,
        autapses: bool = False,
        mask: Tensor | None = None,
        rule: str | Rule = "bptt",
        learn_tau: bool = False,
        learn_beta: bool = False,
        refractory: int = 0,
        reset: str = "subtract",
        surrogate: str = "triangular",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        learned = ("tau_v", "tau_a") if check_flag("learn_tau", learn_tau) else ()
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first,
            values={"tau_v": tau_v, "tau_a": tau_a, "beta": beta},
            learned=(*learned, "beta") if check_flag("learn_beta", learn_beta) else learned,
            v_th=v_th, gamma=gamma, dt=dt, input_scaling=input_scaling, refractory=refractory,
            reset=reset, surrogate=surrogate, autapses=autapses, mask=mask, rule=rule,
            device=device, dtype=dtype,
        )  # fmt: skip


class LIF(SpikingRNN):
    """Spiking units with a fixed threshold: `ALIF` without adaptation (β = 0), and nothing to pay.

    Arguments and errors as for `ALIF`, less ``tau_a``, ``beta`` and ``learn_beta``; ``h0`` and
    ``h_n`` are tuples (v,), with a refractory period (v, counter).
    """

    cell: ClassVar[str] = "LIF"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = False,
        batch_first: bool = False,
        *,
        tau_v: float | Tensor = 20.0,
        v_th: float = 1.0,
        gamma: float = 0.3,
        dt: float = 1.0,
        input_scaling: bool = False,
        autapses: bool = False,
        mask: Tensor | None = None,
        rule: str | Rule = "bptt",
        learn_tau: bool = False,
        refractory: int = 0,
        reset: str = "subtract",
        surrogate: str = "triangular",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, values={"tau_v": tau_v},
            learned=("tau_v",) if check_flag("learn_tau", learn_tau) else (),
            v_th=v_th, gamma=gamma, dt=dt, input_scaling=input_scaling, refractory=refractory,
            reset=reset, surrogate=surrogate, autapses=autapses, mask=mask, rule=rule,
            device=device, dtype=dtype,
        )  # fmt: skip
