"""Delayed match to sample."""

import math
from typing import Any, ClassVar

import numpy as np
import torch

from .checks import number, steps, whole
from .generated import GeneratedTask, balanced
from .losses import DecisionLoss


class DelayedMatchToSample(GeneratedTask):
    """Was the second stimulus the first one? ``x (T, 1 + num_channels)``, target int64, 1 = match.

    Channel 0 is fixation: 1 until the decision, then 0. The others are a ring of units tuned to
    angles by ``½ + ½ cos``; they show the sample, nothing during the delay, and the test, which is
    the same angle or, as often, another one of the set. White noise is added everywhere. Loss:
    cross-entropy of logits ``(steps, B, 2)`` over the decision (the last ``output_steps`` steps),
    metric: accuracy; a constant answer reaches 0.5. Timing as in neurogym's delayed-match tasks
    (Molano-Mazón et al. 2022), T = 40 steps of 20 ms by default.

    Args:
        split: ``"train"`` or ``"test"``.
        seed: decides the trials and their noise.
        num_train, num_test: trials in each split.
        dt: step in ms.
        fixation, sample, delay, test, decision: durations in ms, multiples of ``dt``.
        num_angles: angles of the set, equally spaced.
        num_channels: ring units.
        noise_std: standard deviation of the noise over 100 ms: ``noise_std √(100/dt)`` a step.
            Above 0: without noise there are few different trials, and train and test would share
            them.
        noise_factor, delay_factor: factors of noise and delay (rounded to steps) of shifted sets.
        unseen_angles: angles halfway between those of the set instead.
        shift: ``"noise"`` (x 3), ``"delay"`` (x 1.5) or ``"angles"`` (unseen), for the test split.
        dtype: float32 or float64.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value out of range; the message names the argument.
    """

    shifts: ClassVar[dict[str, dict[str, Any]]] = {
        "noise": {"noise_factor": 3.0},
        "delay": {"delay_factor": 1.5},
        "angles": {"unseen_angles": True},
    }
    code = 1

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        *,
        num_train: int = 128,
        num_test: int = 1024,
        dt: float = 20.0,
        fixation: float = 0.0,
        sample: float = 100.0,
        delay: float = 500.0,
        test: float = 100.0,
        decision: float = 100.0,
        num_angles: int = 4,
        num_channels: int = 8,
        noise_std: float = 0.1,
        noise_factor: float = 1.0,
        delay_factor: float = 1.0,
        unseen_angles: bool = False,
        shift: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        count, changed = self._begin(split, seed, num_train, num_test, shift, dtype)
        noise_factor = changed.get("noise_factor", noise_factor)
        delay_factor = changed.get("delay_factor", delay_factor)
        unseen_angles = changed.get("unseen_angles", unseen_angles)
        self.dt = dt = number("dt", dt, above=0)
        lengths = [
            steps("fixation", fixation, dt),
            steps("sample", sample, dt, least=1),
            round(steps("delay", delay, dt) * number("delay_factor", delay_factor)),
            steps("test", test, dt, least=1),
            steps("decision", decision, dt, least=1),
        ]
        whole("num_angles", num_angles, 2, 360)
        whole("num_channels", num_channels, 2)
        noise_std = number("noise_std", noise_std, above=0)
        noise_factor = number("noise_factor", noise_factor, above=0)
        if not isinstance(unseen_angles, bool):
            raise TypeError(f"unseen_angles: got {type(unseen_angles).__name__}, expected bool")
        trials, noise = self._generators()
        match = balanced(trials, count)
        first = trials.integers(num_angles, size=count)
        other = (first + trials.integers(1, num_angles, size=count)) % num_angles
        second = np.where(match == 1, first, other)
        ends = np.cumsum(lengths)
        x = np.zeros((count, int(ends[-1]), 1 + num_channels))
        x[:, : ends[3], 0] = 1.0
        preferred = 2 * math.pi * np.arange(num_channels) / num_channels
        for shown, begin, end in ((first, ends[0], ends[1]), (second, ends[2], ends[3])):
            angle = 2 * math.pi * (shown + 0.5 * unseen_angles) / num_angles
            x[:, begin:end, 1:] = (0.5 + 0.5 * np.cos(angle[:, None] - preferred))[:, None]
        x += noise_std * noise_factor * math.sqrt(100 / dt) * noise.standard_normal(x.shape)
        super().__init__(
            torch.from_numpy(x).to(dtype),
            torch.from_numpy(match),
            output_size=2,
            loss_fn=DecisionLoss(lengths[4]),
            output_steps=lengths[4],
        )
