"""The state of a stream, as users hold it."""

from typing import Any

import torch
from torch import Tensor

from . import capture
from .layer import LayerStream
from .saved import check_keys, check_refill, layer_dict, load_layer, refill

_SPENT = (
    "this state was consumed by a later step, which returned its successor: go on from that one "
    "(copy.deepcopy(state) before a step keeps a branch)"
)


_SAVED = ("version", "cell", "batch_size", "steps", "rule", "seed", "drawn", "layers")


class Shared:
    """What all handles of one stream share; `serial` is that of the newest."""

    def __init__(self, owner: Any, batch_size: int, layers: list[LayerStream]) -> None:
        self.owner, self.batch_size, self.layers = owner, batch_size, layers
        self.serial = 0
        self.steps = 0
        self.rule: Any = None  # in force, once a step has been recorded
        self.seed: Tensor | None = None  # of the noise
        self.drawn: Tensor | None = None  # (1,) int64, steps with noise, counted by the device
        self.watched: tuple[Tensor, ...] = ()  # parameters, then constants
        self.parameters = 0
        self.constants: tuple[Any, ...] = ()  # their versions

    def enter(self) -> None:
        """Before anything that changes the layers: whether it is captured in a CUDA graph."""
        capturing = capture.is_capturing(self.layers[0].like.device)
        for layer in self.layers:
            layer.admit(capturing)
        for layer in self.layers:
            layer.enter(capturing)


