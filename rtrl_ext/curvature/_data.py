"""Data of the operators: one pair or an iterable of pairs, split into batches and weighted."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

Pair = tuple[Any, Any]


def is_pair(data: Any) -> bool:
    """Whether ``data`` is one ``(x, target)`` rather than an iterable of such pairs."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    both = [isinstance(d, tuple | list) and len(d) == 2 for d in data]
    return not all(both)


class Batches:
    """Pairs ``(x, target)``, each of at most ``batch_size`` sequences, the same in every pass.

    Args:
        data: ``(x, target)`` or an iterable of such pairs. An iterator or a generator is read once
            and kept. Other iterables (a ``DataLoader``) are read again in every pass, under the
            random state of the first.
        batch_size: split every pair into pieces of this many sequences (None: don't split).
        batch_dim: dimension of ``x`` that counts the sequences.
        target_batch_dim: the same of the target; None means ``batch_dim`` if that dimension has the
            batch's size, else 0.
        num_terms: weight of a piece from its target; None means ``target.numel()``.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        batch_dim: int = 1,
        target_batch_dim: int | None = None,
        num_terms: Callable[[Any], int] | None = None,
    ) -> None:
        if batch_size is not None:
            batch_size = _index(batch_size, "batch_size")
            if batch_size < 1:
                raise ValueError(f"batch_size: got {batch_size}, expected None or at least 1")
        if num_terms is not None and not callable(num_terms):
            raise TypeError(
                f"num_terms: got {type(num_terms).__name__}, expected a function of the target"
            )
        self.batch_size = batch_size
        self.batch_dim = _index(batch_dim, "batch_dim")
        self.target_batch_dim = (
            None if target_batch_dim is None else _index(target_batch_dim, "target_batch_dim")
        )
        self.num_terms = num_terms
        self.limit: Callable[[int, Any, Any], int | None] | None = None
        """``limit(number of the pair, x, target)``: sequences in a piece, None: as given."""
        self._pairs = self._source(data)
        self._count: int | None = None  # pairs in a pass
        self._target_dims: dict[int, int] = {}  # by rank, from a batch in which it is clear
        self._drawn_from: Tensor | None = None  # random state at the first pass
        if isinstance(self._pairs, list):
            for pair in self._pairs:  # refuse now what no product could use
                for _ in self._split(pair, self.batch_size):
                    pass

    @staticmethod
    def _source(data: Any) -> Iterable[Any]:
        if is_pair(data):
            return [tuple(data)]
        if isinstance(data, Tensor | Mapping | str) or not isinstance(data, Iterable):
            raise TypeError(
                f"data: got {type(data).__name__}, expected (x, target) or an iterable of such "
                "pairs"
            )
        if isinstance(data, tuple | list | Iterator):
            pairs = [_check_pair(p) for p in data]
            if not pairs:
                raise ValueError("data: got no batch, expected at least one (x, target)")
            return pairs
        return data

    def __iter__(self) -> Iterator[Pair]:
        count = pieces = 0
        for pair in self._replayed():
            whole = _ordinary(_check_pair(pair))
            count += 1
            for piece in self._split(whole, self.batch_size):
                most = None if self.limit is None else self.limit(pieces, *piece)
                pieces += 1
                yield from self._split(piece, most)
        if self._count not in (None, count):
            raise ValueError(
                f"data: the iterable gave {self._count} batches in the first pass and {count} now; "
                "expected the same in every pass: give a list, or an iterable that starts anew"
            )
        if count == 0:
            raise ValueError("data: the iterable gave no batch, expected at least one (x, target)")
        self._count = count

    def _replayed(self) -> Iterator[Any]:
        """The pairs; what a loader draws from torch's default generator, or from its own, is the
        same in every pass and leaves no trace."""
        if isinstance(self._pairs, list):
            yield from self._pairs
            return
        own = _own_generators(self._pairs)
        states = [g.get_state() for g in own]
        if self._drawn_from is None:
            self._drawn_from = torch.get_rng_state()
        drawn, pairs = self._drawn_from, None
        try:
            while True:
                outside = torch.get_rng_state()
                torch.set_rng_state(drawn)
                try:
                    pairs = iter(self._pairs) if pairs is None else pairs
                    pair = next(pairs)
                except StopIteration:
                    return
                finally:
                    drawn = torch.get_rng_state()
                    torch.set_rng_state(outside)
                yield pair
        finally:
            for g, state in zip(own, states, strict=True):
                g.set_state(state)

    @property
    def single(self) -> bool:
        """Whether there is one batch in all."""
        return isinstance(self._pairs, list) and sum(1 for _ in self) == 1

    def weight(self, target: Any) -> float:
        """Number of valid terms in a piece's loss."""
        if self.num_terms is None:
            packed = [  # without their batch sizes and orders
                t.data if isinstance(t, PackedSequence) else t
                for t in pytree.tree_leaves(target, lambda t: isinstance(t, PackedSequence))
            ]
            leaves = [t for t in packed if isinstance(t, Tensor)]
            if not leaves:
                raise TypeError(
                    f"target: got {type(target).__name__}, expected a tensor (or give num_terms=)"
                )
            return float(sum(t.numel() for t in leaves))
        terms = self.num_terms(target)
        try:
            value = float(terms)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"num_terms: returned {type(terms).__name__}, expected a number"
            ) from None
        if not 0 <= value < math.inf:
            raise ValueError(f"num_terms: returned {value}, expected a finite number >= 0")
        return value

    def _split(self, pair: Pair, most: int | None) -> Iterator[Pair]:
        x, target = pair
        if most is None:
            yield pair
            return
        count, xdim, tdim = self.dims(x, target)
        if count <= most:
            yield pair
            return
        yield from zip(x.split(most, xdim), target.split(most, tdim), strict=True)

    def dims(self, x: Any, target: Any) -> tuple[int, int, int]:
        """Number of sequences, and the dimensions of ``x`` and ``target`` that count them."""
        packed = isinstance(x, PackedSequence) and isinstance(target, Tensor)
        if packed and self.batch_size is None:  # nothing is to be split
            count = int(x.batch_sizes[0])
            return count, self.batch_dim, self._target_dim(target, count)
        for name, value in (("x", x), ("target", target)):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"data: {name} is {type(value).__name__}; only tensors can be split into "
                    "sequences, give an iterable of smaller batches instead of batch_size"
                )
        if not -x.dim() <= self.batch_dim < x.dim():
            raise ValueError(f"batch_dim: got {self.batch_dim}, but x has shape {tuple(x.shape)}")
        count = x.shape[self.batch_dim]
        return count, self.batch_dim, self._target_dim(target, count)

    def _target_dim(self, target: Tensor, count: int) -> int:
        if self.target_batch_dim is not None:
            dim = self.target_batch_dim
            if not -target.dim() <= dim < target.dim() or target.shape[dim] != count:
                raise ValueError(
                    f"target_batch_dim: got {dim}, but the target has shape {tuple(target.shape)} "
                    f"and the batch {count} sequences"
                )
            return dim
        known = self._target_dims.get(target.dim())  # a piece may have as many sequences as steps
        if known is not None and target.shape[known] == count:
            return known
        dim = batch_dim_of(
            target, self.batch_dim, count, "target", "say which counts them: target_batch_dim="
        )
        if count > 1:
            self._target_dims[target.dim()] = dim
        return dim


