"""One layer of a stream: its states, the steps its rule has still to take up, and the graph.

Every recorded step is a node of autograd's graph, and all of them hang on one other, the gate,
which stands for the parameters (derived ones have a new gate whenever they are made anew). A
backward pass leaves the gradient of each output with its step; when all have come, the gate runs,
and one pass over the rule's memory gives the gradients of the parameters.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._autograd import below_autograd
from .._refuse import refuse
from .activity import Activity
from .cells import StepCell
from .learner import Learner, rows_of
from .records import PARTS, Gradients, Record, Weights, version

_SUPERSEDED = (
    "the gradient of step {step} came after the rule had been brought up to step {now}: call "
    "backward before a later step's backward, or sum the losses of both and call it once (weights "
    "under a parametrization must not change between these steps)"
)
_CHANGED = (
    "the input's weights of a layer were changed in place between step {step} and its backward, "
    "which hands a gradient to the step's input: call backward before the optimizer's step"
)
_SECOND = (
    "the gradient of a streaming step has no second derivative: use sequence mode (forward) inside "
    "`with rtrl_ext.exact_gradients():`"
)


class Alive:
    """Belongs to a step's node in the graph and goes with it.

    record: None once it can't be differentiated any more; an output or a loss that someone keeps
    then holds no memory of its step.
    """

    __slots__ = ("__weakref__", "index", "record")

    def __init__(self, record: Record) -> None:
        self.index, self.record = record.index, record


class Gate(Function):
    """The parameters of a layer, for all steps."""

    @staticmethod
    def forward(ctx: Any, layer: "LayerStream", *parameters: Tensor | None) -> Tensor:  # type: ignore[override]
        # the layer holds its gate; the steps, as long as a loss may come, hold the layer
        ctx.layer = weakref.ref(layer)
        ctx.set_materialize_grads(False)
        return layer.like.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        needs = ctx.needs_input_grad[1:]
        layer: LayerStream = ctx.layer()
        grads = layer.differentiate(torch._C._current_graph_task_id())
        found = [grads.get(name) if n else None for name, n in zip(PARTS, needs, strict=True)]
        if torch.is_grad_enabled() and layer.last is not None:  # create_graph
            found = _undifferentiable(*found, weights=layer.last.weights)
        return None, *found


class Step(Function):
    """The output of one step."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, gate: Tensor, x: Tensor, drive: Tensor | None, layer: "LayerStream",
        record: Record,
    ) -> Tensor:  # fmt: skip
        ctx.layer, ctx.alive = layer, Alive(record)
        ctx.save_for_backward(layer.nothing)
        ctx.set_materialize_grads(False)
        record.alive = weakref.ref(ctx.alive)
        return layer.cell.output(record.after).clone()  # the caller may write into it

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layer: LayerStream = ctx.layer
        ctx.saved_tensors  # noqa: B018  raises if the graph was freed
        if gy is None:
            return None, None, None, None, None
        record, gy = layer.receive(ctx.alive, gy, torch._C._current_graph_task_id())
        dx = drive = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            rows, weights = layer.rows(record, gy), record.weights
            if ctx.needs_input_grad[1]:
                if version(weights.w_ih) != weights.version:
                    raise RuntimeError(_CHANGED.format(step=record.index))
                dx = rows @ (weights.w_ih if weights.w_x is None else weights.w_x)
            drive = rows if ctx.needs_input_grad[2] else None
            if torch.is_grad_enabled():  # create_graph
                dx, drive = _undifferentiable(dx, drive, weights=weights)
        return layer.nothing, dx, drive, None, None


def _frozen(key: tuple[Any, ...]) -> list[int]:
    """Which parameters require gradients, see `Streaming._stream_key`."""
    return [each & 1 for each in key]


def _undifferentiable(*grads: Tensor | None, weights: Weights) -> list[Tensor | None]:
    """The gradients, no constants, whose derivatives are refused."""
    there = [g for g in grads if g is not None]
    of = [t for t in weights.tensors.values() if t is not None and t.requires_grad]
    of = of or [weights.w_ih.detach().requires_grad_()]
    refused = iter(refuse(_SECOND, there, of) if there else ())
    return [None if g is None else next(refused) for g in grads]