class State:
    """Activity and learning memory of a recurrent module in streaming mode.

    Made by ``module.init_state(batch_size)``. ``module.step`` consumes it and returns its
    successor, which has the same storage; using a consumed one raises RuntimeError. It holds no
    part of autograd's graph: memory does not grow with the number of steps, as long as outputs
    without a loss are not kept.
    """

    __slots__ = ("_serial", "_shared")

    def __init__(self, shared: Shared) -> None:
        self._shared, self._serial = shared, shared.serial

    def _live(self) -> Shared:
        if self._serial != self._shared.serial:
            raise RuntimeError(_SPENT)
        return self._shared

    @property
    def batch_size(self) -> int:
        """The number of rows B."""
        return self._live().batch_size

    @property
    def steps(self) -> int:
        """How many calls of ``step`` the stream has had; replays of a CUDA graph don't count."""
        return self._live().steps

    @property
    def h_n(self) -> Any:
        """The activity (layers, B, n), as ``forward`` returns it: a copy, without a graph."""
        shared = self._live()
        public: tuple[Tensor, ...] = shared.owner._stream_public(shared.layers)
        return public[0] if len(public) == 1 and shared.owner._one_state else public

    def reset(self, mask: Tensor) -> "State":
        """Start rows anew, in place: their activity and their credit for what was before.

        mask: (B,) bool, True where an episode has ended. Losses of earlier steps may still be
        differentiated. Returns the state itself. TypeError or ValueError for another mask.
        """
        shared = self._live()
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask is a {type(mask).__name__}; expected a bool tensor")
        if mask.dtype != torch.bool:
            raise TypeError(f"mask has dtype {mask.dtype}; expected torch.bool (True = reset)")
        if tuple(mask.shape) != (shared.batch_size,):
            raise ValueError(f"mask has shape {tuple(mask.shape)}; expected ({shared.batch_size},)")
        shared.enter()
        for layer in shared.layers:
            layer.reset(mask.to(layer.like.device))
        return self

    def detach(self) -> "State":
        """Keep the activity and drop all credit for what was before, in place, as if it had come
        from outside. Returns the state itself."""
        shared = self._live()
        shared.enter()
        for layer in shared.layers:
            layer.detach()
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything that a stream needs to go on, as tensors and plain values.

        ``torch.load(..., weights_only=True)`` reads it. Continuing from it gives the same bits.
        What the state holds of the graph isn't part of it: losses of earlier steps are for the
        original.
        """
        shared = self._live()
        return {
            "version": 1,
            "cell": shared.owner.cell,
            "batch_size": shared.batch_size,
            "steps": shared.steps,
            "rule": None if shared.rule is None else repr(shared.rule),
            "seed": None if shared.seed is None else int(shared.seed),
            "drawn": None if shared.drawn is None else int(shared.drawn),
            "layers": [layer_dict(layer) for layer in shared.layers],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> "State":
        """Go on where ``state_dict`` was taken, in place. Returns the state itself.

        The module must be of the same cell, sizes and rule, the state of the same batch size:
        ValueError otherwise, TypeError for what is no state dict. After a capture in a CUDA graph
        its memory is written: RuntimeError if steps wait for a loss in ``state_dict``, or other
        parameters took gradients. Nothing is changed by an error.
        """
        shared = self._live()
        _load(shared, state_dict)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        old = self._live()
        owner = memo.get(id(old.owner), old.owner)
        if "_parameters" not in vars(owner):  # half made
            raise TypeError(
                "a state that is an attribute of its own module can't be copied with it: keep it "
                "beside the module"
            )
        branch: State = owner._new_stream(old.batch_size)
        _load(branch._shared, self.state_dict())
        branch._shared.rule = old.rule
        memo[id(self)] = branch
        return branch

    def __reduce__(self) -> Any:
        raise TypeError(
            "a state can't be pickled: save state.state_dict() and load it into a new state"
        )

    def __repr__(self) -> str:
        shared = self._shared
        spent = ", consumed" if self._serial != shared.serial else ""
        about = f"{shared.owner.cell}, batch_size={shared.batch_size}, steps={shared.steps}"
        return f"State({about}{spent})"


def _load(shared: Shared, saved: Any) -> None:
    """Put what `State.state_dict` gave in place; nothing is changed by an error."""
    owner = shared.owner
    check_keys("it", saved, _SAVED)
    expected = {"version": 1, "cell": owner.cell, "batch_size": shared.batch_size}
    expected["rule"] = None if saved["rule"] is None else repr(owner.rule)
    for name, value in expected.items():
        if saved[name] != value:
            raise ValueError(f"state_dict: {name} is {saved[name]!r}; expected {value!r}")
    if not isinstance(saved["layers"], list):
        raise TypeError(
            f"state_dict: layers is a {type(saved['layers']).__name__}; expected a list"
        )
    if len(saved["layers"]) != owner.num_layers:
        came = len(saved["layers"])
        raise ValueError(f"state_dict: has {came} layers; expected {owner.num_layers}")
    fresh: Shared = owner._new_stream(shared.batch_size)._shared
    with torch.inference_mode(False), torch.no_grad():
        for i, (mine, theirs) in enumerate(zip(fresh.layers, saved["layers"], strict=True)):
            load_layer(mine, theirs, owner.hidden_size if i else owner.input_size)
        if saved["seed"] is not None:
            fresh.seed = torch.tensor(saved["seed"], device=fresh.layers[0].like.device)
            fresh.drawn = torch.tensor([saved["drawn"]], device=fresh.seed.device)
        if shared.layers[0].home is None:
            shared.layers[:], shared.seed, shared.drawn = fresh.layers, fresh.seed, fresh.drawn
        else:
            _refill(shared, fresh)
    shared.rule = None if saved["rule"] is None else owner.rule
    shared.steps = saved["steps"]


def _refill(shared: Shared, new: Shared) -> None:
    """Write what was loaded into the memory of a stream in a CUDA graph."""
    if (shared.seed is None) != (new.seed is None):
        raise RuntimeError(
            "state_dict: is of a module with noise and this one has none, or the other way round, "
            "and this state's memory belongs to a CUDA graph: load into a new state"
        )
    pairs = list(zip(shared.layers, new.layers, strict=True))
    for layer, loaded in pairs:
        check_refill(layer, loaded)
    for layer, loaded in pairs:
        refill(layer, loaded)
    for mine, theirs in ((shared.seed, new.seed), (shared.drawn, new.drawn)):
        if mine is not None and theirs is not None:
            mine.copy_(theirs)


def refuse_hooks(module: Any) -> None:
    """ValueError where pruning or the old weight norm set a weight before each forward call."""
    for name in vars(module):
        if {f"{name}_orig", f"{name}_g"} & module._parameters.keys():
            raise ValueError(
                f"{name} is set by a hook of forward (torch.nn.utils.prune, weight_norm or "
                "spectral_norm), which step doesn't run; expected a parameter (prune.remove), a "
                "parametrization (torch.nn.utils.parametrizations) or the module's own mask"
            )