def batch_dim_of(t: Tensor, batch_dim: int, count: int, name: str, remedy: str) -> int:
    """``batch_dim`` if that dimension of ``t`` has size ``count``, else 0; ambiguity is refused."""
    shape = tuple(t.shape)
    at_dim = -t.dim() <= batch_dim < t.dim() and t.shape[batch_dim] == count
    at_zero = t.dim() > 0 and t.shape[0] == count
    if at_dim and at_zero and batch_dim % t.dim() != 0 and count != 1:
        raise ValueError(
            f"{name}: shape {shape} has {count} entries along dimension 0 and along dimension "
            f"{batch_dim}, and the batch has {count} sequences; {remedy}"
        )
    if at_dim:
        return batch_dim
    if at_zero:
        return 0
    raise ValueError(
        f"{name}: shape {shape} has the batch's {count} sequences neither along dimension "
        f"{batch_dim} nor along 0"
    )


def _check_pair(pair: Any) -> Pair:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        size = f" of length {len(pair)}" if isinstance(pair, tuple | list) else ""
        remedy = (
            "; pick them: ((b['x'], b['y']) for b in data)" if isinstance(pair, Mapping) else ""
        )
        raise TypeError(
            f"data: got an entry of type {type(pair).__name__}{size}, expected (x, target){remedy}"
        )
    return pair[0], pair[1]


def _ordinary(pair: Pair) -> Pair:
    """Tensors made in inference mode as ordinary ones, which graphs can save."""
    if not any(isinstance(t, Tensor) and t.is_inference() for t in pytree.tree_leaves(pair)):
        return pair
    with torch.inference_mode(False):
        x, target = pytree.tree_map_only(
            Tensor, lambda t: t.clone() if t.is_inference() else t, pair
        )
    return x, target


def _index(value: Any, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {type(value).__name__}, expected an integer") from None


def _own_generators(source: Any) -> list[torch.Generator]:
    """Those of a loader and of its sampler."""
    found = (
        getattr(source, "generator", None),
        getattr(getattr(source, "sampler", None), "generator", None),
    )
    return [g for g in found if isinstance(g, torch.Generator)]
