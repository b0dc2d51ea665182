"""Conditions under which every product is evaluated, and the model as a function of parameters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from .. import _state
from .._checkpoints import recomputable
from .._checks import scalar_loss
from .._mended import mended
from .._reverse import uncompiled
from ._data import Batches

SEED = 0x5EED
_TORCH_RNNS = (nn.RNN, nn.GRU, nn.LSTM)


@contextmanager
def evaluating(
    model: nn.Module,
    device: torch.device,
    exact: bool = True,
    params: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Full precision, no autocast; torch's random state is put back afterwards.

    Gradients are exact, or, without ``exact``, those of the rules as explicit functions. torch's
    own RNNs are run without oneDNN and cuDNN, whose fused layers have no second derivatives.
    Parts of the model under ``torch.utils.checkpoint`` can be differentiated in ``params``.
    """
    cuda = device.type == "cuda"
    with ExitStack() as stack:
        stack.enter_context(_state.exact_gradients() if exact else _state.explicit_rules())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_full_precision())
        stack.enter_context(kept_random_state(device))
        if any(isinstance(m, _TORCH_RNNS) for m in model.modules()):
            if cuda:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            else:
                stack.enter_context(_without_onednn())
        stack.enter_context(uncompiled())
        stack.enter_context(mended(model))
        if params is not None:
            stack.enter_context(recomputable(model, params))
        yield


def _generators(device: torch.device) -> list[torch.Generator]:
    """torch's default generators of the CPU and of ``device``."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """The default generators of the CPU and of ``device`` are put back on leaving."""
    generators = _generators(device)
    states = [g.get_state() for g in generators]
    try:
        yield
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)


@contextmanager
def _without_onednn() -> Iterator[None]:
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 GEMMs without TF32 or bfloat16 passes, which ruin Krylov methods."""
    before = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.allow_tf32
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = cudnn


def check_modules(model: nn.Module) -> None:
    """Refuse layers that tie the sequences of a batch together."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            raise ValueError(
                f"model: {name or 'itself'} is a {type(module).__name__} that uses batch "
                "statistics; put it into evaluation mode (model.eval()), so that the loss is a "
                "mean over sequences"
            )


class Problem:
    """The loss as a function of the chosen parameters; everything else is held fixed.

    ``functional_call`` keeps the module's own parameters, buffers and ``.grad`` out of reach:
    the other parameters enter detached, the buffers as copies. Every call of the model starts from
    the random state ``seed``: dropout masks and noise are the same in all passes over one batch, so
    that primal values and tangents belong to one function (``seed`` None: from the present state).
    """

    seed: int | None = SEED

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        params: Mapping[str, Tensor],
        batches: Batches,
    ) -> None:
        if not callable(loss_fn):
            raise TypeError(
                f"loss_fn: got {type(loss_fn).__name__}, expected a function of (output, target)"
            )
        self.model = model
        self.loss_fn = loss_fn
        self.params = params
        self.batches = batches
        self.checked = False
        """Whether model and loss are known to have the second derivatives that are taken."""
        self._dims: list[int | None] = []

    def point(self) -> dict[str, Tensor]:
        """The chosen parameters' present values, detached."""
        return {name: p.detach() for name, p in self.params.items()}

    def output(self, point: Mapping[str, Tensor], x: Any) -> Any:
        """The model's output at ``point`` (name to tensor)."""
        state: dict[str, Tensor] = {
            name: p.detach() for name, p in self.model.named_parameters() if name not in point
        }
        state.update(_buffer_copies(self.model))
        state.update(point)
        if self.seed is not None:
            for g in _generators(next(iter(point.values())).device):
                g.manual_seed(self.seed)
        return functional_call(self.model, state, (x,))

    def loss(self, output: Any, target: Any) -> Tensor:
        """The scalar loss, checked."""
        return scalar_loss(self.loss_fn(output, target))

    def value(self, point: Mapping[str, Tensor], x: Any, target: Any) -> Tensor:
        """The loss at ``point``."""
        return self.loss(self.output(point, x), target)

    def sequence_losses(self, point: Mapping[str, Tensor], x: Any, target: Any) -> Tensor:
        """The losses (B,) of the single sequences, from one pass over the batch."""
        count, xdim, tdim = self.batches.dims(x, target)
        output = Leaves(self.output(point, x))
        xdim, tdim = xdim % _rank(x), tdim % target.dim()
        outputs = output.tensors + output.others
        dims = self._output_dims(outputs, len(output.tensors), x, count, xdim, tdim)

        def one(b: int) -> Tensor:
            cut = zip(outputs, dims, strict=True)
            parts = tuple(o if d is None else o.narrow(d, b, 1) for o, d in cut)
            at = len(output.tensors)
            return self.loss(output.rebuild(parts[:at], parts[at:]), target.narrow(tdim, b, 1))

        return torch.stack([one(b) for b in range(count)])

    def _output_dims(
        self, outputs: tuple[Tensor, ...], floating: int, x: Any, count: int, xdim: int, tdim: int
    ) -> list[int | None]:
        """The dimension of each output that counts the sequences: the one of their number.

        Where several have that size, it is the one that grows with one sequence more, found once.
        A model that fails with another number is taken to put it where ``x`` has it, in outputs of
        another rank where the target has it. None for an output after the first ``floating`` ones
        that has no such dimension.
        """
        sizes = [[d for d, n in enumerate(o.shape) if n == count] for o in outputs]
        for o, possible in zip(outputs[:floating], sizes, strict=False):
            if not possible:
                raise ValueError(
                    f"model output: shape {tuple(o.shape)} has no dimension with the batch's "
                    f"{count} sequences"
                )
        clear = [len(possible) == 1 for possible in sizes[:floating]]
        if all(clear) and not any(sizes[floating:]):
            return [possible[0] if possible else None for possible in sizes]
        known = self._dims
        fits = len(known) == len(sizes)
        if fits and all(d in s if s else d is None for d, s in zip(known, sizes, strict=True)):
            return known
        grown = self._shapes_with_one_more(x, xdim)
        dims: list[int | None] = []
        for i, (o, possible) in enumerate(zip(outputs, sizes, strict=True)):
            if grown is None:
                usual = xdim if o.dim() == _rank(x) else tdim
                found = [usual] if usual in possible else possible
            else:
                found = [d for d in possible if grown[i][d : d + 1] == (count + 1,)]
            if i >= floating and not found:
                dims.append(None)
                continue
            if len(found) != 1:
                raise ValueError(
                    f"model output: shape {tuple(o.shape)} has the batch's {count} sequences along "
                    f"dimensions {', '.join(map(str, possible))}, of which {len(found)} go with "
                    "their number; expected one"
                )
            dims += found
        self._dims = dims
        return dims

    def _shapes_with_one_more(self, x: Any, xdim: int) -> list[tuple[int, ...]] | None:
        """The outputs' shapes for ``x`` and its first sequence again; None if the model fails, or
        for packed sequences."""
        if isinstance(x, PackedSequence):
            return None
        more = torch.cat([x, x.narrow(xdim, 0, 1)], xdim)
        point = self.point()
        with torch.no_grad(), kept_random_state(next(iter(point.values())).device):
            try:
                grown = Leaves(self.output(point, more))
                return [tuple(o.shape) for o in grown.tensors + grown.others]
            except torch.OutOfMemoryError:
                raise
            except Exception:
                return None


