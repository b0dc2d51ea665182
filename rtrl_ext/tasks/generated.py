"""What the generated tasks have in common: a fixed finite set, drawn from the seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Task
from .checks import SPLITS, choice, dtype_of, split_of, whole

MOST_TRIALS = 1_000_000
Array = NDArray[np.float64]


class GeneratedTask(Task):
    """Base of the generated tasks: trials are drawn once, from ``seed`` and the split."""

    #: tells the tasks' random numbers apart
    code: int

    def _begin(
        self, split: str, seed: int, num_train: int, num_test: int, shift: str | None, dtype: Any
    ) -> tuple[int, dict[str, Any]]:
        """Check what all have in common; the number of trials, and the options of the shift."""
        self.split = split_of(split)
        self.seed = whole("seed", seed, 0)
        sizes = {
            "train": whole("num_train", num_train, 1, MOST_TRIALS),
            "test": whole("num_test", num_test, 1, MOST_TRIALS),
        }
        dtype_of(dtype)
        if shift is None:
            return sizes[split], {}
        shifted = self.shifts[choice("shift", shift, self.shifts)]
        if split != "test":
            raise ValueError(f"shift: got {shift!r} with split {split!r}, expected split 'test'")
        return sizes[split], dict(shifted)

    def _generators(self, split: str | None = None) -> tuple[np.random.Generator, ...]:
        """A generator of what a trial is about, and one of its noise.

        They are apart so that a shifted test set has the trials of the plain one.
        """
        part = SPLITS.index(split or self.split)
        return tuple(np.random.default_rng([self.seed, self.code, part, k]) for k in range(2))


def balanced(rng: np.random.Generator, count: int, classes: int = 2) -> NDArray[np.int64]:
    """Classes ``(count,)`` in random order, each as often as the others, or once more."""
    return rng.permutation(np.arange(count, dtype=np.int64) % classes)
