"""What every task has in common: tensors in memory, time-major batches in a seeded order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .losses import decision_accuracy


class Task(Dataset[tuple[Tensor, Tensor]]):
    """Sequences ``x (N, T, m)`` and targets ``(N, ...)``, all in memory.

    Item ``i`` is ``(x (T, m), target)``. ``loss_fn(model_output, target)`` is a scalar, the mean
    over its terms; ``input_size`` is m and ``output_size`` the number of readout units.

    Args:
        x, target: the sequences and their targets.
        output_size: readout units.
        loss_fn: the loss of a batch.
        output_steps: how many of the last steps the loss reads; None: all of them. A model that
            reads out one step gives ``(B, output_size)``, of more ``(steps, B, output_size)``.
        time_targets: targets are sequences ``(N, T, ...)``, in batches ``(T, B, ...)``.
    """

    #: what `metric` measures: ``"accuracy"`` (higher is better) or ``"error"`` (lower is better)
    metric_name: ClassVar[str] = "accuracy"
    #: length of a step in ms, where the task has one
    dt: float = 1.0
    #: named shifts of the test set: the options that differ in each
    shifts: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        x: Tensor,
        target: Tensor,
        *,
        output_size: int,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        output_steps: int | None = 1,
        time_targets: bool = False,
    ) -> None:
        if x.dim() != 3:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (N, T, m)")
        if target.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"target: got {tuple(target.shape)}, expected {x.shape[0]} entries as in x"
            )
        if time_targets and target.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"target: got {tuple(target.shape)}, expected (N, T, ...) with {x.shape[1]} steps"
            )
        self.x = x
        self.target = target
        self.input_size = int(x.shape[2])
        self.output_size = output_size
        self.loss_fn = loss_fn
        self.output_steps = output_steps
        self.time_targets = time_targets

    def metric(self, model_output: Tensor, target: Tensor) -> float:
        """Accuracy or error (`metric_name`) of a batch's output, shaped as for ``loss_fn``."""
        return decision_accuracy(model_output, target, self.output_steps or len(model_output))

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.target[index]

    def collate_fn(self, samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """A time-major batch from a list of items.

        ``(x (T, B, m), target)``; targets ``(B, ...)``, or ``(T, B, ...)`` if they are sequences.
        """
        return (
            torch.stack([x for x, _ in samples], 1),
            torch.stack([torch.as_tensor(t) for _, t in samples], int(self.time_targets)),
        )

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The items ``index`` as one time-major batch, shaped as by `collate_fn`."""
        target = self.target[index]
        if self.time_targets:
            target = target.transpose(0, 1).contiguous()
        return self.x[index].transpose(0, 1).contiguous(), target

    def loader(
        self,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        *,
        drop_last: bool = False,
    ) -> "Loader":
        """Batches in order, or in a fresh order each epoch that depends on ``seed`` alone."""
        return Loader(self, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)


class Loader:
    """Time-major batches of a :class:`Task`; iterating once is one epoch.

    The order of an epoch is drawn from ``seed`` and goes on from epoch to epoch, so that two
    loaders of the same seed give the same batches.
    """

    def __init__(
        self,
        task: Task,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size: got {type(batch_size).__name__}, expected int")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        if drop_last and batch_size > len(task):
            raise ValueError(
                f"batch_size: got {batch_size}, expected at most the {len(task)} sequences"
            )
        self.task = task
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.task), self.batch_size)
        return whole + int(rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.task)
        order = torch.randperm(count, generator=self._generator) if self.shuffle else None
        for i in range(len(self)):
            span = slice(i * self.batch_size, min((i + 1) * self.batch_size, count))
            yield self.task.batch(span if order is None else order[span])

    def forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Epoch after epoch, without end."""
        while True:
            yield from self
