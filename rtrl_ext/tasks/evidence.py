"""Accumulation of evidence in spikes."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from .checks import number, probability, steps, whole
from .generated import GeneratedTask, balanced
from .losses import DecisionLoss


class EvidenceAccumulation(GeneratedTask):
    """On which side were more cues? ``x (T, num_inputs)`` of 0 and 1, target int64, 1 = right.

    Cues come one by one from the left or the right, then there is a delay, then a recall signal.
    A quarter of the inputs each: left cues, right cues, recall signal, background; they spike as
    Poisson processes do (at most once a step). Loss: cross-entropy of logits ``(steps, B, 2)``
    over the recall (the last ``output_steps`` steps), metric: accuracy; a constant answer reaches
    0.5. Bellec et al. 2020, after Morcos and Harvey 2016. T = 2,000 steps of 1 ms by default.

    Args:
        split: ``"train"`` or ``"test"``.
        seed: decides the cues and the spikes.
        num_train, num_test: trials in each split.
        dt: step in ms.
        num_cues: cues a trial, an odd number.
        cue, gap, delay, recall: durations in ms, multiples of ``dt``: of a cue, of the pause after
            each, of the delay after the last, of the recall.
        side_probability: probability, 0.5 to 1, that a cue comes from the trial's side; trials
            whose majority came out on the other side are drawn again.
        num_inputs: input lines, a multiple of 4.
        cue_rate, recall_rate, background_rate: in Hz; at most one spike a step, 1000/dt.
        cue_factor, background_factor, delay_factor: factors of shifted sets (delays are rounded to
            steps).
        shift: ``"noise"`` (background x 3), ``"delay"`` (x 1.5) or ``"rate"`` (of cues, x 0.7),
            for the test split.
        dtype: float32 or float64.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value out of range; the message names the argument.
    """

    shifts: ClassVar[dict[str, dict[str, Any]]] = {
        "noise": {"background_factor": 3.0},
        "delay": {"delay_factor": 1.5},
        "rate": {"cue_factor": 0.7},
    }
    code = 3

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        *,
        num_train: int = 128,
        num_test: int = 256,
        dt: float = 1.0,
        num_cues: int = 7,
        cue: float = 100.0,
        gap: float = 50.0,
        delay: float = 850.0,
        recall: float = 100.0,
        side_probability: float = 0.7,
        num_inputs: int = 40,
        cue_rate: float = 40.0,
        recall_rate: float = 40.0,
        background_rate: float = 10.0,
        cue_factor: float = 1.0,
        background_factor: float = 1.0,
        delay_factor: float = 1.0,
        shift: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        count, changed = self._begin(split, seed, num_train, num_test, shift, dtype)
        cue_factor = changed.get("cue_factor", cue_factor)
        background_factor = changed.get("background_factor", background_factor)
        delay_factor = changed.get("delay_factor", delay_factor)
        self.dt = dt = number("dt", dt, above=0)
        whole("num_cues", num_cues, 1)
        if num_cues % 2 == 0:
            raise ValueError(f"num_cues: got {num_cues}, expected an odd number: no ties")
        whole("num_inputs", num_inputs, 4)
        if num_inputs % 4:
            raise ValueError(f"num_inputs: got {num_inputs}, expected a multiple of 4")
        shown = steps("cue", cue, dt, least=1)
        period = shown + steps("gap", gap, dt)
        asked = steps("recall", recall, dt, least=1)
        pause = round(steps("delay", delay, dt) * number("delay_factor", delay_factor))
        fair = probability("side_probability", side_probability, low=0.5)
        spike = {
            name: _spike_probability(name, rate, factor, dt)
            for name, rate, factor in (
                ("cue_rate", cue_rate, number("cue_factor", cue_factor, above=0)),
                ("recall_rate", recall_rate, 1.0),
                (
                    "background_rate",
                    background_rate,
                    number("background_factor", background_factor, above=0),
                ),
            )
        }
        trials, noise = self._generators()
        side = balanced(trials, count)
        right = _cues(trials, side, num_cues, fair)
        group = num_inputs // 4
        x = torch.zeros(count, num_cues * period + pause + asked, num_inputs, dtype=dtype)
        chance = np.zeros((x.shape[1], num_inputs))
        chance[:, 3 * group :] = spike["background_rate"]
        chance[-asked:, 2 * group : 3 * group] = spike["recall_rate"]
        for i in range(count):  # trial by trial: all at once takes much memory
            own = chance.copy()
            for k, on_right in enumerate(right[i]):
                lines = slice(group, 2 * group) if on_right else slice(0, group)
                own[k * period : k * period + shown, lines] = spike["cue_rate"]
            x[i] = torch.from_numpy(noise.random(own.shape) < own)
        super().__init__(
            x,
            torch.from_numpy(side),
            output_size=2,
            loss_fn=DecisionLoss(asked),
            output_steps=asked,
        )
        self.cues = torch.from_numpy(right)


def _spike_probability(name: str, rate: Any, factor: float, dt: float) -> float:
    """Probability of a spike a step at ``rate`` Hz, times ``factor``."""
    found = number(name, rate, above=0) * factor * dt / 1000
    if found > 1:
        raise ValueError(
            f"{name}: got {rate:g} Hz (x {factor:g}) with dt {dt:g} ms, "
            f"expected at most {1000 / dt:g} Hz, one spike a step"
        )
    return found


def _cues(
    rng: np.random.Generator, side: NDArray[np.int64], num_cues: int, fair: float
) -> NDArray[np.bool_]:
    """Which cues come from the right ``(count, num_cues)``; their majority is on ``side``."""
    right = np.zeros((len(side), num_cues), dtype=bool)
    open_trials = np.arange(len(side))
    while len(open_trials):
        agrees = rng.random((len(open_trials), num_cues)) < fair
        kept = agrees.sum(1) > num_cues / 2
        chosen = open_trials[kept]
        right[chosen] = agrees[kept] == (side[chosen, None] == 1)
        open_trials = open_trials[~kept]
    return right
