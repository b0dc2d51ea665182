"""Tasks of the package neurogym."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._optional import need
from .base import Task
from .checks import SPLITS, dtype_of, split_of, whole
from .losses import ActionLoss, action_accuracy


class Neurogym(Task):
    """Trials of a neurogym task: observations ``x (T, m)``, right actions ``(T,)`` int64.

    Sequences are drawn once, from ``seed`` and the split. Without ``seq_len`` a sequence is a trial
    and all must have the same length; with it, a sequence is a run of trials cut after ``seq_len``
    steps, as neurogym's own data sets are. Loss: cross-entropy of the actions ``(T, B, actions)``
    at every step, metric: accuracy at the steps where the right action isn't 0, which is fixation.

    Args:
        split: ``"train"`` or ``"test"``; they are drawn from different seeds.
        seed: decides the trials.
        env: the name of a neurogym task, such as ``"DelayMatchSample-v0"``, or an environment with
            ``new_trial()``, ``ob (T, m)``, ``gt (T,)``, ``seed(seed)`` and a discrete
            ``action_space``, which is left in its last trial.
        num_train, num_test: sequences in each split.
        seq_len: steps of a sequence, or None.
        dtype: float32 or float64.
        **kwargs: arguments of the environment where ``env`` is a name (``dt=20``).

    Raises:
        ImportError: ``env`` is a name and the package neurogym isn't there.
        TypeError: an argument of another type.
        ValueError: a value out of range, trials of different lengths, actions that aren't discrete.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        *,
        env: Any,
        num_train: int = 128,
        num_test: int = 512,
        seq_len: int | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> None:
        split_of(split)
        whole("seed", seed, 0, 2**32 - 1)
        sizes = {"train": whole("num_train", num_train, 1), "test": whole("num_test", num_test, 1)}
        if seq_len is not None:
            whole("seq_len", seq_len, 1)
        dtype_of(dtype)
        trials = _environment(env, kwargs)
        actions = getattr(getattr(trials, "action_space", None), "n", None)
        if actions is None:
            raise ValueError("env: its actions are not discrete, expected a task with classes")
        stream = np.random.SeedSequence([seed, SPLITS.index(split)]).generate_state(1)[0]
        trials.seed(int(stream))
        x, target = zip(*(_sequence(trials, seq_len) for _ in range(sizes[split])), strict=True)
        lengths = sorted({len(one) for one in target})
        if len(lengths) > 1:
            raise ValueError(
                f"seq_len: got None, but trials have {lengths[0]} to {lengths[-1]} steps; expected "
                "a number of steps"
            )
        super().__init__(
            torch.from_numpy(np.stack(x)).to(dtype),
            torch.from_numpy(np.stack(target)),
            output_size=int(actions),
            loss_fn=ActionLoss(),
            output_steps=None,
            time_targets=True,
        )
        self.split = split

    def metric(self, model_output: Tensor, target: Tensor) -> float:
        """Share of right actions where the right one isn't fixation."""
        return action_accuracy(model_output, target)


def _environment(env: Any, kwargs: dict[str, Any]) -> Any:
    if isinstance(env, str):
        env = need("neurogym", "Neurogym", "pip install neurogym").make(env, **kwargs)
    elif kwargs:
        raise TypeError(
            f"{next(iter(kwargs))}: an argument of the environment, expected only where env is a "
            "name"
        )
    found = getattr(env, "unwrapped", env)  # wrappers don't pass on ob, gt and seed
    for name in ("new_trial", "seed"):
        if not callable(getattr(found, name, None)):
            raise TypeError(
                f"env: got {type(env).__name__}, which has no {name}(); expected the "
                "name of a neurogym task or one of its environments"
            )
    return found


def _sequence(env: Any, seq_len: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The next trial, or as many as ``seq_len`` steps take."""
    x: list[np.ndarray] = []
    target: list[np.ndarray] = []
    length = 0
    while not x or (seq_len is not None and length < seq_len):
        env.new_trial()
        shown, right = np.array(env.ob, dtype=np.float64), np.array(env.gt)
        if len(right) == 0 or len(right) != len(shown):
            raise ValueError(
                f"env: a trial has {len(shown)} observations and {len(right)} right actions, "
                "expected as many, at least one"
            )
        if right.ndim != 1 or not np.issubdtype(right.dtype, np.integer):
            raise ValueError(
                f"env: right actions of shape {right.shape} and type {right.dtype}, expected "
                "integers (T,)"
            )
        x.append(shown.reshape(len(shown), -1))
        target.append(right.astype(np.int64))
        length += len(right)
    return np.concatenate(x)[:seq_len], np.concatenate(target)[:seq_len]
