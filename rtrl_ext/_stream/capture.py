"""Steps inside a CUDA graph, whose replays repeat what the device did, and nothing of Python."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .learner import Learner

WARM_UP = (
    "a step with gradients is captured whose rule has not learned yet: make a step with its "
    "backward pass before the capture (state.reset undoes what it did to the state)"
)
WAITING = (
    "steps made before the capture still wait for their losses: call backward on the last step "
    "before the capture"
)
BROKEN_OFF = (
    "a capture ended before the losses of its last steps had been differentiated: capture the "
    "backward pass too, with a new state"
)
LOOKS_BACK = (
    "a rule that looks back at earlier steps (TBPTT, MDGL, ModProp) can't be captured in a CUDA "
    "graph: replays would look back at the steps of the capture"
)
THIRD_FACTOR = (
    "a third factor with a time axis (modulator) can't be captured in a CUDA graph: replays would "
    "read the same steps of it again; multiply the loss of each row by its factor"
)
WAITS = (
    "OK can't be captured in a CUDA graph: its decompositions wait for the device; KFRTRL and UORO "
    "can"
)


def is_capturing(device: torch.device) -> bool:
    """Whether what is started on a device now is captured instead."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_rule(learner: "Learner | None", time: int) -> None:
    """RuntimeError for what a replay could not repeat; ``time``: of the last step taken up."""
    if learner is None or not time:
        raise RuntimeError(WARM_UP)
    if learner.looks_back:
        raise RuntimeError(LOOKS_BACK)
    if learner.waits:
        raise RuntimeError(WAITS)
    if learner.modulator is not None:
        raise RuntimeError(THIRD_FACTOR)


class Home:
    """Where a layer's steps begin and end once one was captured: memory that graphs refer to.

    states: internal states of the cell. fresh: (B,) bool, rows whose past is dropped before the
    next step.
    """

    def __init__(self, states: Sequence[Tensor], fresh: Tensor) -> None:
        self.states, self.fresh = tuple(states), fresh

    def write(self, states: Sequence[Tensor]) -> None:
        """Take over the numbers of ``states``."""
        new = [(a, b) for a, b in zip(self.states, states, strict=True) if a is not b and a.numel()]
        if new:
            torch._foreach_copy_([a for a, _ in new], [b for _, b in new])
