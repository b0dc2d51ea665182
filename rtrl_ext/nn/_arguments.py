"""The input conventions of recurrent modules, checked and brought into one layout."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._checks import check_lengths, check_like, check_shape, check_tensor, tuple_of_states


@dataclass
class Arguments:
    """A call's arguments, time-major and batched, and how to hand the results back.

    x (T, B, m); states: the initial ones, each (layers, B, n), or None for zeros; drive: per layer
    (T, B, G n) or None; lengths (B,) int64 or None.
    """

    x: Tensor
    states: tuple[Tensor, ...] | None
    drive: list[Tensor | None]
    lengths: Tensor | None
    batch_first: bool
    unbatched: bool
    packed: PackedSequence | None

    def results(
        self, output: Tensor, finals: tuple[Tensor, ...]
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        """Output (T, B, n) and final states (layers, B, n) in the caller's layout."""
        if self.packed is not None:
            order = self.packed.sorted_indices
            rows = output if order is None else output.index_select(1, order)
            data = rows.flatten(0, 1).index_select(0, _packed_rows(self.packed))
            return PackedSequence(
                data, self.packed.batch_sizes, order, self.packed.unsorted_indices
            ), finals
        if self.unbatched:
            return output.squeeze(1), tuple(s.squeeze(1) for s in finals)
        return (output.transpose(0, 1) if self.batch_first else output), finals


def _packed_lengths(packed: PackedSequence) -> Tensor:
    """The lengths in the packed (falling) order, on the CPU."""
    sizes = packed.batch_sizes
    rows = torch.arange(int(sizes[0]))
    return (sizes.unsqueeze(1) > rows).sum(0)


def _packed_rows(packed: PackedSequence) -> Tensor:
    """Where the packed steps are among the T B rows of a padded batch in the packed order."""
    sizes = packed.batch_sizes
    present = torch.arange(int(sizes[0])) < sizes.unsqueeze(1)
    return present.flatten().nonzero().squeeze(1).to(packed.data.device)


def _padded(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """As ``pad_packed_sequence``: (T, B, m) and lengths on the CPU, in the batch's own order.

    By operations that have forward-mode derivatives and batching rules, which torch's have not.
    """
    steps, batch = len(packed.batch_sizes), int(packed.batch_sizes[0])
    data, order, lengths = packed.data, packed.unsorted_indices, _packed_lengths(packed)
    rows = data.new_zeros(steps * batch, *data.shape[1:])
    x = rows.index_copy(0, _packed_rows(packed), data).unflatten(0, (steps, batch))
    if order is None:
        return x, lengths
    return x.index_select(1, order), lengths.index_select(0, order.cpu())


def prepare(
    x: Any,
    h0: Any,
    drive: Any,
    lengths: Any,
    *,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    batch_first: bool,
    weight: Tensor,
    any_dtype: bool,
    gates: int = 1,
    state_names: tuple[str, ...] = ("h0",),
) -> Arguments:
    """Check a recurrent module's arguments (TypeError, ValueError) and bring them into one layout.

    ``h0`` is a tensor, or with several ``state_names`` a tuple of them. ``weight`` gives the
    expected dtype and device; ``any_dtype`` (autocast) allows other floating dtypes.
    """
    packed = None
    if isinstance(x, PackedSequence):
        packed = x
        if lengths is not None:
            raise ValueError("lengths came with a PackedSequence, which has its own; expected None")
        x, lengths = _padded(packed)
        batch_first_x = False
    else:
        check_tensor("x", x)
        batch_first_x = batch_first
    ranks = "(B, T, input_size)" if batch_first_x else "(T, B, input_size)"
    if x.dim() not in (2, 3):
        raise ValueError(f"x has shape {tuple(x.shape)}; expected {ranks} or (T, input_size)")
    if x.shape[-1] != input_size:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected its last size to be {input_size}")
    unbatched = x.dim() == 2

    def check(name: str, value: Tensor) -> None:
        if any_dtype and value.is_floating_point():
            check_like(name, value, value.dtype, weight.device, "the weights")
        else:
            check_like(name, value, weight.dtype, weight.device, "the weights")

    check("x", x)
    if unbatched:
        x = x.unsqueeze(1)
    elif batch_first_x:
        x = x.transpose(0, 1)
    steps, batch = x.shape[:2]
    if steps == 0:
        raise ValueError("x has T = 0 steps; expected at least one")
    n, one = hidden_size, (batch,) if not unbatched else ()
    states = None
    if h0 is not None:
        states = tuple_of_states(h0, state_names)
        for name, state in zip(state_names, states, strict=True):
            check_shape(name, state, (num_layers, *one, n))
            check(name, state)
        states = tuple(s.unsqueeze(1) for s in states) if unbatched else states
    if unbatched and lengths is not None:
        raise ValueError("lengths came with an unbatched x; expected a batch (T, B, input_size)")
    return Arguments(
        x,
        states,
        _drives(drive, check, steps, batch, gates * n, num_layers, batch_first, unbatched),
        check_lengths(lengths, steps, batch, x.device),
        batch_first,
        unbatched,
        packed,
    )


def _drives(
    drive: Any,
    check: Any,
    steps: int,
    batch: int,
    n: int,
    layers: int,
    batch_first: bool,
    unbatched: bool,
) -> list[Tensor | None]:
    if drive is None:
        return [None] * layers
    if unbatched:
        shape: tuple[int, ...] = (steps, n)
    else:
        shape = (batch, steps, n) if batch_first else (steps, batch, n)
    check_shape("drive", drive, shape, (layers, *shape))
    check("drive", drive)
    each = drive if drive.dim() > len(shape) else drive.unsqueeze(0)
    if unbatched:
        each = each.unsqueeze(2)
    elif batch_first:
        each = each.transpose(1, 2)
    rows: list[Tensor | None] = list(each.unbind(0))
    return rows + [None] * (layers - len(rows))