def _rank(x: Any) -> int:
    """Number of dimensions of a batch, that of the padded one for packed sequences."""
    return x.data.dim() + 1 if isinstance(x, PackedSequence) else x.dim()


def _buffer_copies(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that a forward pass might write to; this library's cells don't."""
    return {
        f"{prefix}.{name}" if prefix else name: b.clone()
        for prefix, module in model.named_modules()
        if not type(module).__module__.startswith("rtrl_ext.")
        for name, b in module.named_buffers(recurse=False)
    }


class Leaves:
    """The floating tensors inside a nested value (``tensors``) apart from the rest.

    ``others`` holds the remaining tensors, such as the batch sizes of a ``PackedSequence``.
    """

    def __init__(self, value: Any) -> None:
        self._all, self._spec = pytree.tree_flatten(value)
        self._at = [i for i, leaf in enumerate(self._all) if _is_tensor(leaf, True)]
        self._rest = [i for i, leaf in enumerate(self._all) if _is_tensor(leaf, False)]
        self.tensors = tuple(self._all[i] for i in self._at)
        self.others = tuple(self._all[i] for i in self._rest)

    def rebuild(self, tensors: tuple[Tensor, ...], others: tuple[Tensor, ...] | None = None) -> Any:
        """The nested value with ``tensors`` (and ``others``, if given) in place of its own."""
        leaves = list(self._all)
        for i, t in zip(self._at, tensors, strict=True):
            leaves[i] = t
        if others is not None:
            for i, t in zip(self._rest, others, strict=True):
                leaves[i] = t
        return pytree.tree_unflatten(leaves, self._spec)


def _is_tensor(leaf: Any, floating: bool) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() == floating


def zeros(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Dense zero tangents.

    torch 2.13 writes into the symbolic zeros that it makes for inputs without a tangent
    (``F.mse_loss`` with reduction "mean": "ZeroTensors are immutable"); dense ones are safe.
    """
    return tuple(torch.zeros_like(t) for t in tensors)
