"""Generation of patterns in time."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .checks import number, steps, whole
from .generated import GeneratedTask
from .losses import StepLoss, normalised_error


class PatternGeneration(GeneratedTask):
    """Frozen noise drives sums of sinusoids: ``x (T, num_inputs)``, target ``(T, num_outputs)``.

    A pattern has its own frozen input, standard normal at every step, and its own target: sinusoids
    of the given frequencies, amplitudes uniform in [0.5, 2], phases uniform, scaled to a mean
    square of 1. The training set has one sequence a pattern; test sequence i is pattern ``i mod
    num_train`` with fresh noise on its input. Loss: mean squared error over all steps, output and
    target ``(T, B, num_outputs)``; a constant reaches 1. Metric: error, the squared error over the
    target's variance. After Bellec et al. 2020. T = 200 steps of 10 ms by default.

    Args:
        split: ``"train"`` or ``"test"``.
        seed: decides the patterns and the noise.
        num_train: patterns. num_test: test sequences.
        dt: step in ms.
        duration: in ms, a multiple of ``dt``.
        frequencies: in Hz, below the Nyquist frequency 500/dt.
        num_inputs, num_outputs: channels.
        noise_std: standard deviation of the noise on the frozen input, whose own is 1. None: 0 in
            training, 0.1 in the test set, where it must be above 0 unless ``phase_offset`` is.
        phase_offset: how many ms later in the pattern a sequence begins; input and target go round
            at the end, so each frequency f times ``duration`` must be a whole number.
        shift: ``"noise"`` (0.3), ``"large-noise"`` (1) or ``"phase"`` (an eighth of the duration),
            for the test split.
        dtype: float32 or float64.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value out of range; the message names the argument.
    """

    metric_name: ClassVar[str] = "error"
    shifts: ClassVar[dict[str, dict[str, Any]]] = {
        "noise": {"noise_std": 0.3},
        "large-noise": {"noise_std": 1.0},
        "phase": {"phase_offset": None},  # depends on the duration
    }
    code = 4

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        *,
        num_train: int = 16,
        num_test: int = 64,
        dt: float = 10.0,
        duration: float = 2000.0,
        frequencies: Sequence[float] = (0.5, 1.0, 2.0, 3.0, 4.0),
        num_inputs: int = 20,
        num_outputs: int = 1,
        noise_std: float | None = None,
        phase_offset: float = 0.0,
        shift: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        count, changed = self._begin(split, seed, num_train, num_test, shift, dtype)
        self.dt = dt = number("dt", dt, above=0)
        length = steps("duration", duration, dt, least=2)
        noise_std = changed.get("noise_std", noise_std)
        if "phase_offset" in changed:
            phase_offset = max(1, length // 8) * dt
        hertz = _frequencies(frequencies, dt)
        whole("num_inputs", num_inputs, 1)
        whole("num_outputs", num_outputs, 1)
        if noise_std is None:
            noise_std = 0.0 if split == "train" else 0.1
        noise_std = number("noise_std", noise_std)
        offset = steps("phase_offset", phase_offset, dt)
        if offset >= length:
            raise ValueError(
                f"phase_offset: got {phase_offset:g} ms, expected less than the duration"
            )
        if offset and np.any(np.abs(hertz * duration / 1000 % 1 - 0.5) < 0.5 - 1e-9):
            raise ValueError(
                f"phase_offset: got {phase_offset:g} ms, expected 0, or frequencies that are "
                f"multiples of {1000 / duration:g} Hz"
            )
        if split == "test" and noise_std == 0 and offset == 0:
            raise ValueError(
                "noise_std: got 0, expected more than 0 for the test split: it would be the "
                "training set"
            )
        patterns, _ = self._generators("train")  # the test set is about the same patterns
        _, noise = self._generators()
        frozen = patterns.standard_normal((num_train, length, num_inputs))
        shape = (num_train, 1, num_outputs, len(hertz))
        amplitude = patterns.uniform(0.5, 2.0, shape)
        phase = patterns.uniform(0.0, 2 * math.pi, shape)
        time = (np.arange(length) * dt / 1000)[:, None, None]
        wave = (amplitude * np.sin(2 * math.pi * hertz * time + phase)).sum(-1)
        wave /= np.sqrt(np.square(wave).mean(1, keepdims=True))
        which = np.arange(count) % num_train
        x = np.roll(frozen, -offset, 1)[which]
        if noise_std:
            x = x + noise_std * noise.standard_normal(x.shape)
        super().__init__(
            torch.from_numpy(x).to(dtype),
            torch.from_numpy(np.roll(wave, -offset, 1)[which]).to(dtype),
            output_size=num_outputs,
            loss_fn=StepLoss(),
            output_steps=None,
            time_targets=True,
        )

    def metric(self, model_output: Tensor, target: Tensor) -> float:
        """Squared error over the target's variance, the mean of sequences and outputs."""
        return normalised_error(model_output, target)


def _frequencies(value: Any, dt: float) -> np.ndarray:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = (value,)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"frequencies: got {type(value).__name__}, expected numbers in Hz")
    found = [number(f"frequencies[{i}]", v, above=0) for i, v in enumerate(value)]
    if not found:
        raise ValueError("frequencies: got none, expected at least one")
    if max(found) >= 500 / dt:
        raise ValueError(
            f"frequencies: got {max(found):g} Hz, expected below {500 / dt:g} Hz, half a cycle a "
            f"step of {dt:g} ms"
        )
    return np.array(found)
