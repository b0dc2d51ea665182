"""Streaming mode of the recurrent modules: one step at a time, with gradients at every step."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import _state
from .._autograd import in_transform
from .._checks import check_like, check_shape, check_size
from .._dtypes import computed
from .._stream.cells import StepCell
from .._stream.layer import LayerStream
from .._stream.learner import Learner, Setting
from .._stream.records import PARTS, Weights
from .._stream.sequence import Plan, Steps
from .._stream.state import Shared, State, refuse_hooks

TRANSFORM = (
    "step can't run inside torch.func's transforms (vmap, grad, jvp, ...) or forward-mode AD: its "
    "gradients are those of a rule, summed in place; use forward, or backward and "
    "torch.autograd.grad outside of them"
)


class Streaming:
    """What `RecurrentBase` and `LRU` share of streaming mode.

    A module says how its layers make a step by `_step_cell`, `_step_weights` and what follows.
    """

    cell: ClassVar[str]
    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    rule: Any
    _one_state = True

    # what a module gives

    def _step_cell(self, layer: int) -> StepCell:
        raise NotImplementedError

    def _step_weights(self, layer: int, keep: bool, dtype: torch.dtype) -> Weights:
        raise NotImplementedError

    def _step_mask(self) -> Tensor | None:
        """(G n, n) bool, True where there is a connection."""
        return None

    def _step_units(self, wanted: frozenset[str]) -> int:
        """The number of per-unit constants that are trained."""
        return sum(name.startswith("u") for name in wanted)

    def _step_drive(self, layer: int, shared: Shared, weights: Weights) -> Tensor | None:
        """What is added to a layer's pre-activations (B, G n), such as noise."""
        return None

    def _read_out(self, y: Tensor, x: Tensor) -> Tensor:
        """The module's output from that of its last layer and the input."""
        return y

    def _step_seed(self, device: torch.device) -> Tensor | None:
        return None

    # what users call

    def init_state(self, batch_size: int) -> State:
        """A state at rest for `step`, with ``batch_size`` rows, which may be none.

        Raises TypeError or ValueError unless ``batch_size`` is an int of at least 0, ValueError
        where the module's weights are set by a hook of ``forward``.
        """
        check_size("batch_size", batch_size, least=0)
        refuse_hooks(self)
        state = self._new_stream(batch_size)
        seed = self._step_seed(self._first_weight().device)
        state._shared.seed, state._shared.drawn = seed, None if seed is None else seed.new_zeros(1)
        return state

    def step(self, x: Tensor, state: State, *, drive: Tensor | None = None) -> tuple[Tensor, State]:
        """One step of all layers, under the rule in force.

        x: (B, input_size). state: from `init_state` or the step before; it is consumed.
        drive: (B, G n), added to the pre-activations of the first layer.

        Returns the output (B, n) of the last layer and the state's successor. ``backward`` of a
        loss on the output adds this step's gradient under the rule to ``.grad``, from traces
        that reach back to the beginning of the stream, and hands the gradient by the immediate path
        to ``x`` and ``drive``. Parameters may change at every step. Losses of several steps may be
        summed and differentiated by one ``backward``; once a step was differentiated, earlier ones
        can't be (RuntimeError). Steps without a loss cost little: many are taken up at once. In a
        stack each layer's rule is its own: only in the last layer is the gradient what the rule
        would give for a single one, and lower layers learn from the errors of the same step alone.
        Under ``torch.no_grad`` the activity moves on and credit for what was before is dropped,
        as if the state had come from outside.

        Raises ValueError for a rule that has no streaming form, TypeError and ValueError for wrong
        arguments, RuntimeError for a consumed state, replaced parameters or a changed rule; nothing
        is changed then.
        """
        if not isinstance(state, State):
            raise TypeError(
                f"state is a {type(state).__name__}; expected a state from module.init_state"
            )
        shared = state._live()
        if shared.owner is not self:
            raise ValueError("state belongs to another module; expected one of this module's own")
        if in_transform():
            raise RuntimeError(TRANSFORM)
        key = self._stream_key(shared)
        x, dtype = self._step_input("x", x, shared, self.input_size)
        if drive is not None:
            drive, _ = self._step_input("drive", drive, shared, self._drive_size())
        if torch.is_grad_enabled():
            self._stream_rule(shared)
        shared.enter()
        try:
            for layer in shared.layers:
                layer.prepare(key)
        except BaseException:
            if shared.rule is None:  # what some layers have begun to learn by
                for layer in shared.layers:
                    layer.learner = None
            raise
        if torch.is_grad_enabled():
            shared.rule = self.rule
        device = x.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                y = self._steps(shared, x, drive)
        else:
            y = self._steps(shared, x, drive)
        if shared.drawn is not None:
            shared.drawn += 1
        shared.steps += 1
        shared.serial += 1
        return (y if y.dtype == dtype else y.to(dtype)), State(shared)

    # what they are made of

    def _steps(self, shared: Shared, x: Tensor, drive: Tensor | None) -> Tensor:
        """One step of every layer, and the output."""
        y = x
        for i, layer in enumerate(shared.layers):
            assert layer.weights is not None
            extra = self._step_drive(i, shared, layer.weights)
            if i == 0 and drive is not None:
                extra = drive if extra is None else drive + extra
            y = layer.step(y, extra)
        return self._read_out(y, x)

    def _drive_size(self) -> int:
        return int(getattr(self, "gates", 1)) * self.hidden_size

    def _first_weight(self) -> Tensor:
        raise NotImplementedError

    def _step_input(
        self, name: str, x: Any, shared: Shared, size: int
    ) -> tuple[Tensor, torch.dtype]:
        """An argument (B, size), checked, in the dtype of the traces; and its own dtype."""
        weight = self._first_weight()
        check_shape(name, x, (shared.batch_size, size))
        dtype = x.dtype
        if torch.is_autocast_enabled(weight.device.type) and x.is_floating_point():
            dtype = weight.dtype
        else:
            check_like(name, x, weight.dtype, weight.device, "the weights")
        wide = computed(weight.dtype)
        like = shared.layers[0].like
        if like.dtype != wide or like.device != weight.device:
            raise RuntimeError(
                f"the module was moved from {like.dtype} on {like.device} to {weight.dtype} on "
                f"{weight.device} since init_state: make a new state"
            )
        return (x if x.dtype == wide else x.to(wide)), dtype

    def _stream_key(self, shared: Shared) -> tuple[Any, ...]:
        """Changes whenever a parameter or a constant does; RuntimeError for replaced parameters."""
        now = self._watched()
        if len(now) != len(shared.watched) or any(
            a is not b for a, b in zip(now, shared.watched, strict=True)
        ):
            raise RuntimeError(
                "parameters or constants of the module were replaced since init_state: make a new "
                "state (changes in place, such as an optimizer's, are what a stream expects)"
            )
        key = [t._version * 2 + t.requires_grad for t in now]
        if tuple(key[shared.parameters :]) != shared.constants:
            raise RuntimeError(
                "a constant of the module (leak, time constants, mask) was changed since "
                "init_state: make a new state"
            )
        return (*key, *[t.data_ptr() for t in now[: shared.parameters]])  # p.data = ...

    def _watched(self) -> tuple[Tensor, ...]:
        module: Any = self
        own = [t for t in module._parameters.values() if t is not None]
        for inside in module._modules.values():  # parametrizations
            own += [*inside.parameters(), *inside.buffers()]
        own += [t for t in module._buffers.values() if t is not None]
        return tuple(own)

    def _stream_rule(self, shared: Shared) -> None:
        """The rule in force, which must be the one that the traces are of."""
        rule = self.rule
        if _state.exact_enabled():
            raise RuntimeError(
                "inside exact_gradients() gradients are those of BPTT, which has no streaming "
                "form: use forward"
            )
        if shared.rule is None:
            rule.streaming(self.cell)
        elif shared.rule is not rule and shared.rule != rule:
            raise RuntimeError(
                f"the rule was changed from {shared.rule!r} to {rule!r} since the stream began: "
                "make a new state"
            )

    @torch.inference_mode(False)  # its memory is written to later
    @torch.no_grad()
    def _new_stream(self, batch_size: int) -> State:
        """A state at rest, without a seed of noise."""
        weight = self._first_weight()
        like = weight.detach().new_empty(0, dtype=computed(weight.dtype))
        layers: list[LayerStream] = []
        shared = Shared(self, batch_size, layers)
        for i in range(self.num_layers):
            cell = self._step_cell(i)

            def read(keep: bool, i: int = i) -> Weights:
                return self._step_weights(i, keep, like.dtype)

            def make(wanted: frozenset[str], i: int = i, cell: StepCell = cell) -> Learner:
                inputs = self.input_size if i == 0 else self.hidden_size
                setting = Setting(
                    cell, batch_size, inputs, self.hidden_size, self._step_units(wanted), wanted,
                    like, cell.uniform(read(False)), i, self.batch_first, layers[i].mask,
                )  # fmt: skip
                learner: Learner = self.rule.learner(setting)
                return learner

            layers.append(
                LayerStream(cell, batch_size, self.hidden_size, like, read, make, self._step_mask())
            )
        layers[0].borrows = True
        shared.watched = self._watched()
        constants = [t for t in self._buffers.values() if t is not None]  # type: ignore[attr-defined]
        shared.parameters = len(shared.watched) - len(constants)
        shared.constants = tuple([t._version * 2 + t.requires_grad for t in constants])
        return State(shared)

    def _forward_mode(
        self, layer: int, x: Tensor, states: tuple[Tensor | None, ...], drive: Tensor | None,
        lengths: Tensor | None, rule: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Outputs (T, B, n) and final states (B, n) of a layer under a forward-mode rule."""
        dtype = x.dtype
        wide = computed(dtype)
        x, drive = x.to(wide), None if drive is None else drive.to(wide)
        states = tuple(None if s is None else s.to(wide) for s in states)
        cell = self._step_cell(layer)
        weights = self._step_weights(layer, True, wide)
        mask = self._step_mask()
        setting = Setting(
            cell, x.shape[1], x.shape[2], self.hidden_size, self._step_units(weights.wanted),
            weights.wanted, x.detach(), cell.uniform(weights), layer, self.batch_first, mask,
        )  # fmt: skip
        if torch.is_grad_enabled():
            rule.accept(setting)  # now, not in the backward pass
        plan = Plan(
            cell,
            weights,
            lambda: rule.learner(setting),
            mask,
            self.hidden_size,
            rule.name == "rtrl",
        )
        y, *finals = Steps.apply(
            plan, lengths, x, drive, *(weights.tensors.get(name) for name in PARTS), *states
        )
        return y.to(dtype), tuple(s.to(dtype) for s in finals)

    def _stream_public(self, layers: list[LayerStream]) -> tuple[Tensor, ...]:
        dtype = self._first_weight().dtype
        each = [layer.cell.public(layer.states) for layer in layers]
        return tuple(torch.stack(of_layers).to(dtype) for of_layers in zip(*each, strict=True))