class LayerStream(Activity):
    """A layer's part of a stream.

    read: gives the layer's parameters as they now are, and takes whether the recurrent weight must
    stay as it is. make: the learner of the rule in force, given what gradients are needed. mask:
    (G n, n), True where there is a connection.
    """

    def __init__(
        self, cell: StepCell, batch: int, n: int, like: Tensor,
        read: Callable[[bool], Weights], make: Callable[[frozenset[str]], Learner],
        mask: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(cell, batch, n, like)
        self.read, self.make, self.mask = read, make, mask
        self.weights: Weights | None = None
        self.gate: Tensor | None = None
        self.absent = None if mask is None else ~mask
        self.nothing = like.new_zeros(0)
        # whether parameters may have changed unseen: ``p.data -= ...`` leaves versions as they are
        self.doubtful = False
        self.borrows = False  # whether inputs are the caller's, who may write into them

    def prepare(self, key: tuple[Any, ...]) -> None:
        """Before a step: the parameters as they now are. ``key`` changes whenever they do."""
        if self.home is not None and not self.waiting:
            self.weights = self.gate = None  # a graph reads them anew, and may change them unseen
        weights, grad = self.weights, torch.is_grad_enabled()
        if weights is None or weights.key != key or self.doubtful:
            self.doubtful = not grad  # a target network may be written to at any time
            weights = self.read(grad and (self.learner is None or self.learner.keeps_weights))
            weights.key = key
            before, self.weights = self.weights, weights
            # parameters that changed in place are the same to the graph: the steps of a window
            # hang on one gate, whatever weights each had
            if before is None or weights.derived or _frozen(before.key) != _frozen(key):
                self.gate = None
        if not grad:
            return
        learner = self.learner
        if learner is None:
            self.learner = learner = self.make(weights.wanted)
        elif not weights.wanted <= learner.wanted:
            new = ", ".join(sorted(weights.wanted - learner.wanted))
            raise RuntimeError(f"{new} did not require gradients before: make a new state")
        factor = learner.modulator
        if factor is not None and self.index >= factor.shape[0]:
            raise ValueError(
                f"modulator has {factor.shape[0]} steps; expected more, for step {self.index + 1}"
            )

    def step(self, x: Tensor, drive: Tensor | None) -> Tensor:
        """One step; x (B, m), drive (B, G n) or None, all in the layer's dtype."""
        weights = self.weights
        assert weights is not None
        self.index += 1
        grad = torch.is_grad_enabled()
        with below_autograd():
            pre = torch.nn.functional.linear(x, weights.w_ih, weights.bias)
            if drive is not None:
                pre = pre + drive
            before = self.states
            after, kept = self.cell.step(pre, weights, before)
        self.states = after
        y = self.cell.output(after)
        # a learner for parameters that are frozen for now goes on
        if not grad or not ((self.learner and self.learner.wanted) or x.requires_grad or
                            (drive is not None and drive.requires_grad)):  # fmt: skip
            self.detach()
            return y.clone()
        own = x.detach().clone() if self.borrows else x.detach()
        record = Record(self.index, own, before, after, kept, weights, self._starting())
        assert self.learner is not None
        if self.learner.keeps_pre:
            record.pre = pre
        self._make_room()
        if self.gate is None:
            self.gate = Gate.apply(self, *(weights.tensors.get(name) for name in PARTS))
        out: Tensor = Step.apply(self.gate, x, drive, self, record)
        self.waiting.append(record)
        idle = not weights.wanted and (self.home is not None or not self.learner.wanted)
        if idle and len(self.waiting) == 1:  # its gate, without parameters, never runs
            self._take_up(1, [None])
            self._at_home()
        return out

    def receive(self, alive: Alive, gy: Tensor, task: int) -> tuple[Record, Tensor]:
        """The gradient of a step's output has come; its record, and the learning signal, with a
        third factor."""
        assert self.learner is not None
        record: Record | None = alive.record
        if record is None:
            raise RuntimeError(_SUPERSEDED.format(step=alive.index, now=self.time))
        gy = gy.detach()
        factor = self.learner.modulator
        if factor is not None:
            now = factor[record.index - 1].to(gy)
            gy = gy * (now.unsqueeze(-1) if now.dim() == 1 else now)
        record.signals = {task: gy}  # what a backward pass left that was broken off is dropped
        return record, gy

    def rows(self, record: Record, gy: Tensor) -> Tensor:
        """The gradient (B, G n) of a step's pre-activations by the immediate path."""
        assert self.learner is not None
        with below_autograd():
            (factors,) = self.learner.factors([record])
            through = self.cell.signal(record.after, record.weights, gy)
            return rows_of(through, self.cell.into_input(factors.psi[0]))

    def differentiate(self, task: int) -> Gradients:
        """The parameters' gradients, once all signals of a backward pass have come."""
        signals = [r.signals.pop(task, None) for r in self.waiting]
        came = [i for i, s in enumerate(signals) if s is not None]
        last, learner = self.last, self.learner
        assert learner is not None
        late = None if last is None else last.signals.pop(task, None)
        if late is not None and last is not None:
            with below_autograd():
                grads = learner.again(last, late)
            if came:
                more = self._take_up(came[-1] + 1, signals[: came[-1] + 1])
                grads = {name: g + more[name] for name, g in grads.items()}
        elif came:
            grads = self._take_up(came[-1] + 1, signals[: came[-1] + 1])
        else:
            return {}
        if came and not self.waiting:
            self._at_home()
        self.doubtful = True
        if self.weights is not None and self.weights.derived:
            self.weights = self.gate = None  # the graph that they were made by is gone
        if self.absent is not None and "w_hh" in grads:
            grads["w_hh"].masked_fill_(self.absent, 0.0)
        return grads
