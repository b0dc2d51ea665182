"""Exclusive or of two cues with a delay between them."""

from typing import Any, ClassVar

import numpy as np
import torch

from .checks import number, steps
from .generated import GeneratedTask, balanced
from .losses import DecisionLoss


class DelayedXOR(GeneratedTask):
    """Did the two cues come through different channels? ``x (T, 2)``, target int64, 1 = different.

    A cue is a Gaussian bump in one of two channels, in the middle of its interval, with a standard
    deviation of a sixth of it; the second cue ends the sequence. Loss: cross-entropy of the logits
    at the last step, ``(B, 2)`` or ``(T, B, 2)``, metric: accuracy; a constant answer reaches 0.5,
    and so does every answer by one cue alone. T = 900 steps of 1 ms by default.

    Args:
        split: ``"train"`` or ``"test"``.
        seed: decides the trials and their noise.
        num_train, num_test: trials in each split.
        dt: step in ms.
        cue, delay: durations in ms, multiples of ``dt``.
        amplitude: height of a bump.
        baseline: level of both channels without one.
        noise_std: standard deviation of the noise a step, above 0: without it there are four
            different trials, and train and test would share them.
        noise_factor, delay_factor, amplitude_factor: factors of shifted sets (delays are rounded
            to steps).
        shift: ``"noise"`` (x 3), ``"amplitude"`` (x 0.7) or ``"delay"`` (x 1.5), for the test
            split.
        dtype: float32 or float64.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value out of range; the message names the argument.
    """

    shifts: ClassVar[dict[str, dict[str, Any]]] = {
        "noise": {"noise_factor": 3.0},
        "amplitude": {"amplitude_factor": 0.7},
        "delay": {"delay_factor": 1.5},
    }
    code = 2

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        *,
        num_train: int = 128,
        num_test: int = 512,
        dt: float = 1.0,
        cue: float = 100.0,
        delay: float = 700.0,
        amplitude: float = 1.0,
        baseline: float = 0.02,
        noise_std: float = 0.01,
        noise_factor: float = 1.0,
        delay_factor: float = 1.0,
        amplitude_factor: float = 1.0,
        shift: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        count, changed = self._begin(split, seed, num_train, num_test, shift, dtype)
        noise_factor = changed.get("noise_factor", noise_factor)
        delay_factor = changed.get("delay_factor", delay_factor)
        amplitude_factor = changed.get("amplitude_factor", amplitude_factor)
        self.dt = dt = number("dt", dt, above=0)
        length = steps("cue", cue, dt, least=1)
        pause = round(steps("delay", delay, dt) * number("delay_factor", delay_factor))
        height = number("amplitude", amplitude, above=0)
        height *= number("amplitude_factor", amplitude_factor, above=0)
        baseline = number("baseline", baseline)
        noise_std = number("noise_std", noise_std, above=0)
        noise_std *= number("noise_factor", noise_factor, above=0)
        trials, noise = self._generators()
        kind = balanced(trials, count, 4)  # all four pairs of cues, as often as each other
        first, second = kind // 2, kind % 2
        time = np.arange(length) - (length - 1) / 2
        bump = height * np.exp(-0.5 * (time / (length / 6)) ** 2)
        x = np.full((count, 2 * length + pause, 2), baseline)
        for channels, begin in ((first, 0), (second, length + pause)):
            for channel in (0, 1):
                x[channels == channel, begin : begin + length, channel] += bump
        x += noise_std * noise.standard_normal(x.shape)
        super().__init__(
            torch.from_numpy(x).to(dtype),
            torch.from_numpy((first != second).astype(np.int64)),
            output_size=2,
            loss_fn=DecisionLoss(),
        )
